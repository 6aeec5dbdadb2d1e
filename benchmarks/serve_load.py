"""A server under load: tokens a second and waiting times, with 8-bit weights from the file that llama.cpp reads.

vLLM's CPU build has no such weights: it is met apart, both sides in bfloat16. Prompts of token ids, answers of a fixed
length, greedily chosen and streamed. The client runs on the same machine and takes its share of the processor from
every server alike.

    python benchmarks/serve_load.py [--quick] [--save] [--beside vllm] [--model FILE.gguf]
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from typing import Any

from checkpoints import Checkpoints
from interleaved import arguments, finish, in_turn, row, running
from servers import STREAMS, Server, llama_server, our_server, vllm_server

PROMPT, QUICK_PROMPT, TAIL = 256, 48, 32
"""Tokens of a prompt, and of those its own where prefixes are shared."""
MEASURES = (
    ("tokens_per_second", "tokens/s", False),
    ("ttft_p50", "ms to first token, p50", True),
    ("ttft_p95", "ms to first token, p95", True),
    ("itl_p50", "ms between tokens, p50", True),
)


def cases(*, quick: bool) -> list[dict[str, Any]]:
    """Closed loops of 1, 16 and 64 streams, and requests that arrive by themselves; prefixes shared and not."""
    prompt, tokens = (QUICK_PROMPT, 8) if quick else (PROMPT, 64)
    made: list[dict[str, Any]] = []
    for prefix, shared in (("distinct", 0), ("shared", prompt - TAIL)):
        same = {"prompt": prompt, "shared": shared, "tokens": tokens}
        for streams in (1, 4, 16) if quick else (1, 16, STREAMS):
            requests = max(streams, 4)
            name = f"{streams} streams, {prefix} prefixes"
            made.append({"case": name, "streams": streams, "requests": requests, "rate": 0, **same})
        for rate in (2, 6):
            name = f"Poisson {rate}/s, {prefix} prefixes"
            made.append({"case": name, "streams": 0, "requests": rate * (1 if quick else 10), "rate": rate, **same})
    return made


def measure(servers: Sequence[Server], given: list[dict[str, Any]], rounds: int) -> Iterator[dict[str, Any]]:
    """A row for every case and measure, the first server being ours."""
    with running(servers):
        answers = in_turn(servers, given, rounds, warm_up=given[:1])
    for case in given:
        by_server = {server.name: answers[server.name, case["case"]] for server in servers}
        own, *peers = by_server
        for key, unit, less_is_better in MEASURES:
            values = {name: [answer[key] for answer in found] for name, found in by_server.items()}
            theirs = {name: values[name] for name in peers if statistics.median(values[name])}
            told = row(case["case"], values[own], unit, theirs, None, less_is_better=less_is_better)
            yield told | {
                "errors": sum(len(answer["faults"]) for answer in by_server[own]),
                "peer_errors": {name: sum(len(answer["faults"]) for answer in by_server[name]) for name in peers},
            }


def main() -> None:
    """Measure, show, and print the report as one line of JSON."""
    parser = arguments(__doc__.split("\n")[0])
    parser.add_argument("--beside", choices=("llama.cpp", "vllm"), default="llama.cpp", help="the peer")
    options = parser.parse_args()
    checkpoints = Checkpoints(options.model)
    if options.beside == "vllm":
        folder = checkpoints.folder()
        servers = [our_server(folder, "--engine.dtype", "bfloat16"), vllm_server(folder)]
    else:
        file = checkpoints.gguf("Q8_0")
        servers = [our_server(file), llama_server(file, threads=2)]
    rounds = options.rounds or (1 if options.quick else 5)
    name = "serve_load" if options.beside == "llama.cpp" else f"serve_load_{options.beside}"
    finish(name, list(measure(servers, cases(quick=options.quick), rounds)), save=options.save)


if __name__ == "__main__":
    main()
