"""Token shards, random access to them, and packed rows for training. Knows no cleaning rule."""
