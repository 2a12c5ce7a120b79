"""The account of differential privacy."""
