"""The bandwidth report: one value, six formats."""
