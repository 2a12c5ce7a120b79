"""Pull and watch: an expert, by name, into a folder."""
