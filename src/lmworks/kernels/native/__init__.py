"""Hot CPU operations in C++, built on first use for this machine and chosen by what its processor can do."""
