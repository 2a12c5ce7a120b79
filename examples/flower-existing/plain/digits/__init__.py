"""Handwritten digits, learnt by clients that keep their images."""
