"""The formats of the bandwidth report: HTML, Markdown, terminal, JSON, CSV, Parquet, and the charts in them."""
