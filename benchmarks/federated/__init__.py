"""Federated fine-tuning at a fraction of the bytes, against named peers: see `python -m benchmarks.federated --help`."""
