"""Arithmetic of differential privacy."""
