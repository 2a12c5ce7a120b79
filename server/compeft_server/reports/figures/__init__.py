"""The figures of the bandwidth report: read from the ledger and added up, without any text."""
