"""GRPC in front of it: servicers, interceptor, rate limits, wire-byte meter; no rules."""
