"""`compeft merge`."""
