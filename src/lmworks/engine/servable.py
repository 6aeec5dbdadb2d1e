"""Which models the engine can serve, and what of it they allow. Knows no request."""

from __future__ import annotations

from collections.abc import Iterator

from lmworks.core.errors import ConfigError
from lmworks.models.cache_layout import cache_entries, cache_entry
from lmworks.models.config import ModelConfig, StackConfig
from lmworks.models.head_slots import CausalLMHead
from lmworks.models.position_slots import DynamicScaling, LongRopeScaling, Positions, RotaryPositions
from lmworks.models.transformer import Transformer


def served_decoder(config: ModelConfig) -> StackConfig:
    """The stack that generates.

    Raises:
        ConfigError: the model generates nothing, or not token by token over a paged cache.
    """
    decoder = config.decoder
    if decoder is None:
        stack = "an encoder" if config.encoder is not None else "vision"
        raise ConfigError(
            f"a {config.family} model has {stack} alone and generates nothing",
            "Serve a model with a decoder; call this one directly for embeddings or labels",
        )
    if not isinstance(config.head, CausalLMHead):
        raise ConfigError(
            f"a model with a {config.head.kind} head generates nothing", "Serve the same model with a causal_lm head"
        )
    if not decoder.causal:
        raise ConfigError(
            f"a {config.family} model whose tokens see later ones cannot generate over a cache of earlier ones",
            "Serve a causal decoder",
        )
    entries = cache_entries(decoder)
    if decoder.cross_attention is not None:
        if any(cache_entry(decoder.cross_attention) != entry for entry in entries):
            raise ConfigError(
                "cross-attention whose heads differ from self-attention's in number or size cannot share its cache",
                "Use equal num_key_value_heads and head_dim",
            )
        if config.decoder_start_token_id is None:
            raise ConfigError(
                f"a {config.family} model with an encoder has no decoder_start_token_id", "Set it in config.json"
            )
    return decoder


def decoder_prompt(config: ModelConfig) -> tuple[int, ...]:
    """What the decoder of a served model with an encoder begins with."""
    assert config.decoder_start_token_id is not None, "a served model has one"
    return (config.decoder_start_token_id,)


def shares_prefixes(model: Transformer) -> bool:
    """Whether equal beginnings have equal keys and values, whatever comes after.

    Not behind an encoder, whose source they depend on, nor where a position's code depends on the document's length.
    """
    assert model.decoder is not None, "only models with a decoder are served"
    codes = model.decoder.position_codes
    return model.encoder is None and not any(getattr(code, "length_dependent", False) for code in codes)


def turning_points(config: ModelConfig) -> frozenset[int]:
    """Lengths of a document beyond which the keys of all its tokens are others (LongRoPE's two sets of angles)."""
    scalings = (p.rope_scaling for p in _positions(config) if isinstance(p, RotaryPositions))
    return frozenset(s.original_max_position_embeddings for s in scalings if isinstance(s, LongRopeScaling))


def context_length(config: ModelConfig) -> int:
    """Tokens that the decoder was made for, in one document."""
    scaling = config.positions.rope_scaling if isinstance(config.positions, RotaryPositions) else None
    if isinstance(scaling, DynamicScaling):
        # `max_position_embeddings` is what such a model was trained on, not how far it is stretched.
        return max(config.max_position_embeddings, int(scaling.factor * scaling.original_max_position_embeddings))
    return config.max_position_embeddings


def _positions(config: ModelConfig) -> Iterator[Positions]:
    yield config.positions
    if config.decoder is not None:
        yield from (layer.positions for layer, _ in config.decoder.kinds() if layer.positions is not None)
