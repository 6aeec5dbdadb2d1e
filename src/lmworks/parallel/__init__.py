"""Training over many processes: meshes, sharded weights and batches, over torch.distributed. Knows no model class."""
