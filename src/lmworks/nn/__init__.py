"""The parts of a Transformer. Know no training, no engine and no checkpoint format."""
