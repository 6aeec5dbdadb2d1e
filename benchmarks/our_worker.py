"""A contestant: our engine, driven step by step as the server's loop drives it.

python our_worker.py MODEL THREADS     # weights as the file has them
"""

from __future__ import annotations

import sys
import time
from typing import Any

import torch
from interleaved import answer_lines

from lmworks.core.sampling import SamplingParams
from lmworks.engine.config import EngineConfig
from lmworks.engine.execution.packed_linear import PackedLinear
from lmworks.engine.llm_engine import LLMEngine
from lmworks.engine.process.opening import bytes_per_step
from lmworks.engine.request import Request
from lmworks.engine.weights.loading import load
from lmworks.kernels.machine import read_bandwidth, set_threads
from lmworks.models.accounting import cache_bytes, flops_per_token

PEAK_ROWS, PEAK_ROUNDS = 512, 8


def main() -> None:
    """Answer lines of JSON."""
    set_threads(int(sys.argv[2]))
    config = EngineConfig(
        quantization="none", max_num_seqs=64, max_num_batched_tokens=512, max_model_len=8192,
        enable_prefix_caching=False, kv_cache_memory_bytes=2**30,
    )  # fmt: skip
    engine = LLMEngine(*load(sys.argv[1], None, config), config)
    weights, kept = bytes_per_step(engine.model), cache_bytes(engine.model.config, engine.dtype).per_token
    number = 0

    def answer(case: dict[str, Any]) -> dict[str, float]:
        nonlocal number
        count, prompt, tokens = case["batch"], case["prompt"], case["tokens"]
        bandwidth, peak = read_bandwidth(), peak_rate(engine)
        params = SamplingParams(temperature=0, max_tokens=tokens + 1, ignore_eos=True)
        begin = time.perf_counter()
        for sequence in range(count):
            number += 1
            ids = tuple(100 + (7 * i + sequence) % 4000 for i in range(prompt))
            engine.add_request(Request(str(number), ids, params))
        waiting = count
        while waiting:
            waiting -= sum(delta.num_generated_tokens == 1 for delta in engine.step())
        prefill = time.perf_counter() - begin
        done = engine.stats().generation_tokens_total
        begin = time.perf_counter()
        while engine.has_unfinished:
            engine.step()
        seconds = time.perf_counter() - begin
        flops = flops_per_token(engine.model.config, prompt / 2)
        return {
            "prefill_seconds": prefill, "seconds": seconds,
            "tokens": engine.stats().generation_tokens_total - done,
            "bytes_per_step": weights + count * kept * (prompt + tokens / 2), "bandwidth": bandwidth,
            "prefill_flops": count * (prompt * (flops.total - flops.head) + flops.head), "peak_flops": peak,
        }  # fmt: skip

    answer_lines(answer)


@torch.inference_mode()
def peak_rate(engine: LLMEngine) -> float:
    """Operations a second of a product with a layer's largest weight and many rows: the best of a few, in caches."""
    head = engine.model.lm_head
    packed = (m for m in engine.model.modules() if isinstance(m, PackedLinear) and m is not head)
    linear = max(packed, key=lambda m: m.shape.numel())
    rows = torch.randn(PEAK_ROWS, linear.shape[1])
    fastest = float("inf")
    for _ in range(PEAK_ROUNDS):
        begin = time.perf_counter()
        linear(rows)
        fastest = min(fastest, time.perf_counter() - begin)
    return 2 * PEAK_ROWS * linear.shape.numel() / fastest


if __name__ == "__main__":
    main()
