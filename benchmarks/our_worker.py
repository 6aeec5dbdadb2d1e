"""A contestant: our engine, driven step by step as the server's loop drives it.

python our_worker.py MODEL QUANTIZATION THREADS
"""

from __future__ import annotations

import sys
import time
from typing import Any

from interleaved import answer_lines

from lmworks.core.sampling import SamplingParams
from lmworks.engine.config import EngineConfig, Quantization
from lmworks.engine.llm_engine import LLMEngine
from lmworks.engine.loading import load
from lmworks.engine.request import Request
from lmworks.kernels.machine import read_bandwidth, set_threads
from lmworks.models.accounting import weight_bytes_read  # noqa: F401  # see `answer`


def main() -> None:
    """Answer lines of JSON."""
    quantization: Quantization = sys.argv[2]  # type: ignore[assignment]
    set_threads(int(sys.argv[3]))
    config = EngineConfig(
        quantization=quantization, max_num_seqs=64, max_num_batched_tokens=512, max_model_len=8192,
        enable_prefix_caching=False, kv_cache_memory_bytes=2**30,
    )  # fmt: skip
    engine = LLMEngine(*load(sys.argv[1], None, config), config)
    number = 0

    def answer(case: dict[str, Any]) -> dict[str, float]:
        nonlocal number
        count, prompt, tokens = case["batch"], case["prompt"], case["tokens"]
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
        decoded = engine.stats().generation_tokens_total - done
        return {"prefill_seconds": prefill, "seconds": seconds, "tokens": decoded, "bandwidth": read_bandwidth()}

    answer_lines(answer)


if __name__ == "__main__":
    main()
