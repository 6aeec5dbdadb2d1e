"""A checkpoint of a pretraining run as a model folder with its tokenizer, also while the run goes on.

Only reads what the run writes: unlike going on, it finishes nothing half there and sets nothing aside.
"""

from __future__ import annotations

from pathlib import Path

from lmworks.core.code_version import code_version
from lmworks.core.errors import ArtifactError, CheckpointError
from lmworks.core.lineage import Manifest, clock, verify, write_artifact
from lmworks.models.hub import save_pretrained
from lmworks.tokenization import load_tokenizer
from lmworks.train.checkpoint import PREFIX
from lmworks.train.objective_wiring import wire
from lmworks.train.pretrain import PretrainConfig, model_config_of, parents_of, trained_model
from lmworks.train.saved_checkpoint import Checkpoint


def export_run(config: PretrainConfig, run_folder: Path, output: Path, step: int | None = None) -> Manifest:
    """Write what the run would publish, had it ended at one of its checkpoints: the average, where there is one.

    Args:
        config: of the run.
        run_folder: where it keeps its checkpoints; they may be of one process or of any mesh.
        output: model folder to write; its manifest names the checkpoint and the run's inputs.
        step: updates done; None takes the newest checkpoint that is intact.

    Raises:
        CheckpointError: there is no such checkpoint, or it is of another model.
        ArtifactError: `output` is something else, or an input of the run is gone.
    """
    started = clock()
    checkpoint = find_checkpoint(run_folder, step)
    tokenizer = load_tokenizer(config.tokenizer)
    model_config = model_config_of(config, tokenizer)
    wired = wire(config.objective, model_config, tokenizer, config.train.sequence_length)
    model = trained_model(config, model_config, wired, checkpoint)
    with write_artifact(
        output,
        "model",
        config={"step": checkpoint.step, "steps": config.train.steps, "run": config.to_dict()},
        parents={"checkpoint": checkpoint.path, **parents_of(config)},
        code_version=code_version(__name__),
        started=started,
    ) as writer:
        save_pretrained(model, writer.folder)
        tokenizer.save(writer.folder)
        writer.metrics.update({"step": checkpoint.step, "parameters": sum(p.numel() for p in model.parameters())})
    assert writer.manifest is not None
    return writer.manifest


def find_checkpoint(run_folder: Path, step: int | None = None) -> Checkpoint:
    """The newest checkpoint whose files are as they were written, or that of a step.

    Args:
        run_folder: of the run.
        step: updates done.

    Raises:
        CheckpointError: there is none.
    """
    names = (path.name.removeprefix(PREFIX) for path in run_folder.glob(f"{PREFIX}*"))
    steps = sorted((int(name) for name in names if name.isdecimal()), reverse=True)
    damage = ""
    for found in steps if step is None else [step]:
        path = run_folder / f"{PREFIX}{found:08d}"
        try:
            manifest = verify(path)
        except (ArtifactError, FileNotFoundError) as error:  # the run may remove it while it is read
            damage = damage or f"; {error}"
            continue
        return Checkpoint(path, found, manifest.config, manifest.metrics)
    named = "no intact checkpoint" if step is None else f"no intact checkpoint of step {step}"
    raise CheckpointError(
        f"{run_folder} holds {named}{damage}",
        f"Steps that are there: {', '.join(map(str, steps)) or 'none'}; a run writes one every "
        "`train.checkpoint_every` steps, and a finished run keeps them with `checkpoint.keep_finished`",
    )
