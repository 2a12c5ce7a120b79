"""The Flower mod (the two-line seam)."""
