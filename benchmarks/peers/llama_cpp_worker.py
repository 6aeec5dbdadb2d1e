"""A contestant: llama.cpp through its own C interface, as llama-cpp-python exposes it.

python llama_cpp_worker.py MODEL.gguf THREADS
"""

import json
import sys
import time

import llama_cpp as llama

CONTEXT, BATCH, UBATCH, SEQUENCES = 16_384, 4_096, 512, 64


class Model:
    """One loaded model."""

    def __init__(self, path: str, threads: int) -> None:
        llama.llama_backend_init()
        self.model = llama.llama_model_load_from_file(path.encode(), llama.llama_model_default_params())
        params = llama.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch, params.n_seq_max = CONTEXT, BATCH, UBATCH, SEQUENCES
        params.n_threads = params.n_threads_batch = threads
        params.kv_unified = True
        self.context = llama.llama_init_from_model(self.model, params)
        self.batch = llama.llama_batch_init(BATCH, 0, SEQUENCES)

    def decode(self, items: list[tuple[int, int, int, bool]]) -> None:
        """Compute tokens given as (id, position, sequence, whether logits are wanted)."""
        self.batch.n_tokens = len(items)
        for i, (token, position, sequence, logits) in enumerate(items):
            self.batch.token[i], self.batch.pos[i] = token, position
            self.batch.n_seq_id[i], self.batch.seq_id[i][0], self.batch.logits[i] = 1, sequence, logits
        if llama.llama_decode(self.context, self.batch):
            raise RuntimeError("llama_decode failed")

    def answer(self, case: dict) -> dict:
        """Prefill `batch` prompts of `prompt` tokens, then decode `tokens` more of each, greedily chosen."""
        count, prompt, tokens = case["batch"], case["prompt"], case["tokens"]
        llama.llama_memory_clear(llama.llama_get_memory(self.context), True)
        begin = time.perf_counter()
        for sequence in range(count):
            self.decode([(100 + (7 * i + sequence) % 4000, i, sequence, i == prompt - 1) for i in range(prompt)])
        llama.llama_synchronize(self.context)
        prefill = time.perf_counter() - begin
        sampler = llama.llama_sampler_init_greedy()
        begin = time.perf_counter()
        ids = [100 + sequence for sequence in range(count)]
        for step in range(tokens):
            self.decode([(ids[sequence], prompt + step, sequence, True) for sequence in range(count)])
            ids = [llama.llama_sampler_sample(sampler, self.context, i) for i in range(count)]
        llama.llama_synchronize(self.context)
        return {"prefill_seconds": prefill, "seconds": time.perf_counter() - begin}


def main() -> None:
    """Answer lines of JSON."""
    model = Model(sys.argv[1], int(sys.argv[2]))
    print("{}", flush=True)
    for line in sys.stdin:
        print(json.dumps(model.answer(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
