"""Values and protocols every package shares. Knows no torch, no model, no file format but lineage."""
