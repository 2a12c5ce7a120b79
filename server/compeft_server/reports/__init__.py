"""The bandwidth report: one value (`figures`), written in several formats (`formats`)."""
