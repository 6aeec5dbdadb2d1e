"""Conversations, preferences and the other row types of tuning, in and out. Knows no trainer."""
