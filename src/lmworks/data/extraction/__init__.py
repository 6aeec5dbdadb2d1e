"""Documents from what a user has: files of many formats, each with its place and licence. Knows no cleaning rule."""
