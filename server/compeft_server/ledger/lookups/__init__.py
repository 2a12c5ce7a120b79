"""Queries for one page or one question each: a round, a search, who is behind. Nothing is written here."""
