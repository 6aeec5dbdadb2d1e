"""Losses as pure functions from a model and a batch to a `Loss`. They never divide; know no trainer."""
