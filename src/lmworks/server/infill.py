"""Filling a gap: a prompt before and a suffix after it, for models trained to do so (arXiv:2207.14255).

Whether a model was is told by its tokenizer, which then has tokens for the three parts. Knows no route.
"""

from __future__ import annotations

from lmworks.protocol.completions import Prompt
from lmworks.protocol.errors import InvalidRequestError
from lmworks.tokenization import Tokenizer

MARKERS = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # Qwen, Code Gemma
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder, SantaCoder
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),  # Granite
    ("▁<PRE>", "▁<SUF>", "▁<MID>"),  # Code Llama
    ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),  # DeepSeek
)
"""Before the prompt, before the suffix, and before what is to be generated, by families of tokenizers."""


def encode_infill(tokenizer: Tokenizer, prompt: Prompt, suffix: str) -> list[int]:
    """Tokens that ask for what stands between `prompt` and `suffix`.

    Raises:
        InvalidRequestError: the tokenizer has no tokens for it.
    """
    for names in MARKERS:
        ids = [tokenizer.token_id(name) for name in names]
        prefix_id, suffix_id, middle_id = ids
        if prefix_id is not None and suffix_id is not None and middle_id is not None:
            begin = [tokenizer.bos_token_id] if tokenizer.adds_bos and tokenizer.bos_token_id is not None else []
            before = tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
            return [*begin, prefix_id, *before, suffix_id, *tokenizer.encode(suffix), middle_id]
    raise InvalidRequestError(
        "'suffix' is not supported by this model: its tokenizer has no tokens for filling gaps",
        "Leave it out, or ask a model trained to fill gaps",
        param="suffix",
        code="unsupported_parameter",
    )
