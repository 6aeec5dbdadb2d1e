"""Smaller models from trained ones, in the formats of `nn`, each with its loss of quality measured. Knows no HTTP."""
