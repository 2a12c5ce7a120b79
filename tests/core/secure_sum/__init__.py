"""Secure sums: the protocol, its parts, and what nobody may learn."""
