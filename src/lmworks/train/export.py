"""The weights of a checkpoint as those of one model, without training: to export a run that goes on or was stopped.

Knows no format: what comes out is the model's own state, under its own names, however many ranks wrote it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lmworks.core.errors import CheckpointError
from lmworks.train.run_state import AVERAGE, MODEL, part, weights
from lmworks.train.saved_checkpoint import Checkpoint


@torch.no_grad()
def export_checkpoint(checkpoint: Checkpoint, model: nn.Module) -> dict[str, Tensor]:
    """Leave in a model what the run would publish, had it ended at this checkpoint: the average, where there is one.

    Args:
        checkpoint: of one process or of any mesh.
        model: in one process, of the run's configuration; what was frozen in the run has its weights already.

    Returns:
        The model's `state_dict()`.

    Raises:
        CheckpointError: it is of another model, or cannot be read.
    """
    saved = part(checkpoint.load(MODEL), MODEL)
    average = part(checkpoint.load(AVERAGE), AVERAGE)
    own = weights(model)
    if odd := sorted(
        n for n in own.keys() | saved.keys() if n not in own or n not in saved or own[n].shape != saved[n].shape
    ):
        raise CheckpointError(
            f"{checkpoint.path} and the model differ in {len(odd)} weights, among them {odd[0]!r}",
            "Build the model with the configuration of the run",
        )
    for name, tensor in own.items():
        tensor.copy_(average.get(name, saved[name]))
    return model.state_dict()
