"""Instruction data made of given rows through a generator, as an artifact with its lineage and its journal.

A run that is killed goes on with the same call: rounds that were finished and answers that were given are read from
the journal, and the rows are those that it would have made. Knows no engine and no HTTP.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lmworks.core.errors import DataError
from lmworks.core.generation import Generator
from lmworks.core.lineage import Manifest, content_hash, write_artifact
from lmworks.core.progress import bar
from lmworks.data.journal import Journal
from lmworks.data.rows.conversations import FILE
from lmworks.data.synthesis.asking import Answer
from lmworks.data.synthesis.config import INDECISIVE, SynthesizeConfig
from lmworks.data.synthesis.grade import check_references
from lmworks.data.synthesis.rounds import Rounds
from lmworks.data.synthesis.seeds import read_seeds

__all__ = ["OUTCOMES", "SynthesizeConfig", "synthesize"]

OUTCOMES = "outcomes.jsonl"
"""Attempts that gave no row, with their reasons."""
_NAMED = 20


def synthesize(
    config: SynthesizeConfig,
    generator: Generator | None = None,
    identity: str = "",
    made_by: Mapping[str, Path] | None = None,
) -> Manifest:
    """Make rows and publish them as an artifact that tuning reads, each with a field `lineage`.

    Args:
        config: all of it decides the rows, but for `concurrency` and `output`.
        generator: an engine, a client or a double; `eda` of rows with answers needs none.
        identity: name of the generator, such as a model's name and hash, for lineage and resumption.
        made_by: artifacts behind the generator, by their role; they become parents of this one.

    Raises:
        DataError: inputs give nothing to begin with or lack what a grader compares with, a round failed as a whole
            (what was made before is kept, and the same call goes on), or a journal of other settings is in the way.
    """
    seeds = read_seeds(config)
    for seed in seeds:
        check_references(seed.extra, config.graders)
    attempts = config.attempts or len(seeds)
    recorded = config.to_dict() | {"generator": identity}
    fields = [*(name for name in SynthesizeConfig.model_fields if name not in INDECISIVE), "generator"]
    decisive = {name: recorded[name] for name in fields} | {"inputs": [content_hash(path) for path in config.inputs]}
    with Journal(config.output.with_name(f".{config.output.name}.journal.jsonl"), decisive) as journal:
        rounds = Rounds(config, generator, identity, seeds, lambda name, answer: _keep(journal, name, answer))
        done = 0
        for entry in journal.entries:
            if "round" in entry:
                rounds.remember(entry["round"])
                done += len(entry["round"])
            else:
                rounds.answered(entry["request"], _read(entry["answer"]))
        with bar("attempts", attempts, done=done) as progress:
            while done < attempts and not rounds.enough:
                made = rounds.make(done, min(attempts, done + rounds.size))
                journal.append({"round": made})
                rounds.remember(made)
                done += len(made)
                progress.advance(len(made), f"{len(rounds.rows)} rows")
        manifest = _publish(config, recorded, rounds, made_by or {})
        journal.remove()
    return manifest


def _keep(journal: Journal, request: str, answer: Answer) -> None:
    journal.append({"request": request, "answer": asdict(answer)})


def _read(answer: dict[str, Any]) -> Answer:
    return Answer(**{**answer, "texts": tuple(answer["texts"]), "finished": tuple(answer["finished"])})


def _publish(config: SynthesizeConfig, recorded: dict[str, Any], run: Rounds, made_by: Mapping[str, Path]) -> Manifest:
    if not run.rows:
        told = ", ".join(f"{count} {status}" for status, count in run.statuses.most_common())
        first = f"; the first: {run.others[0].get('reason', '')}" if run.others else ""
        raise DataError(f"no attempt gave a row ({told}{first})", "Look at the inputs, the model and the thresholds")
    parents = {f"inputs[{number}]": path for number, path in enumerate(config.inputs)} | dict(made_by)
    with write_artifact(config.output, "conversations", config=recorded, parents=parents) as writer:
        for name, values in ((FILE, run.rows), (OUTCOMES, run.others)):
            lines = "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values)
            (writer.folder / name).write_text(lines, encoding="utf-8", errors="surrogatepass")
        writer.metrics.update(
            {"rows": len(run.rows), "attempts": sum(run.statuses.values()), **run.statuses, **run.cost}
        )
        failed = [one for one in run.others if one["status"] == "failed"]
        writer.notes["failed"] = [f"attempt {one['attempt']}: {one['reason']}" for one in failed[:_NAMED]]
    assert writer.manifest is not None, "the artifact is published"
    return writer.manifest
