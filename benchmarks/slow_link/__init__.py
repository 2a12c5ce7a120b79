"""Time from trained to applied everywhere over slow links, this exchange against dense weights: `python -m benchmarks.slow_link`."""
