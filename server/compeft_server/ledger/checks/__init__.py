"""Holding the rows of the other tables against the audit log."""
