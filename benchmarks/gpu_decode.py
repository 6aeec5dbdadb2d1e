"""Decoding on a GPU: tokens a second of a random model of Qwen3-0.6B's shape in bfloat16, against the memory's limit.

    python benchmarks/gpu_decode.py [--quick] [--save] [--layers 28] [--device cuda]

Ours and transformers (dynamic cache, scaled dot-product attention) hold the same weights in one process and take
turns. The memory's bandwidth is probed before every case: the best of reading a large tensor and of copying it.
`--device cpu` tries the script where there is no GPU. Knows nothing of quality.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import torch
from interleaved import finish, row

from lmworks.core.sampling import SamplingParams
from lmworks.engine.config import EngineConfig
from lmworks.engine.llm_engine import LLMEngine
from lmworks.engine.process.opening import bytes_per_step
from lmworks.engine.request import Request
from lmworks.engine.weights.loading import load_weights
from lmworks.models.accounting import cache_bytes

BATCHES, PROMPT, MOST, VOCABULARY = (1, 64), 128, 512, 151_936
PROBE_NUMBERS = 2**30
"""bfloat16: 2 GiB, far beyond every cache."""
WARM_UPS = 3
"""Runs of each case that are not counted: kernels are compiled, steps recorded."""


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def device_name(device: torch.device) -> str:
    """Of the GPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def timed(device: torch.device, call: Callable[[], object]) -> float:
    """Seconds of a call and of what it left to the device."""
    synchronize(device)
    begin = time.perf_counter()
    call()
    synchronize(device)
    return time.perf_counter() - begin


def bandwidth(device: torch.device, numbers: int) -> float:
    """Bytes a second between the device and its memory."""
    source = torch.ones(numbers, dtype=torch.bfloat16, device=device)
    target = torch.empty_like(source)
    read = min(timed(device, lambda: source.view(torch.int32).amax()) for _ in range(8))
    copied = min(timed(device, lambda: target.copy_(source)) for _ in range(8))
    return max(2 * numbers / read, 4 * numbers / copied)


def make_model(layers: int, folder: Path) -> None:
    """Write the random model."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=VOCABULARY, hidden_size=1024, intermediate_size=3072, num_hidden_layers=layers,
        num_attention_heads=16, num_key_value_heads=8, head_dim=128, max_position_embeddings=4096,
        tie_word_embeddings=True, dtype=torch.bfloat16,
    )  # fmt: skip
    Qwen3ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)


class Ours:
    """The engine, driven step by step."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        config = EngineConfig(
            device=device.type, dtype="bfloat16", quantization="none", max_num_seqs=max(BATCHES), max_model_len=MOST,
            max_num_batched_tokens=8192, enable_prefix_caching=False, num_kv_blocks=max(BATCHES) * MOST // 16,
        )  # fmt: skip
        self.engine = LLMEngine(load_weights(folder, config, torch.bfloat16), None, config)
        self._numbers = count()

    def decode(self, batch: int, tokens: int) -> Callable[[], None]:
        """Compute prompts, and give what decodes the tokens that follow."""
        params = SamplingParams(temperature=0, max_tokens=tokens + 1, ignore_eos=True)
        for row_number in range(batch):
            prompt = tuple((7 * i + row_number) % VOCABULARY for i in range(PROMPT))
            self.engine.add_request(Request(str(next(self._numbers)), prompt, params))
        waiting = batch
        while waiting:
            waiting -= sum(delta.num_generated_tokens == 1 for delta in self.engine.step())

        def run() -> None:
            while self.engine.has_unfinished:
                self.engine.step()

        return run


class Theirs:
    """The model of transformers."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        from transformers import AutoModelForCausalLM

        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).to(device).eval()

    @torch.inference_mode()
    def decode(self, batch: int, tokens: int) -> Callable[[], None]:
        """As `Ours.decode`."""
        places = torch.arange(PROMPT, device=self.model.device)[None] * 7
        ids = (places + torch.arange(batch, device=self.model.device)[:, None]) % VOCABULARY
        output = self.model(ids, use_cache=True, logits_to_keep=1)

        @torch.inference_mode()
        def run() -> None:
            nonlocal output
            for _ in range(tokens):
                ids = output.logits[:, -1].argmax(-1, keepdim=True)
                output = self.model(ids, past_key_values=output.past_key_values, use_cache=True)

        return run


def measure(options: argparse.Namespace, tokens: int, rounds: int) -> Iterator[dict[str, Any]]:
    """A row for each batch."""
    device = torch.device(options.device)
    with tempfile.TemporaryDirectory() as folder:
        make_model(options.layers, Path(folder))
        ours, theirs = Ours(Path(folder), device), Theirs(Path(folder), device)
    engine = ours.engine
    weights, kept = bytes_per_step(engine.model), cache_bytes(engine.model.config, engine.dtype).per_token
    for batch in BATCHES:
        probed = bandwidth(device, PROBE_NUMBERS if device.type == "cuda" else PROBE_NUMBERS // 16)
        seconds: dict[str, list[float]] = {"ours": [], "transformers": []}
        for turn in range(WARM_UPS + rounds):
            for name, contestant in (("ours", ours), ("transformers", theirs)):
                took = timed(device, contestant.decode(batch, tokens))
                if turn >= WARM_UPS:
                    seconds[name].append(took)
                gc.collect()
        rates = {name: [batch * tokens / s for s in taken] for name, taken in seconds.items()}
        least = (weights + batch * kept * (PROMPT + tokens / 2)) / probed
        share = least * tokens / statistics.median(seconds["ours"])
        told = row(f"decode, batch {batch}", rates["ours"], "tokens/s", {"transformers": rates["transformers"]}, share)
        yield told | {"bandwidth_gb": round(probed / 1e9), "device": device_name(device)}


def main() -> None:
    """Measure, show, and print the report as one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few rounds, under a minute")
    parser.add_argument("--save", action="store_true", help="keep the result in results/")
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("PyTorch sees no GPU; --device cpu tries the script without one")
    tokens, rounds = (64, 2) if options.quick else (256, 7)
    finish("gpu_decode", list(measure(options, tokens, rounds)), save=options.save)


if __name__ == "__main__":
    main()
