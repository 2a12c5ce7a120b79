"""A Flower app whose clients do the same every time, for tests."""
