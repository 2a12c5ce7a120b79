"""A Flower app of a few numbers, for tests."""
