"""Where weights come from, where they lie, and how they change while requests run."""
