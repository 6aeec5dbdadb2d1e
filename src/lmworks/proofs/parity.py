"""The same weights in `transformers` and here: logits and greedy continuations."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from lmworks.core.errors import require
from lmworks.core.messages import Message
from lmworks.core.sampling import SamplingParams
from lmworks.engine import LLM
from lmworks.models.hub import load_pretrained, save_pretrained
from lmworks.models.transformer import Transformer
from lmworks.nn.attention_context import PackedContext
from lmworks.proofs.row import Row
from lmworks.proofs.tiny import TINY, random_tokens, tiny_model
from lmworks.tokenization import load_tokenizer

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
)


def parity_rows(seed: int = 0) -> list[Row]:
    """Logits and greedy tokens of tiny random models of each family, saved here and read by `transformers`."""
    rows = []
    for family in TINY:
        model = tiny_model(family, seed)
        with tempfile.TemporaryDirectory() as folder:
            save_pretrained(model, Path(folder))
            reference = _reference(folder)
        prompts = [random_tokens(length, seed + length) for length in (40, 7, 19)]
        gap = max(_logit_gap(model, reference, prompt) for prompt in prompts)
        rows.append(Row(f"parity with transformers, {family}: max |Δ logit|", gap, 1e-5))
        differing = _differing(model, reference, prompts)
        rows.append(Row(f"parity with transformers, {family}: greedy continuations that differ", differing, 0))
    return rows


def chat_model_rows(gguf: Path) -> list[Row]:
    """Greedy answers of a real chat model, read from its GGUF file by both sides.

    Args:
        gguf: SmolLM2-135M-Instruct.
    """
    tokenizer = load_tokenizer(gguf)
    prompts = [
        tokenizer.encode_chat([Message(role="user", content=p)], add_generation_prompt=True).token_ids for p in PROMPTS
    ]
    reference = _reference(str(gguf.parent), gguf_file=gguf.name)
    differing = _differing(load_pretrained(gguf, dtype=torch.float32), reference, prompts)
    return [Row(f"SmolLM2: greedy answers of {len(prompts)} that differ from transformers", differing, 0)]


def _reference(folder: str, **options: Any) -> Any:
    """The model as `transformers` loads it, float32, without asking any hub."""
    require("transformers", "test")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    transformers: Any = import_module("transformers")
    transformers.utils.logging.disable_progress_bar()
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options).eval()


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
