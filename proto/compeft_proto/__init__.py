"""Messages of the exchange: envelopes, manifests, keys, errors, and their transport over gRPC. No files."""
