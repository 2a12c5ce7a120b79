"""Tests of the exact-delta codec."""
