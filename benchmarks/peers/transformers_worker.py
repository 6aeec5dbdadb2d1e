"""A contestant: transformers in bfloat16 with its dynamic cache.

python transformers_worker.py FOLDER THREADS
"""

import json
import sys
import time

import torch
from transformers import AutoModelForCausalLM


class Model:
    """One loaded model."""

    def __init__(self, folder: str, threads: int) -> None:
        torch.set_num_threads(threads)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()

    @torch.inference_mode()
    def answer(self, case: dict) -> dict:
        """Prefill `batch` prompts of `prompt` tokens, then decode `tokens` more of each, greedily chosen."""
        count, prompt, tokens = case["batch"], case["prompt"], case["tokens"]
        ids = (100 + (7 * torch.arange(prompt)[None] + torch.arange(count)[:, None]) % 4000).long()
        begin = time.perf_counter()
        output = self.model(ids, use_cache=True, logits_to_keep=1)
        prefill = time.perf_counter() - begin
        begin = time.perf_counter()
        for _ in range(tokens):
            ids = output.logits[:, -1].argmax(-1, keepdim=True)
            output = self.model(ids, past_key_values=output.past_key_values, use_cache=True)
        return {"prefill_seconds": prefill, "seconds": time.perf_counter() - begin}


def main() -> None:
    """Answer lines of JSON."""
    model = Model(sys.argv[1], int(sys.argv[2]))
    print("{}", flush=True)
    for line in sys.stdin:
        print(json.dumps(model.answer(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
