"""Completions held to a form. Knows no scheduler and no weights."""
