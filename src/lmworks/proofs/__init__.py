"""What `lmworks prove` measures on the reader's own machine.

Oracles are imported where used; nothing imports proofs but the command line.
"""
