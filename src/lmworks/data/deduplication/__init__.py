"""Exact, near, substring and semantic duplicates, and which of a group stays. Knows neither files nor splits."""
