"""Losses as pure functions. They return sums and counts, and never divide."""
