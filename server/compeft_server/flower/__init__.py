"""Flower's server side: strategy, grids, conductor; a client of the aggregator, imports only domain and private_files."""
