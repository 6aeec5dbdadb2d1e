"""One training loop for every objective: steps, precision, checkpoints, resume, metrics. Knows no engine.

`pretrain.py`, the stage, is the one file here that builds a model.
"""
