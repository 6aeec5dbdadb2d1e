"""Stages in order: the stage table, recipes in YAML, the sequential runner and the report. Knows no model."""
