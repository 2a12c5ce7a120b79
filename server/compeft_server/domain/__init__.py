"""What the aggregator knows and the rules it judges by: frozen values, pure functions; no I/O, no clock."""
