"""Secure aggregation: an aggregator learns the sum of its clients' vectors and nothing else of one; pure protocol, no I/O."""
