"""From a path to a model and its tokenizer, ready to serve. Knows no request."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import torch

from lmworks.engine.config import EngineConfig
from lmworks.models.hub import load_pretrained
from lmworks.models.transformer import Transformer
from lmworks.tokenization import Tokenizer, check_compatible, load_tokenizer

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def load(
    model: Path | str | Transformer, tokenizer: Tokenizer | None, config: EngineConfig
) -> tuple[Transformer, Tokenizer | None]:
    """Load what is a path, and check that weights and tokenizer belong together.

    A model in memory is served as it is; only where the configuration asks for another dtype is it copied.

    Raises:
        CheckpointError: the weights cannot be read.
        TokenizerError: the tokenizer cannot be read or does not fit the weights.
    """
    dtype = DTYPES.get(config.dtype)
    if not isinstance(model, Transformer):
        path = Path(model)
        tokenizer = tokenizer if tokenizer is not None else load_tokenizer(path)
        model = load_pretrained(path, dtype=dtype or fastest_dtype())
    elif dtype is not None and model.dtype != dtype:
        model = deepcopy(model).to(dtype)
    if tokenizer is not None:
        check_compatible(tokenizer, model.config.vocab_size)
    return model, tokenizer


def fastest_dtype() -> torch.dtype:
    """Of decoding on this machine."""
    return torch.float32
