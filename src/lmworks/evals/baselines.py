"""What text costs without a neural model: gzip, xz primed with the training text, and an order-n byte model.

All see the same held-out documents as the models, byte for byte, and get every advantage that is honest:

- `gzip -9`: the held-out documents laid end to end, so later ones profit from earlier ones. No training.
- `xz -9e primed`: what xz -9e adds for the held-out documents after the training text, its dictionary spanning both.
- `order-5`: interpolated modified Kneser-Ney trained on the training text; every document starts afresh, as in our
  models, and neither start nor end of a document costs anything.

Knows no tokens and no models.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from lmworks.core.errors import EvalError
from lmworks.evals.byte_ngram import ByteNgramModel
from lmworks.evals.primed_xz import primed_xz_size

ORDER = 5


@dataclass(frozen=True)
class Baseline:
    """Bits a method spends on the held-out documents."""

    bits: float
    document_bits: tuple[float, ...] | None = None
    """Per document, where the method scores documents one by one; what an interval and a paired test need."""


def gzip_baseline(train: Sequence[bytes], heldout: Sequence[bytes]) -> Baseline:
    """Gzip -9 of the held-out documents end to end; the training text is not used."""
    return Baseline(8.0 * len(gzip.compress(b"".join(heldout), 9, mtime=0)))


def xz_baseline(train: Sequence[bytes], heldout: Sequence[bytes]) -> Baseline:
    """Xz -9e of training text and held-out documents, less xz -9e of the training text.

    Raises:
        EvalError: the compressor did not finish.
    """
    try:
        return Baseline(8.0 * primed_xz_size(b"".join(train), b"".join(heldout)))
    except OSError as error:
        raise EvalError(
            f"the xz baseline failed: {error}", "Lower `baseline_bytes`, or set `baselines: false`"
        ) from error


def order_n_baseline(train: Sequence[bytes], heldout: Sequence[bytes], order: int = ORDER) -> Baseline:
    """The order-n byte model; see `byte_ngram`."""
    bits = ByteNgramModel(train, order).bits(heldout)
    return Baseline(float(np.sum(bits)), tuple(bits.tolist()))


BASELINES: dict[str, Callable[[Sequence[bytes], Sequence[bytes]], Baseline]] = {
    "gzip -9": gzip_baseline,
    "xz -9e primed": xz_baseline,
    f"order-{ORDER}": order_n_baseline,
}
"""By the name in the results; each maps `(training documents, held-out documents)` to what the latter cost."""

NOTE = (
    "gzip -9 of the held-out documents end to end, untrained; what xz -9e adds for them after the training text; "
    f"an order-{ORDER} byte model (interpolated modified Kneser-Ney) that meets every document afresh."
)
"""The methods in a sentence, for the results."""


def within(documents: Sequence[bytes], budget: int) -> list[bytes]:
    """The first documents that fit into `budget` bytes together."""
    sizes = np.cumsum([len(document) for document in documents])
    return list(documents[: int(np.searchsorted(sizes, budget, side="right"))])
