"""Arithmetic of client-level differential privacy: terms, clipping, Gaussian noise, exact sums on a grid."""
