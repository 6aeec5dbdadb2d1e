"""Train versus serve: the trainer's forward pass and the engine's paged decode give the same probabilities."""

from __future__ import annotations

import torch

from lmworks.core.sampling import SamplingParams
from lmworks.engine import LLM, EngineConfig
from lmworks.models.transformer import Transformer
from lmworks.nn.attention_context import PackedContext
from lmworks.nn.batch import next_token_document, pack
from lmworks.proofs.row import Row
from lmworks.proofs.tiny import TINY, random_tokens, tiny_model

BOUND = 1e-4


def serving_rows(seed: int = 0) -> list[Row]:
    """The gap on tiny models whose engine has to chunk prompts, page its cache and batch unequal requests."""
    return [
        Row(
            f"train versus serve, {family}: max |Δ log-probability|",
            train_serve_gap(tiny_model(family, seed), [random_tokens(n, seed + n) for n in (5, 37, 64, 90)]),
            BOUND,
        )
        for family in TINY
    ]


@torch.no_grad()
def train_serve_gap(model: Transformer, prompts: list[list[int]], new_tokens: int = 24) -> float:
    """Largest |Δ log-probability|, in nats, over tokens that the engine sampled.

    Args:
        model: float32 weights.
        prompts: token ids.
        new_tokens: sampled per prompt.
    """
    config = EngineConfig(max_num_batched_tokens=32, block_size=8)
    llm = LLM(model, config=config)
    params = SamplingParams(temperature=1.0, seed=1, max_tokens=new_tokens, logprobs=0, ignore_eos=True)
    outputs = llm.generate(prompts, params)
    gap = 0.0
    documents = [[*p, *o.outputs[0].token_ids] for p, o in zip(prompts, outputs, strict=True)]
    batch = pack([next_token_document(d) for d in documents])
    hidden = model(batch.input_ids, batch.positions, PackedContext(batch.cu_seqlens))
    logprobs = model.logits(hidden).log_softmax(-1).gather(1, batch.targets[:, None]).squeeze(1)
    for start, prompt, output in zip(batch.cu_seqlens[:-1].tolist(), prompts, outputs, strict=True):
        served = output.outputs[0].logprobs
        assert served is not None
        first = start + len(prompt) - 1
        trained = logprobs[first : first + len(served)]
        gap = max(gap, float((trained - torch.tensor([s.logprob for s in served])).abs().max()))
    return gap
