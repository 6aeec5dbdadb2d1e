"""Tokens guessed ahead and verified: the same answers, sooner."""
