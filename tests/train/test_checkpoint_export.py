"""A checkpoint as the model that the run would have published."""

from pathlib import Path

import pytest
import torch
from train_case import same_weights, tiny_model, tiny_trainer

from lmworks.core.errors import CheckpointError
from lmworks.train.checkpoint import Checkpoints
from lmworks.train.export import export_checkpoint


@pytest.mark.parametrize("ema_decay", [None, 0.5])
def test_it_is_what_the_finished_run_leaves(tmp_path: Path, ema_decay: float | None):
    trainer = tiny_trainer(tmp_path, steps=4, ema_decay=ema_decay)
    trainer.fit()
    model = tiny_model(seed=9)
    state = export_checkpoint(Checkpoints(tmp_path, 1).newest(), model)
    assert same_weights(model, trainer.model)
    assert all(torch.equal(state[name], tensor) for name, tensor in trainer.model.state_dict().items())
    with pytest.raises(CheckpointError, match="differ in"):
        export_checkpoint(Checkpoints(tmp_path, 1).newest(), tiny_model(hidden_size=8))
