"""What reports and the live page read: sums, measurements, pages of lists, one round, a search. Nothing is written here."""
