"""Merge methods; mirrors docs/merging.md and format.md section 7."""
