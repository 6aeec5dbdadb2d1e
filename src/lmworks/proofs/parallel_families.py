"""Every model family under every kind of parallelism: what `check_support` lets through gives one process's gradient.

Families come as the tiny models of `lmworks prove families`, with a vocabulary that divides. Knows no table.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from lmworks.core.errors import ParallelError
from lmworks.models.build import build_model
from lmworks.models.config import ModelConfig
from lmworks.models.families import family_named
from lmworks.models.parallel_plan import shard_units, tensor_plan
from lmworks.models.slots import FeedForward
from lmworks.nn.batch import Batch, next_token_document, pack
from lmworks.objectives.arrange import Documents
from lmworks.objectives.causal_lm import causal_lm
from lmworks.objectives.draws import Draws
from lmworks.objectives.source_target import for_encoder_decoder, prefix_pairs, seq2seq
from lmworks.parallel.config import ParallelConfig
from lmworks.parallel.support import check_support
from lmworks.proofs import reference
from lmworks.proofs.cases import all_cases
from lmworks.proofs.parallel_forms import Form, Gap, Meshes, Outcome, distributed, one_process
from lmworks.proofs.parallel_objectives import TOKENS, VOCABULARY, Case, Made

FAMILY_FORMS: dict[str, Form] = {
    "DDP": Form(ParallelConfig(data=4)),
    "HSDP 2x2": Form(ParallelConfig(data=2, shard=2)),
    "DP x TP+SP 2x2": Form(ParallelConfig(data=2, tensor=2)),
    "DP x ring 2x2": Form(ParallelConfig(data=2, context=2)),
    "DP x Ulysses 2x2": Form(ParallelConfig(data=2, context=2, context_method="ulysses")),
    "DP x pipeline 2x2": Form(ParallelConfig(data=2, pipeline=2), 4),
    "DP x EP 2x2": Form(ParallelConfig(data=4, expert=2)),
}
"""One for each mechanism, by twos, which divide most tiny models."""


def family_configs() -> dict[str, ModelConfig]:
    """One tiny model a family, of those that say something of tokens."""
    chosen: dict[str, ModelConfig] = {}
    library = reference.transformers()
    for case in all_cases():
        theirs = library.AutoConfig.for_model(case.family, **case.config)  # fills in what the case leaves out
        theirs.architectures = [case.architecture]
        config = family_named(case.family).config_from_hf(json.loads(theirs.to_json_string(use_diff=False)))
        speaks = config.head.kind in ("causal_lm", "masked_lm") and not getattr(config.head, "next_sentence", False)
        if speaks and config.vision is None:
            even = _even(config.to_dict()) | {"vocab_size": VOCABULARY}
            chosen.setdefault(case.family, ModelConfig.parse(even))
    return chosen


def _even(value: Any) -> Any:
    """A configuration with twice the heads and experts, so that they divide, and nothing left to chance."""
    if isinstance(value, list | tuple):
        return [_even(entry) for entry in value]
    if not isinstance(value, dict):
        return value
    doubled = {name: 2 * value[name] for name in _DOUBLED if name in value}
    certain = {name: 0.0 for name in ("dropout", "layerdrop") if name in value}
    return {name: _even(entry) for name, entry in value.items()} | doubled | certain


_DOUBLED = ("num_attention_heads", "num_key_value_heads", "num_experts")


def refusal(config: ModelConfig, form: Form) -> ParallelError | None:
    """Why a model cannot be arranged so, found without numbers and processes."""
    try:
        plan = tensor_plan(config, form.config.tensor) if form.config.tensor > 1 else None
        with torch.device("meta"):
            model = build_model(config)
        check_support(model, form.config, plan=plan, num_microbatches=form.micro_batches)
    except ParallelError as error:
        return error
    return None


def family_case(config: ModelConfig) -> Case:
    """The model with the objective that suits its stacks."""

    def build(layers: int, seed: int, mlp: FeedForward, ranks: int) -> Made:
        model = build_model(config, seed=seed)
        return model, tensor_plan(config, ranks) if ranks > 1 else None, shard_units(config)

    if config.encoder is not None and config.decoder is not None:
        return Case(for_encoder_decoder(prefix_pairs, 0), seq2seq, build)
    return Case(partial(_short, longest=min(24, config.max_position_embeddings)), causal_lm, build)


def family_gaps(seed: int, configs: Mapping[str, ModelConfig], chosen: Sequence[tuple[str, str]]) -> list[Gap]:
    """On every rank: the gaps of families under forms that `refusal` lets through; those of the first rank count.

    Raises:
        ParallelError: a form was let through and cannot be.
    """
    meshes, references, gaps = Meshes(), dict[str, Outcome](), list[Gap]()
    for family, form in chosen:
        case = family_case(configs[family])
        outcome, _, _ = distributed(case, FAMILY_FORMS[form], seed, meshes)
        if dist.get_rank():
            gaps.append(Gap(0.0, 0.0))
            continue
        if family not in references:
            references[family] = one_process(case, seed, 0)
        gaps.append(references[family].gap(outcome))
    return gaps


def _short(documents: Documents, draws: Draws, longest: int) -> Batch:
    return pack([next_token_document((ids[: longest + 1] % TOKENS).tolist()) for ids in documents])
