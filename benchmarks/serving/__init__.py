"""Experts served by a real vLLM on the CPU: `python -m benchmarks.serving`."""
