"""Entries and weight rules that mixtures of experts share: which layers have experts, and how these are stored.

Published files hold every expert's matrices by themselves; transformers stacks them in memory and may write them so.
Both are read, the first is written. Knows no family.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lmworks.core.errors import ConfigError
from lmworks.models.config import ModelConfig
from lmworks.models.families.entries import (
    ActivationField,
    Constant,
    Count,
    Draft,
    Entry,
    Field,
    get,
    letters,
    put,
    tiled,
)
from lmworks.models.families.hf_config import Fields
from lmworks.models.hub.rules import Rule, Split, Stack
from lmworks.models.slots import MoEConfig

M = "decoder.mlp."
OURS = "decoder.layers.{i}.mlp"


def expert_entries(experts: str, inner: str, *, aux_loss: str = "router_aux_loss_coef") -> tuple[Entry, ...]:
    """Sizes of the experts.

    Args:
        experts: their key of the number of experts.
        inner: their key of an expert's inner dimension.
        aux_loss: their key of the balance loss's factor.
    """
    return (
        Constant(f"{M}kind", "moe"),
        Count(experts, f"{M}num_experts"),
        Count("num_experts_per_tok", f"{M}num_experts_per_tok"),
        Count(inner, f"{M}moe_intermediate_size"),
        ActivationField("hidden_act", f"{M}hidden_act", "silu"),
        Field(aux_loss, f"{M}router_aux_loss_coef", 0.0),
    )


@dataclass(frozen=True)
class SharedExperts:
    """The expert that every token takes, as so many times the size of the others."""

    def read(self, fields: Fields, draft: Draft) -> None:
        """See `Entry`."""
        count = fields.take("n_shared_experts", 0)
        put(draft, f"{M}shared_intermediate_size", count * get(draft, f"{M}moe_intermediate_size"))

    def write(self, draft: Draft, hf: dict[str, Any]) -> None:
        """See `Entry`."""
        hf["n_shared_experts"] = get(draft, f"{M}shared_intermediate_size") // get(draft, f"{M}moe_intermediate_size")


@dataclass(frozen=True)
class TopkMethod:
    """DeepSeek-V2's way to choose experts: of all ("greedy"), or of the best groups."""

    def read(self, fields: Fields, draft: Draft) -> None:
        """See `Entry`."""
        method, groups = fields.take("topk_method", "greedy"), (fields.take("n_group", 1), fields.take("topk_group", 1))
        if method not in ("greedy", "group_limited_greedy"):
            raise ConfigError(
                f"config.json: topk_method {method!r} is not supported", "Known: greedy, group_limited_greedy"
            )
        for key, value in zip(("n_group", "topk_group"), groups, strict=True):
            put(draft, f"{M}{key}", value if method == "group_limited_greedy" else 1)

    def write(self, draft: Draft, hf: dict[str, Any]) -> None:
        """See `Entry`."""
        hf |= {key: get(draft, M + key) for key in ("n_group", "topk_group")}
        hf["topk_method"] = "greedy" if hf["n_group"] == 1 else "group_limited_greedy"


@dataclass(frozen=True)
class FirstDense:
    """The first layers have a dense MLP, and of the others only every `moe_layer_freq`-th has experts (DeepSeek)."""

    def read(self, fields: Fields, draft: Draft) -> None:
        """See `Entry`."""
        first, step = fields.take("first_k_dense_replace", 0), fields.count("moe_layer_freq", 1)
        count = get(draft, "decoder.num_hidden_layers")
        _put_dense([i < first or i % step != 0 for i in range(count)], fields, draft)

    def write(self, draft: Draft, hf: dict[str, Any]) -> None:
        """See `Entry`."""
        dense = _get_dense(draft, hf)
        first = dense.index(False) if False in dense else len(dense)
        hf["first_k_dense_replace"] = first
        hf["moe_layer_freq"] = next(
            step
            for step in range(1, len(dense) + 1)
            if all(dense[i] == (i % step != 0) for i in range(first, len(dense)))
        )


@dataclass(frozen=True)
class SparseStep:
    """Every `decoder_sparse_step`-th layer has experts but those in `mlp_only_layers` (Qwen)."""

    def read(self, fields: Fields, draft: Draft) -> None:
        """See `Entry`."""
        step, named = fields.count("decoder_sparse_step", 1), fields.take("mlp_only_layers", [])
        count = get(draft, "decoder.num_hidden_layers")
        _put_dense([i in named or (i + 1) % step != 0 for i in range(count)], fields, draft)

    def write(self, draft: Draft, hf: dict[str, Any]) -> None:
        """See `Entry`."""
        dense = _get_dense(draft, hf)
        hf |= {"decoder_sparse_step": 1, "mlp_only_layers": [i for i, is_dense in enumerate(dense) if is_dense]}


def _put_dense(dense: list[bool], fields: Fields, draft: Draft) -> None:
    """Give the layers marked so a dense MLP of `intermediate_size`; they are `D` in the pattern."""
    inner = fields.count("intermediate_size", None)
    if any(dense):
        draft["decoder"]["pattern"] = tiled(["D" if is_dense else "E" for is_dense in dense]) or "D"
        inner = fields.count("intermediate_size") if inner is None else inner
        mlp = {"kind": "dense", "intermediate_size": inner, "hidden_act": get(draft, f"{M}hidden_act")}
        draft["decoder"]["layers"] = {"D": {"mlp": mlp}}


def _get_dense(draft: Draft, hf: dict[str, Any]) -> list[bool]:
    """Whether each layer has a dense MLP; writes its size, which readers want even where no layer has one."""
    inner = get(draft, f"{M}moe_intermediate_size")
    hf["intermediate_size"] = get(draft, "decoder.layers.D.mlp.intermediate_size", inner)
    return [letter == "D" for letter in letters(draft, "decoder")]


def expert_rules(count: int, theirs: str, gate: str, up: str, down: str) -> tuple[Rule, Rule]:
    """The experts of a layer, each stored by itself, or stacked with gate and up in one.

    Args:
        count: of the experts.
        theirs: module that holds them.
        gate: name of one expert's matrix there.
        up: likewise.
        down: likewise.
    """
    ours = (f"{OURS}.experts.gate_proj", f"{OURS}.experts.up_proj")
    pairs = tuple(f"{theirs}.{e}.{name}.weight" for e in range(count) for name in (gate, up))
    downs = tuple(f"{theirs}.{e}.{down}.weight" for e in range(count))
    fused = stacked_rules(f"{theirs}.gate_up_proj", f"{theirs}.down_proj")
    return (
        Rule(ours, pairs, (Stack(parts=2),), also=(fused[0],)),
        Rule((f"{OURS}.experts.down_proj",), downs, (Stack(),), also=(fused[1],)),
    )


def stacked_rules(gate_up: str, down: str) -> tuple[Rule, Rule]:
    """The experts of a layer as two tensors of theirs: gate and up one after the other, and down."""
    ours = (f"{OURS}.experts.gate_proj", f"{OURS}.experts.up_proj")
    return Rule(ours, (gate_up,), (Split(dim=1),)), Rule((f"{OURS}.experts.down_proj",), (down,))


def expert_count(config: ModelConfig) -> int:
    """Experts of a decoder's layers; 0 where none has any."""
    assert config.decoder is not None, "a mixture of experts is a decoder here"
    kinds = (layer.mlp for layer, _ in config.decoder.kinds())
    return max((mlp.num_experts for mlp in kinds if isinstance(mlp, MoEConfig)), default=0)
