"""A contestant: CTranslate2 with int8 weights.

python ctranslate2_worker.py FOLDER THREADS     # a converted model
"""

import json
import sys
import time
from pathlib import Path

import ctranslate2


class Model:
    """One loaded model."""

    def __init__(self, folder: str, threads: int) -> None:
        self.model = ctranslate2.Generator(folder, compute_type="int8", inter_threads=1, intra_threads=threads)
        self.words = json.loads(Path(folder, "vocabulary.json").read_text(encoding="utf-8"))

    def answer(self, case: dict) -> dict:
        """Prefill `batch` prompts of `prompt` tokens, then `tokens` more of each, greedily chosen."""
        prompts = [
            [self.words[100 + (7 * i + sequence) % 4000] for i in range(case["prompt"])]
            for sequence in range(case["batch"])
        ]
        begin = time.perf_counter()
        self._generate(prompts, 1)
        prefill = time.perf_counter() - begin
        begin = time.perf_counter()
        if case["tokens"]:
            self._generate(prompts, case["tokens"] + 1)
        return {"prefill_seconds": prefill, "seconds": max(time.perf_counter() - begin - prefill, 1e-9)}

    def _generate(self, prompts: list[list[str]], tokens: int) -> None:
        self.model.generate_batch(
            prompts, max_length=tokens, min_length=tokens, include_prompt_in_result=False, sampling_topk=1,
        )  # fmt: skip


def main() -> None:
    """Answer lines of JSON."""
    model = Model(sys.argv[1], int(sys.argv[2]))
    print("{}", flush=True)
    for line in sys.stdin:
        print(json.dumps(model.answer(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
