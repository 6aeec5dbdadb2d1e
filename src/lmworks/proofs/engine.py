"""`lmworks prove engine`: an answer is the same bits in any company, well drawn, and leaves nothing behind.

On tiny random models, which suffice: what is shown is the order of sums, of draws and of bookkeeping, not of skill.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, get_args

import torch

from lmworks.core.generation import TokenLogprob
from lmworks.core.sampling import SamplingParams
from lmworks.engine import LLM, EngineConfig
from lmworks.engine.config import Quantization, SpeculativeConfig
from lmworks.engine.request import Request
from lmworks.models.transformer import Transformer
from lmworks.nn.attention_context import PackedContext
from lmworks.proofs.row import Row
from lmworks.proofs.tiny import TINY, random_tokens, tiny_model

PROMPTS = 50
NEW_TOKENS = 12
DRAWS = 10_000
CHI_SQUARE_P = 1e-4
"""One honest run in ten thousand falls below."""
REQUESTS = 300
"""Of the soak; the long one is a test."""

Weights = Literal["float32", "bfloat16", "int8", "int4"]

COMPANY: Mapping[str, Mapping[str, Any]] = {
    "in batches, prompts in chunks": {"max_num_seqs": 16, "max_num_batched_tokens": 48, "enable_prefix_caching": False},
    "preempted": {"max_num_seqs": 16, "num_kv_blocks": 14, "max_model_len": 96, "enable_prefix_caching": False},
    "with cached prefixes": {"max_num_seqs": 8, "block_size": 4},
    "guessed ahead": {
        "max_num_seqs": 8,
        "speculative_config": SpeculativeConfig(method="ngram", prompt_lookup_min=1, num_speculative_tokens=5),
    },
}
"""How the same requests are served otherwise than alone."""


def prove(seed: int = 0) -> list[Row]:
    """Measure every row.

    Args:
        seed: of models, prompts and draws.
    """
    rows = []
    for family in TINY:
        model = tiny_model(family, seed)
        rows.append(_modules_row(family, model, seed))
        rows += [row for weights in get_args(Weights) for row in _company_rows(family, model, weights, seed)]
        rows.append(_draws_row(family, model, seed))
    rows.append(_soak_row(tiny_model("llama", seed), seed))
    return rows


def _served(model: Transformer, weights: Weights, **limits: Any) -> LLM:
    quantization: Quantization = weights if weights in ("int8", "int4") else "none"
    dtype: Literal["float32", "bfloat16"] = "float32" if weights == "float32" else "bfloat16"
    return LLM(model, config=EngineConfig(dtype=dtype, quantization=quantization, **limits))


def _modules_row(family: str, model: Transformer, seed: int) -> Row:
    """The engine's log-probabilities of a prompt beside those of one forward pass through the modules."""
    prompt = random_tokens(60, seed)
    params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0)
    got = _served(model, "float32").generate([prompt], params)[0].prompt_logprobs or ()
    with torch.inference_mode():
        context = PackedContext(torch.tensor([0, len(prompt)], dtype=torch.int32))
        expected = model.logits(model(torch.tensor(prompt), torch.arange(len(prompt)), context)).log_softmax(-1)
    gaps = [abs(entry.logprob - expected[place, entry.token_id].item()) for place, entry in enumerate(got[1:]) if entry]
    return Row(f"{family}: log-probabilities of the native program less those of the modules", max(gaps), 1e-4)


def _company_rows(family: str, model: Transformer, weights: Weights, seed: int) -> Iterator[Row]:
    requests = _requests(model.config.vocab_size, seed)
    alone = _answers(model, weights, requests, {"max_num_seqs": 1, "enable_prefix_caching": False})
    for company, limits in COMPANY.items():
        together = _answers(model, weights, requests, limits)
        differing = sum(one != other for one, other in zip(alone, together, strict=True))
        yield Row(
            f"{family}, {weights}: answers that differ {company}", differing, 0, note=f"of {PROMPTS}, bit for bit"
        )


