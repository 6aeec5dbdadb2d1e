"""Which tokens a step computes, and which blocks of the cache hold them. Knows no weights and imports no torch."""
