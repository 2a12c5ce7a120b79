"""What is signed and what travels: envelopes, manifests, keys, errors, and the one way to move them over gRPC."""
