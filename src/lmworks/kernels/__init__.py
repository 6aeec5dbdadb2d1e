"""Hot operations, each a slow obvious reference beside its fast paths. Know no model."""
