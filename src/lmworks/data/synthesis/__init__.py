"""New rows for tuning from given ones, through any generator, each with what it was made of. Knows no trainer."""
