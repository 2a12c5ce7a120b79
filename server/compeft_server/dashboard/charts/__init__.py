"""Pictures of the live page as geometry: bytes over time, sparklines, the waterfall of a round."""
