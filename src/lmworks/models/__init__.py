"""One config-driven Transformer, its families as data, and the formats it is read from and written to.

Knows no training, no engine and no torch.distributed.
"""
