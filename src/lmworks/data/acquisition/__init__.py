"""Named sources with their licences, fetched from package indexes and checked. Knows no cleaning rule."""
