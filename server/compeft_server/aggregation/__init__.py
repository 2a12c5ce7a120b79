"""What happens to a verified message: admit, store, merge, version, answer; no sockets."""
