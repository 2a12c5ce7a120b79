"""Small Flower apps, plain and ours: `python -m tests.rounds.parity` prints the table of docs/flower-parity.md."""
