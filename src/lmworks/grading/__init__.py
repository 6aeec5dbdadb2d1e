"""Is this answer good? Pure functions from an answer and its references to a number. Knows not who asks."""
