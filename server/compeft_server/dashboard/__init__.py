"""The live page over the ledger: server-rendered, no build step, no request to another host."""
