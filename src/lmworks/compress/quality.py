"""How much a compressed model differs from its original: bits per byte, logits, most likely tokens.

Knows no compression method.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lmworks.core.errors import DataError
from lmworks.models.config import ModelConfig
from lmworks.models.transformer import Transformer
from lmworks.nn.attention_context import PackedContext
from lmworks.tokenization import Tokenizer
from lmworks.train.validation import bits_per_byte

LOGIT_TOKENS = 512
"""How many tokens' logits are compared; they are kept in memory."""


@dataclass(frozen=True)
class Sample:
    """What to measure on."""

    documents: tuple[tuple[int, ...], ...]
    """Token ids with begin and end marks; empty without a corpus."""
    num_bytes: int
    """UTF-8 bytes of the documents' texts."""
    probe: Tensor
    """[n] token ids, n at most `LOGIT_TOKENS`, whose logits are compared."""
    window: int
    """Longest context used."""


@dataclass(frozen=True)
class Snapshot:
    """One model's answers on a sample."""

    logits: Tensor
    """[n, V] float32."""
    bits_per_byte: float | None
    """None without a corpus."""


def read_sample(corpus: Path | None, tokenizer: Tokenizer, sample_bytes: int, config: ModelConfig) -> Sample:
    """The first validation texts of a corpus, about `sample_bytes` of them; without a corpus, random tokens.

    Raises:
        DataError: there are no validation texts, or a line is not a document.
    """
    window = min(LOGIT_TOKENS, config.max_position_embeddings)
    if corpus is None:
        generator = torch.Generator().manual_seed(0)
        return Sample((), 0, torch.randint(tokenizer.vocab_size, (window,), generator=generator), window)
    documents: list[tuple[int, ...]] = []
    num_bytes = 0
    begin = () if tokenizer.bos_token_id is None else (tokenizer.bos_token_id,)
    for text in _texts(corpus / "validation.jsonl"):
        if num_bytes >= sample_bytes:
            break
        if ids := tokenizer.encode(text):
            # A model without a begin mark predicts from the first token on; the end mark is never scored.
            documents.append((*begin, *ids, tokenizer.eos_token_ids[0] if tokenizer.eos_token_ids else ids[-1]))
            num_bytes += len(text.encode())
    if not documents:
        raise DataError(
            f"{corpus / 'validation.jsonl'} holds no text", "Make the corpus with a larger validation share"
        )
    longest = max(documents, key=len)
    return Sample(tuple(documents), num_bytes, torch.tensor(longest[:window]), window)


def snapshot(model: Transformer, sample: Sample) -> Snapshot:
    """Run a model over a sample."""
    bounds = torch.tensor([0, len(sample.probe)], dtype=torch.int32)
    with torch.inference_mode():
        hidden = model(sample.probe, torch.arange(len(sample.probe)), PackedContext(bounds))
        logits = model.logits(hidden).float()
    bits = bits_per_byte(model, sample.documents, sample.num_bytes, window=sample.window) if sample.documents else None
    return Snapshot(logits, bits)


def compare(before: Snapshot, after: Snapshot) -> dict[str, float]:
    """Metrics of a change; errors are absolute differences of logits."""
    error = (before.logits - after.logits).abs()
    metrics = {
        "logit_error_max": float(error.max()),
        "logit_error_mean": float(error.mean()),
        "same_top_token": float((before.logits.argmax(-1) == after.logits.argmax(-1)).float().mean()),
    }
    if before.bits_per_byte is not None and after.bits_per_byte is not None:
        metrics |= {"bits_per_byte_before": before.bits_per_byte, "bits_per_byte": after.bits_per_byte}
    return metrics


def _texts(file: Path) -> list[str]:
    try:
        with file.open(encoding="utf-8") as lines:
            return [json.loads(line)["text"] for line in lines if line.strip()]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"cannot read validation texts from {file}: {error!r}", "Give a corpus artifact") from None
