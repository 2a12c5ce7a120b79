"""`compeft demo`."""