def _requests(vocabulary: int, seed: int) -> list[tuple[tuple[int, ...], SamplingParams]]:
    """Prompts of all lengths, some beginning alike, some repeating themselves; greedy and drawn."""
    draw = random.Random(seed)
    shared = [draw.randrange(vocabulary) for _ in range(24)]
    requests = []
    for number in range(PROMPTS):
        own = [draw.randrange(vocabulary) for _ in range(draw.randrange(1, 40))]
        prompt = (shared + own, own * 2, own)[number % 3]
        params = SamplingParams(
            temperature=float(number % 2), top_p=0.95, seed=number, max_tokens=NEW_TOKENS, logprobs=3, ignore_eos=True
        )
        requests.append((tuple(prompt), params))
    return requests


def _answers(
    model: Transformer, weights: Weights, requests: Sequence[tuple[tuple[int, ...], SamplingParams]],
    limits: Mapping[str, Any],
) -> list[tuple[tuple[int, ...], tuple[TokenLogprob, ...] | None]]:  # fmt: skip
    llm = _served(model, weights, **limits)
    prompts, params = [list(column) for column in zip(*requests, strict=True)]
    outputs = llm.generate(prompts, params)
    llm.engine.check_integrity()
    return [(o.outputs[0].token_ids, o.outputs[0].logprobs) for o in outputs]


def _draws_row(family: str, model: Transformer, seed: int) -> Row:
    """First tokens of many completions of one prompt against the distribution that the modules give."""
    prompt = random_tokens(20, seed)
    llm = _served(model, "float32", max_num_seqs=64)
    params = [SamplingParams(temperature=0.8, max_tokens=1, seed=number, n=50) for number in range(DRAWS // 50)]
    outputs = llm.generate([prompt] * len(params), params)
    drawn = Counter(c.token_ids[0] for o in outputs for c in o.outputs)
    with torch.inference_mode():
        context = PackedContext(torch.tensor([0, len(prompt)], dtype=torch.int32))
        hidden = model(torch.tensor(prompt), torch.arange(len(prompt)), context)
        expected = (model.logits(hidden)[-1].double() / 0.8).softmax(-1) * DRAWS
    # Rare tokens share a class: the statistic's distribution is right only where some five are expected.
    often = [token for token in range(len(expected)) if expected[token] >= 5]
    classes = [(drawn[token], expected[token].item()) for token in often]
    classes.append((DRAWS - sum(n for n, _ in classes), DRAWS - sum(e for _, e in classes)))
    statistic = sum((n - e) ** 2 / e for n, e in classes if e > 0)
    half_freedom, half_statistic = torch.tensor([(len(classes) - 1) / 2, statistic / 2], dtype=torch.float64)
    p = torch.special.gammaincc(half_freedom, half_statistic).item()
    return Row(f"{family}: probability of so uneven draws", p, CHI_SQUARE_P, ">=", note=f"chi-square, {DRAWS:,} draws")


def _soak_row(model: Transformer, seed: int) -> Row:
    """Requests of all kinds, many of them cut off: blocks, sequences and requests that are left in the end."""
    draw = random.Random(seed)
    config = EngineConfig(
        quantization="int8", max_num_seqs=8, max_num_batched_tokens=64, num_kv_blocks=60, block_size=4
    )
    engine = LLM(model, config=config).engine
    live: list[str] = []
    for number in range(REQUESTS):
        prompt = tuple(draw.randrange(131) for _ in range(draw.randrange(1, 60)))
        params = SamplingParams(
            n=draw.choice([1, 1, 3]), temperature=draw.choice([0.0, 1.0]), max_tokens=draw.randrange(1, 30),
            prompt_logprobs=draw.choice([None, None, 1]), repetition_penalty=draw.choice([1.0, 1.3]),
        )  # fmt: skip
        live.append(str(number))
        engine.add_request(Request(str(number), prompt, params, priority=draw.randrange(3)))
        for _ in range(draw.randrange(3)):
            engine.step()
        if draw.random() < 0.3:
            engine.abort(live.pop(draw.randrange(len(live))))
    while engine.has_unfinished:
        engine.step()
    engine.check_integrity()
    stats = engine.stats()
    held = round(stats.kv_cache_usage * engine.blocks.num_blocks)
    left = held + stats.num_requests_running + stats.num_requests_waiting
    return Row("blocks and requests left after a soak", left, 0, note=f"{REQUESTS} requests, a third cut off")
