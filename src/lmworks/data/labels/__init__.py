"""People's preferences between answers: collected with consent, measured, written as rows of tuning."""
