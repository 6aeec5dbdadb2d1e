"""Schedules, parameter groups by role and one optimizer object over both. Knows no model class and no trainer."""
