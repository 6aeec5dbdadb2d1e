"""`lmworks prove checkpoints`: published weights do here what they do in their reference libraries.

SmolLM2-135M-Instruct beside `transformers`, all-MiniLM-L6-v2 beside `sentence-transformers`. Both models and the text
come from the catalog of `lmworks data fetch`. Tiny random models cannot show what only trained ones do: activations
that grow, token ids that matter, files as their authors wrote them.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lmworks.core.errors import require
from lmworks.core.progress import say
from lmworks.data.acquisition.fetch import FetchConfig, fetch
from lmworks.engine import LLM
from lmworks.engine.pooling.embedder import Embedder
from lmworks.proofs.parity import PROMPTS, ChatModel
from lmworks.proofs.row import Row
from lmworks.tokenization import load_tokenizer

ARTICLES = 20
"""Introductions of Wikipedia articles that are read as one text, and embedded one by one."""
SENTENCES = (
    "a",
    "Rain.",
    "The cat sat on the mat.",
    "A cat is sitting on a rug.",
    "Dogs make loyal companions.",
    "The stock market fell sharply on Monday.",
    "Shares dropped at the start of the week.",
    "How do I reset my password?",
    "I forgot my login, what now?",
    "Photosynthesis turns light into chemical energy.",
    "Plants grow toward the sun.",
    "DON'T SHOUT AT ME!!!",
    "e = mc^2 and 3.14159 < 22/7",
    "def add(a, b):\n    return a + b",
    "tabs\tand\nnew lines\r\n  and   spaces",
    "C++, C#, and F# are programming languages; so is Python 3.11.",
    "https://example.org/path?query=1&other=two#part",
    "naïve café déjà vu – “quoted” — ‘text’…",
    "Die Straßenbahn fährt über die Brücke nach Köln.",
    "Le train part à huit heures de la gare du Nord.",
    "¿Cuántos años tienes? ¡Qué sorpresa!",
    "Żółw wszedł na źdźbło trawy.",
    "Kırmızı ışıkta İSTANBUL'da durduk.",
    "Москва является столицей России.",
    "Η Αθήνα είναι η πρωτεύουσα της Ελλάδας.",
    "القاهرة هي عاصمة مصر.",
    "ירושלים היא עיר עתיקה.",
    "नई दिल्ली भारत की राजधानी है।",
    "ภาษาไทยไม่มีช่องว่างระหว่างคำ",
    "日本語の文章には空白がありません。",
    "今天天气很好,我们去公园吧。",
    "서울은 대한민국의 수도이다.",
    "Emoji: 🙂🚀 and a family 👨‍👩‍👧",
    "Zero\u200bwidth, no-break\u00a0space, combining e\u0301, ligature \ufb01sh, ＦＵＬＬ　ＷＩＤＴＨ",
    "Pneumonoultramicroscopicsilicovolcanoconiosis" * 3,
    "long " * 400,
)


def prove() -> list[Row]:
    """Measure every row.

    Raises:
        DownloadError: a model or the text is neither in the download cache nor to be had from a package index.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        fetch(FetchConfig(name="wikipedia-intros", output=folder / "text", limit=ARTICLES))
        lines = (folder / "text" / "documents.jsonl").read_text(encoding="utf-8").splitlines()
        articles = [json.loads(line)["text"] for line in lines]
        say("measuring SmolLM2 …")
        rows = _smollm2_rows(ChatModel.fetch(folder / "smollm2"), "\n\n".join(articles))
        say("measuring MiniLM …")
        fetch(FetchConfig(name="minilm-l6", output=folder / "minilm"))
        return rows + _minilm_rows(folder / "minilm", [*SENTENCES, *articles])


def _smollm2_rows(model: ChatModel, text: str) -> list[Row]:
    ids = model.tokenizer.encode(text)
    ours, theirs = perplexities(model, ids)
    note = f"{ours:.4f} of {len(ids):,} tokens of Wikipedia"
    gap = abs(ours / theirs - 1)
    return [model.greedy_row(PROMPTS), Row("SmolLM2: relative gap of perplexity", gap, 1e-3, note=note)]


@torch.no_grad()
def perplexities(model: ChatModel, ids: Sequence[int]) -> tuple[float, float]:
    """Of all tokens but the first as one document: by the engine's scorer, and by the reference's own loss."""
    (scored,) = LLM(model.ours).loglikelihood_tokens([(ids[:1], ids[1:])])
    row = torch.tensor([list(ids)])
    loss = model.theirs(input_ids=row, labels=row).loss
    return math.exp(-scored.logprob / (len(ids) - 1)), math.exp(float(loss))


def _minilm_rows(folder: Path, texts: Sequence[str]) -> list[Row]:
    require("sentence_transformers", "test")
    library: Any = import_module("sentence_transformers")
    theirs = library.SentenceTransformer(str(folder), device="cpu")
    ours = Embedder.load(folder, load_tokenizer(folder).encode_batch)
    differing = sum(our_ids(ours, text) != their_ids(theirs, text) for text in texts)
    note = "special tokens that a text spells out are plain text here, and would be special tokens there"
    wanted = torch.tensor(theirs.encode(list(texts), show_progress_bar=False))
    return [
        Row(f"MiniLM: texts of {len(texts)} with other token ids", differing, 0, note=note),
        *vector_rows(torch.tensor(ours.embed(texts)), wanted),
    ]


def our_ids(embedder: Embedder, text: str) -> list[int]:
    """What the embedder's model reads."""
    return embedder.surround(embedder.encode([text])[0])


def their_ids(model: Any, text: str) -> list[int]:
    """What the reference's model reads."""
    ids: list[int] = model.tokenizer(text, truncation=True, max_length=model.max_seq_length)["input_ids"]
    return ids


def vector_rows(ours: Tensor, theirs: Tensor) -> list[Row]:
    """Vectors [D, E] of the same texts on both sides: how alike they are, and which are neighbors."""
    distance = 1 - torch.nn.functional.cosine_similarity(ours.double(), theirs.double()).min()
    differing = (_neighbors(ours) != _neighbors(theirs)).sum()
    return [
        Row(f"MiniLM: max 1 - cosine of {len(ours)} texts with sentence-transformers", float(distance), 1e-4),
        Row(f"MiniLM: texts of {len(ours)} with another nearest neighbor", int(differing), 0),
    ]


def _neighbors(vectors: Tensor) -> Tensor:
    """For each text, which other one is nearest."""
    unit = torch.nn.functional.normalize(vectors, dim=-1)
    return (unit @ unit.T).fill_diagonal_(-1).argmax(-1)
