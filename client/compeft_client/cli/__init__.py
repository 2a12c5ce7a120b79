"""Commands and the `compeft` entry point."""
