"""The runners of `data prepare` on the same documents: local and Ray Data, one and two workers, in documents a second.

Each runs in a process that keeps its Ray for all rounds, because a cluster is there before the work is; how long Ray
takes to start is told apart, and a few documents that nobody measures go first. About five minutes. Rows compare Ray
with the local runner of as many workers (`overhead`), and two workers with one (`scaling`); all must write the same
bytes. Documents are of 3 kB with near-duplicates, the steps those of the preset `prose` with personal data replaced.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from interleaved import Contestant, answer_lines, arguments, finish, in_turn, row, running
from planted_text import documents

from lmworks.data.corpus.prepare import PrepareConfig, prepare
from lmworks.data.corpus.runner import RunnerConfig, runner_of

CONTESTANTS = [("local", 1), ("ray", 1), ("local", 2), ("ray", 2)]
WORDS_A_SENTENCE = 12
FILES = 16
"""Units of work: enough that two workers end nearly together."""
WARM_UP = 320
"""Documents that nobody measures."""


def case_of(folder: Path, count: int) -> dict[str, Any]:
    """Documents, as files that each become one unit."""
    folder /= str(count)
    folder.mkdir()
    texts = list(documents(count, seed=count))
    for number in range(FILES):
        with (folder / f"{number:02}.jsonl").open("w", encoding="utf-8") as sink:
            for text in texts[number::FILES]:
                words = text.split()
                parts = (words[n : n + WORDS_A_SENTENCE] for n in range(0, len(words), WORDS_A_SENTENCE))
                sink.write(json.dumps({"text": " ".join(f"The {' '.join(part)}." for part in parts)}) + "\n")
    return {"case": f"{count:,} documents", "folder": str(folder), "documents": count}


def answer(case: dict[str, Any], kind: str, workers: int) -> dict[str, Any]:
    """Prepare the case's files, and tell the seconds and the digests of what was written."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "corpus"
        files = sorted(Path(case["folder"]).glob("*.jsonl"))
        config = PrepareConfig(
            inputs=files, output=output, min_words=20, pii={}, runner={"kind": kind, "workers": workers}
        )
        began = time.perf_counter()
        manifest = prepare(config)
        seconds = time.perf_counter() - began
    digests = {name: digest for name, digest in manifest.files.items() if name.endswith(".jsonl")}
    return {"rate": case["documents"] / seconds, "digests": digests}


def work(kind: str, workers: int) -> None:
    """Be a contestant."""
    began = time.perf_counter()
    if kind == "ray":
        list(runner_of(RunnerConfig(kind=kind, workers=workers)).map(abs, [1, 2], "start"))
    started = time.perf_counter() - began
    answer_lines(lambda case: {**answer(case, kind, workers), "start": started})


def main() -> None:
    """Run and report."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--documents", type=int, help="how many")
    parser.add_argument("--work", nargs=2, metavar=("KIND", "WORKERS"), help="be a contestant")
    chosen = parser.parse_args()
    if chosen.work:
        work(chosen.work[0], int(chosen.work[1]))
        return
    count = chosen.documents or (2_000 if chosen.quick else 8_000)
    contestants = [
        Contestant(f"{kind} {workers}", [sys.executable, __file__, "--work", kind, str(workers)])
        for kind, workers in CONTESTANTS
    ]
    with tempfile.TemporaryDirectory() as folder:
        warm_up, case = (case_of(Path(folder), size) for size in (WARM_UP, count))
        with running(contestants):
            rounds = chosen.rounds or (1 if chosen.quick else 3)
            answers = in_turn(contestants, [case], rounds, warm_up=[warm_up])
    told = {name: answers[name, case["case"]] for name in (f"{kind} {workers}" for kind, workers in CONTESTANTS)}
    digests = {json.dumps(each["digests"], sort_keys=True) for rounds in told.values() for each in rounds}
    if len(digests) != 1:
        raise SystemExit(f"the runners wrote {len(digests)} different corpora")
    rates = {name: [float(each["rate"]) for each in rounds] for name, rounds in told.items()}
    rows = []
    for workers in (1, 2):
        local = rates[f"local {workers}"]
        made = row(
            f"{case['case']}, workers: {workers}", rates[f"ray {workers}"], "documents/s", {"local": local}, None
        )
        start = round(float(told[f"ray {workers}"][-1]["start"]), 1)
        rows.append(made | {"overhead": round(1 / made["ratio"] - 1, 3), "start_seconds": start, "same_bytes": True})
    for kind in ("local", "ray"):
        made = row(
            f"two workers against one, {kind}", rates[f"{kind} 2"], "documents/s", {"one": rates[f"{kind} 1"]}, None
        )
        rows.append(made | {"scaling": made["ratio"]})
    finish("data_ray", rows, save=chosen.save)


if __name__ == "__main__":
    main()
