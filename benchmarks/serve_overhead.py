"""What HTTP costs: the same requests, all at once, given to the engine directly and through our server.

The server tokenizes nothing here (prompts are ids) but makes text of every token; its client works on the same cores.

    python benchmarks/serve_overhead.py [--quick] [--save] [--model FILE.gguf]
"""

from __future__ import annotations

from checkpoints import Checkpoints
from contestants import ours
from interleaved import arguments, finish, in_turn, row, running
from servers import our_server

STREAMS, PROMPT = 16, 64
DIRECT = "the engine called directly"


def main() -> None:
    """Measure, show, and print the report as one line of JSON."""
    options = arguments(__doc__.split("\n")[0]).parse_args()
    tokens, rounds = (16, 1) if options.quick else (128, 9)
    file = Checkpoints(options.model).gguf("Q8_0")
    engine, server = ours(DIRECT, file, threads=2), our_server(file, "--engine.no-enable-prefix-caching")
    case = {"case": f"{STREAMS} streams", "batch": STREAMS, "streams": STREAMS, "requests": STREAMS, "rate": 0,
            "prompt": PROMPT, "shared": 0, "tokens": tokens}  # fmt: skip
    with running([engine, server]):
        answers = in_turn([engine, server], [case], options.rounds or rounds)
    direct = [
        STREAMS * (tokens + 1) / (answer["prefill_seconds"] + answer["seconds"])
        for answer in answers[DIRECT, case["case"]]
    ]
    served = answers[server.name, case["case"]]
    rates = [answer["tokens_per_second"] for answer in served]
    told = row(case["case"], rates, "tokens/s", {DIRECT: direct}, None)
    errors = sum(len(answer["faults"]) for answer in served)
    finish("serve_overhead", [told | {"share_lost": round(1 - told["ours"] / told["theirs"], 3), "errors": errors}],
           save=options.save)  # fmt: skip


if __name__ == "__main__":
    main()
