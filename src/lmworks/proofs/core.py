"""`lmworks prove core`: the promises that every stage rests on, measured in about a minute."""

from __future__ import annotations

import tempfile
from pathlib import Path

from lmworks.core.progress import say
from lmworks.proofs.gradients import gradient_rows
from lmworks.proofs.parity import PROMPTS, ChatModel, parity_rows
from lmworks.proofs.resume import resume_rows
from lmworks.proofs.row import Row
from lmworks.proofs.serving import serving_rows


def prove() -> list[Row]:
    """Measure every row.

    Raises:
        DownloadError: SmolLM2 is neither in the download cache nor to be had from a package index.
    """
    rows = []
    for title, measure in (
        ("train versus serve", serving_rows),
        ("parity", parity_rows),
        ("accumulation and packing", gradient_rows),
        ("resume", resume_rows),
        ("SmolLM2", _smollm2_rows),
    ):
        say(f"measuring {title} …")
        rows += measure()
    return rows


def _smollm2_rows() -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        return [ChatModel.fetch(Path(folder) / "smollm2").greedy_row(PROMPTS[:10])]
