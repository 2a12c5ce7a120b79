"""The account of differential privacy: what each member has spent, and how many rounds a bound leaves."""
