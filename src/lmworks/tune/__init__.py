"""Trained models taught more: one short file for each way. Knows no HTTP."""
