"""The aggregator: admits, stores, merges and accounts for experts; and the Flower strategy that conducts its rounds."""
