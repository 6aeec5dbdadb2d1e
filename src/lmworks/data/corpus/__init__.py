"""The stage `data prepare`: raw documents in, a clean and divided corpus with its report out. Knows no tokens."""
