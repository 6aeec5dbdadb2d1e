"""How a model may be divided, as strings that `parallel` reads: which matrices by columns, rows or vocabulary.

Everything follows from the configuration, so a plan is made and refused before any weight exists. Knows no process
and no torch.

The styles:
    column: a linear map whose outputs are divided (heads, inner units of a feed-forward net).
    row: a linear map whose inputs are; its output is a sum over ranks.
    vocabulary: a table or head whose rows, one per token id, are divided.
    shared: its weights see some heads of every token; their gradients are sums over ranks.
    whole: computed alike on every rank, although between divided parts.
    tokens: a stack between whose matrices tokens can be divided (sequence parallelism).
"""

from __future__ import annotations

from collections.abc import Iterator

from lmworks.core.errors import ParallelError
from lmworks.models.config import ModelConfig, StackConfig
from lmworks.models.head_slots import CausalLMHead, MaskedLMHead
from lmworks.models.slots import Attention, AttentionConfig, FeedForward, MLAConfig, MLPConfig

TEXT = ("encoder", "decoder")
"""Stacks that are divided; vision is small and computed whole."""


def shard_units(config: ModelConfig) -> list[str]:
    """Names of the modules whose weights are gathered together when they are sharded: the blocks of every stack."""
    return [
        f"{name}.layers.{index}"
        for name, (_, stack) in config.columns.items()
        for index in range(stack.num_hidden_groups or stack.num_hidden_layers)
    ]


def tensor_plan(config: ModelConfig, ranks: int) -> dict[str, str]:
    """The style of every module that is divided or shared, by its name.

    Args:
        config: the model.
        ranks: among which it is to be divided.

    Raises:
        ParallelError: the model cannot be divided so, with the reason.
    """
    if not config.vocab_size:
        raise ParallelError(
            f"a {config.family} model reads images alone, and only stacks of text are divided", "Set `tensor: 1`"
        )
    _require(config.vocab_size, ranks, "vocab_size", "pad the vocabulary")
    plan = {"embed_tokens": "vocabulary"}
    if isinstance(config.head, CausalLMHead | MaskedLMHead):
        plan["lm_head"] = "vocabulary"
    for name in TEXT:
        if name in config.columns:
            plan.update(_stack(config, config.columns[name][1], name, ranks))
    return plan


def _stack(config: ModelConfig, stack: StackConfig, name: str, ranks: int) -> Iterator[tuple[str, str]]:
    residual = stack.residual
    if not residual.layerdrop and stack.num_hidden_groups is None and stack.norm.kind != "batch":
        yield name, "tokens"
    yield f"{name}.position_codes", "shared"
    for index in range(stack.num_hidden_groups or stack.num_hidden_layers):
        layer, path = stack.layer(index), f"{name}.layers.{index}"
        assert layer.attention is not None, "a resolved layer has an attention"
        assert layer.mlp is not None, "a resolved layer has a feed-forward net"
        yield from _attention(layer.attention, f"{path}.self_attn", ranks)
        if stack.cross_attention is not None:
            yield from _attention(stack.cross_attention, f"{path}.cross_attn", ranks)
        yield from _feed_forward(layer.mlp, f"{path}.mlp", ranks)


def _attention(attention: Attention, path: str, ranks: int) -> Iterator[tuple[str, str]]:
    match attention:
        case AttentionConfig():
            _require(attention.num_attention_heads, ranks, f"num_attention_heads of {path}", "choose a divisor")
            _require(attention.num_key_value_heads, ranks, f"num_key_value_heads of {path}", "choose a divisor")
            if attention.qk_norm == "full":
                raise _refusal(path, "its norms of queries and keys see all heads at once")
            if attention.sinks:
                raise _refusal(path, "its sinks are one number per head, which no matrix holds")
            columns = ["q_proj", "k_proj", "v_proj"]
        case MLAConfig():
            _require(attention.num_attention_heads, ranks, f"num_attention_heads of {path}", "choose a divisor")
            columns = ["q_proj" if attention.q_lora_rank is None else "q_b_proj", "kv_b_proj"]
        case _:
            raise _refusal(path, f"{attention.kind!r} attention mixes more than its heads' own coordinates")
    yield from ((f"{path}.{name}", "column") for name in columns)
    yield f"{path}.o_proj", "row"


def _feed_forward(mlp: FeedForward, path: str, ranks: int) -> Iterator[tuple[str, str]]:
    if not isinstance(mlp, MLPConfig):
        yield path, "whole"  # experts are divided among ranks by `expert`
        return
    _require(mlp.intermediate_size, ranks, f"intermediate_size of {path}", "choose a divisor")
    yield from ((f"{path}.{name}", "column") for name in ("gate_proj", "up_proj")[not mlp.gated :])
    yield f"{path}.down_proj", "row"


def _require(value: int, ranks: int, what: str, remedy: str) -> None:
    if value % ranks:
        raise ParallelError(
            f"{what} is {value}, which does not divide among tensor {ranks} ranks",
            f"Choose another degree of `tensor`, or {remedy}",
        )


def _refusal(path: str, reason: str) -> ParallelError:
    return ParallelError(f"{path} cannot be divided: {reason}", "Set `tensor: 1`; `data` and `shard` serve every model")
