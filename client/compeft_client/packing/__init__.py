"""Expert files offline: plan, code, pack, unpack, inspect, diff."""
