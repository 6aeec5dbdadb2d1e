"""Small versions of a run that is planned, to foresee it by: same data, shape and settings, fewer parameters and steps.

Knows no law; `scaling_laws.py` fits one to what these runs leave.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lmworks.core.errors import ConfigError
from lmworks.core.progress import say
from lmworks.train.pretrain import PretrainConfig, pretrain


def ladder_configs(
    planned: PretrainConfig, sizes: Sequence[tuple[int, int]], steps: Sequence[int], output: Path
) -> list[PretrainConfig]:
    """Every size with every number of steps.

    Heads keep their size, key-value heads and inner layers their proportion, the warm-up its share of the run.

    Args:
        planned: the large run.
        sizes: hidden size and layers.
        steps: updates.
        output: folder of the model folders to be written, `<hidden size>x<layers>-<steps>`.

    Raises:
        ConfigError: a size does not divide as the planned model does.
    """
    model, train = planned.model, planned.train
    head = model.hidden_size // model.heads
    configs = []
    for hidden_size, layers in sizes:
        if hidden_size % head:
            raise ConfigError(
                f"the size {hidden_size}x{layers} is not a multiple of {head}, the planned model's head size",
                "Choose multiples of it, so that heads are alike at every size",
            )
        share = hidden_size / model.hidden_size
        smaller: dict[str, Any] = {
            "model.hidden_size": hidden_size,
            "model.num_hidden_layers": layers,
            "model.num_attention_heads": hidden_size // head,
        }
        if model.num_key_value_heads is not None:
            smaller["model.num_key_value_heads"] = max(1, round(model.num_key_value_heads * share))
        if model.intermediate_size is not None:
            smaller["model.intermediate_size"] = round(model.intermediate_size * share)
        for count in steps:
            shorter = {
                "train.steps": count,
                "train.schedule.warmup_steps": round(train.schedule.warmup_steps * count / train.steps),
                "output": str(output / f"{hidden_size}x{layers}-{count}"),
            }
            configs.append(PretrainConfig.parse(planned.to_dict(), smaller | shorter))
    return configs


def run_ladder(configs: Sequence[PretrainConfig]) -> list[Path]:
    """Train those that are not there yet, and return all model folders.

    Raises:
        LMWorksError: as `pretrain` does; what is done is kept, and running again goes on.
    """
    for number, config in enumerate(configs, 1):
        if (config.output / "lineage.json").exists():
            say(f"run {number} of {len(configs)}: {config.output} is there")
            continue
        say(f"run {number} of {len(configs)}: {config.output}")
        pretrain(config)
    return [config.output for config in configs]
