"""The composition root: builds every object once, runs it, logs, traces."""
