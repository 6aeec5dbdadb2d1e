"""Instruction data made of given rows through a generator: drafts, novelty, answers, grades, lineage.

Attempts are numbered and made in rounds; what a round shows the generator is a pure function of the seed, the
attempts' numbers and the rounds before, so that a run resumed after a kill makes the same rows. Every attempt ends
with a status, and what gave no row is kept beside the rows with its reason. Knows no engine and no HTTP.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Annotated, Any

from pydantic import Field

from lmworks.core.config import Config
from lmworks.core.errors import DataError
from lmworks.core.generation import Generator
from lmworks.core.lineage import Manifest, content_hash, write_artifact
from lmworks.core.messages import Message
from lmworks.core.progress import bar
from lmworks.core.sampling import SamplingParams
from lmworks.data.identity import row_id
from lmworks.data.rows.conversations import FILE
from lmworks.data.rows.layouts import write_row
from lmworks.data.rows.load import load_rows
from lmworks.data.rows.values import CompletionRow, Content, LabeledRow, PromptRow, Row, RowFault, TextRow
from lmworks.data.synthesis.asking import Answer, Failure, ask
from lmworks.data.synthesis.eda import EdaConfig
from lmworks.data.synthesis.grade import Candidate, GraderConfig, Verdict, best, grade
from lmworks.data.synthesis.journal import Journal
from lmworks.data.synthesis.methods import METHODS, Draft, MethodName, Seed, read_instruction
from lmworks.data.synthesis.novelty import NoveltyConfig, Pool

OUTCOMES = "outcomes.jsonl"
"""Attempts that gave no row, with their reasons."""
_NAMED = 20


class SynthesizeConfig(Config):
    """What is made, of what and how."""

    method: MethodName
    inputs: tuple[Path, ...]
    """Files of rows: prompts with or without answers, or `text` for back-translation."""
    output: Path
    """Folder of the artifact, readable by tuning."""
    num_rows: Annotated[int | None, Field(ge=1)] = None
    """Stop at so many new rows; None makes all attempts."""
    attempts: Annotated[int | None, Field(ge=1)] = None
    """At most so many; None is one for each input row."""
    seed: int = 0
    round_size: Annotated[int, Field(ge=1)] = 32
    """Attempts made together. What one of them gives is an example to the next round's, not to its own."""
    concurrency: Annotated[int, Field(ge=1)] = 1
    """Calls at a time: 1 for an engine, which batches a round by itself, more for a generator over the network."""
    instruction_sampling: SamplingParams = SamplingParams(temperature=0.8, max_tokens=256)
    response_sampling: SamplingParams = SamplingParams(temperature=0.7, max_tokens=1024)
    """`n` candidates of each answer; the best of those that all graders call good stays."""
    graders: tuple[GraderConfig, ...] = ()
    novelty: NoveltyConfig = NoveltyConfig()
    """Of a new instruction beside the inputs' and the other new ones."""
    eda: EdaConfig = EdaConfig()


@dataclass
class _Attempt:
    """One attempt on its way; `status` is empty while nothing ended it."""

    number: int
    draft: Draft
    instruction: str
    response: str = ""
    status: str = ""
    reason: str = ""
    verdicts: tuple[Verdict, ...] = ()
    generated: bool = False
    """Whether the response is new, not a parent's."""

    def end(self, status: str, reason: str) -> None:
        self.status, self.reason = status, reason


def synthesize(config: SynthesizeConfig, generator: Generator | None = None, identity: str = "") -> Manifest:
    """Make rows and publish them as an artifact that tuning reads, each with a field `lineage`.

    Args:
        config: all of it decides the rows, but for `concurrency` and `output`.
        generator: an engine, a client or a double; `eda` of rows with answers needs none.
        identity: name of the generator, such as a model's path and hash, for lineage and resumption.

    Raises:
        DataError: inputs give nothing to begin with, a round failed as a whole (what was made before is kept, and
            the same call goes on), or a journal of other settings is in the way.
    """
    seeds = read_seeds(config)
    attempts = config.attempts or len(seeds)
    recorded = config.to_dict() | {"generator": identity}
    decisive = {key: value for key, value in recorded.items() if key not in ("output", "concurrency")}
    decisive["inputs"] = [content_hash(path) for path in config.inputs]
    journal = Journal(config.output.with_name(f".{config.output.name}.journal.jsonl"), decisive)
    run = _Run(config, generator, identity, seeds)
    for finished in journal.rounds:
        run.remember(finished)
    with bar("attempts", attempts, done=sum(map(len, journal.rounds))) as progress:
        while (begin := len(journal.rounds) * config.round_size) < attempts and not run.enough:
            made = run.round(begin, min(attempts, begin + config.round_size))
            journal.finish_round(made)
            run.remember(made)
            progress.advance(len(made), f"{len(run.rows)} rows")
    manifest = _publish(config, recorded, run)
    journal.remove()
    return manifest


def read_seeds(config: SynthesizeConfig) -> list[Seed]:
    """The rows that new ones are made of.

    Raises:
        DataError: a row holds nothing that the method could begin with.
    """
    if not config.inputs:
        raise DataError("no inputs are given", "Give at least one file of rows")
    seeds = []
    for path in config.inputs:
        for number, row in enumerate(load_rows(path / FILE if path.is_dir() else path), 1):
            asked, answered = _asked_and_answered(row)
            missing = answered if config.method == "back_translation" else asked
            if not missing.strip():
                what = "text" if config.method == "back_translation" else "request of one turn"
                raise DataError(f"{path}: row {number} ({row.kind}) has no {what}", f"{config.method} begins with one")
            name = str(row.extra.get("id") or row_id(asked, answered))
            seeds.append(Seed(name, asked, answered, row.extra))
    return seeds


def _asked_and_answered(row: Row) -> tuple[str, str]:
    """The request and the answer of a row of one turn each; a text is an answer to nothing."""
    if isinstance(row, TextRow) and isinstance(row.text, str):
        return "", row.text
    if isinstance(row, TextRow):
        return _said(row.text[:1]), _said(row.text[1:])
    if isinstance(row, PromptRow):
        return _said(row.prompt), ""
    if isinstance(row, CompletionRow | LabeledRow):
        return _said(row.prompt), _said(row.completion)
    return _said(row.asked), ""


def _said(content: Content) -> str:
    """What a content of one turn says; nothing of others, whose turns cannot be made new one by one."""
    if isinstance(content, str):
        return content
    return content[0].content if len(content) == 1 and content[0].role in ("user", "assistant") else ""


class _Run:
    """Rows made so far and how the next ones are made."""

    def __init__(
        self, config: SynthesizeConfig, generator: Generator | None, identity: str, seeds: Sequence[Seed]
    ) -> None:
        self._config, self._generator, self._identity, self._seeds = config, generator, identity, seeds
        self._method = METHODS[config.method]
        self._pool = Pool(config.novelty)
        for seed in seeds:
            if seed.instruction and self._method.makes_instruction:
                self._pool.add(seed.id, seed.instruction)
        self._made: list[Seed] = []
        self._ids: set[str] = set()
        self.rows: list[dict[str, Any]] = []
        self.others: list[dict[str, Any]] = []
        """Attempts that gave no row."""
        self.statuses: Counter[str] = Counter()

    @property
    def enough(self) -> bool:
        """Whether as many rows are made as were asked for."""
        return self._config.num_rows is not None and len(self.rows) >= self._config.num_rows

    def remember(self, attempts: Sequence[dict[str, Any]]) -> None:
        """Take in a finished round."""
        for attempt in attempts:
            row, status = attempt.get("row"), attempt["status"]
            if row is not None and row["id"] in self._ids:
                row, status = None, "duplicate"
            elif row is not None and self.enough:
                row, status = None, "surplus"
            self.statuses[status] += 1
            if row is None:
                self.others.append({**{k: v for k, v in attempt.items() if k != "row"}, "status": status})
                continue
            self.rows.append(row)
            self._ids.add(row["id"])
            instruction = row["prompt"][0]["content"]
            self._made.append(Seed(row["id"], instruction, row["completion"][0]["content"]))
            if self._method.makes_instruction:
                self._pool.add(row["id"], instruction)

    def round(self, begin: int, end: int) -> list[dict[str, Any]]:
        """Attempts `begin … end-1`, each with its status and, where it gave one, its row.

        Raises:
            DataError: the generator answered none of several prompts.
        """
        config = self._config
        drafts = [
            self._method.draft(self._seeds, self._made, number, Random(f"{config.seed}:{number}"), config.eda)
            for number in range(begin, end)
        ]
        attempts = [_Attempt(begin + n, draft, draft.instruction) for n, draft in enumerate(drafts)]
        params = self._seeded(config.instruction_sampling, begin, 1)
        self._write_instructions([attempt for attempt in attempts if attempt.draft.request], params)
        if self._method.makes_instruction:
            self._compare([attempt for attempt in attempts if not attempt.status])
        open_ones = [attempt for attempt in attempts if not attempt.status]
        self._respond(open_ones, self._seeded(config.response_sampling, begin, 0))
        return [self._finished(attempt) for attempt in attempts]

    def _write_instructions(self, attempts: list[_Attempt], params: SamplingParams) -> None:
        answers = self._ask([attempt.draft.request for attempt in attempts], params)
        for attempt, answer in zip(attempts, answers, strict=True):
            if isinstance(answer, Failure):
                attempt.end("failed", answer.reason)
                continue
            try:
                attempt.instruction = read_instruction(attempt.draft, answer[0])
            except RowFault as fault:
                attempt.instruction = answer[0]
                attempt.end("unusable", f"{fault.rule}: {fault}")

    def _compare(self, attempts: list[_Attempt]) -> None:
        """End those that say what the pool or an earlier one of the round says."""
        here = Pool(self._config.novelty)
        for attempt in attempts:
            like = self._pool.like(attempt.instruction) or here.like(attempt.instruction)
            if like is not None:
                attempt.end("duplicate", f"{like[1]:.2f} like {like[0]}")
            else:
                here.add(f"attempt {attempt.number}", attempt.instruction)

    def _respond(self, attempts: list[_Attempt], params: SamplingParams) -> None:
        wanting: list[_Attempt] = []
        for attempt in attempts:
            attempt.response = attempt.draft.parents[0].response if self._method.keeps_response else ""
            if not attempt.response:
                attempt.generated = True
                wanting.append(attempt)
        answers = dict(
            zip((a.number for a in wanting), self._ask([a.instruction for a in wanting], params), strict=True)
        )
        offered: list[tuple[_Attempt, Candidate]] = []
        for attempt in attempts:
            answer: Answer = answers.get(attempt.number, [attempt.response])
            if isinstance(answer, Failure):
                attempt.end("failed", answer.reason)
                continue
            texts = [text for text in answer if text]
            if not texts:
                attempt.end("unusable", "empty: the response has no text")
            extra = attempt.draft.parents[0].extra
            offered += [(attempt, Candidate(attempt.instruction, text, extra)) for text in texts]
        self._choose(offered)

    def _choose(self, offered: list[tuple[_Attempt, Candidate]]) -> None:
        """The best response of each attempt that graders call good."""
        verdicts = grade([candidate for _, candidate in offered], self._config.graders, self._judge)
        by_attempt: dict[int, list[int]] = {}
        for number, (attempt, _) in enumerate(offered):
            by_attempt.setdefault(attempt.number, []).append(number)
        for numbers in by_attempt.values():
            attempt = offered[numbers[0]][0]
            chosen = best([verdicts[number] for number in numbers])
            if chosen is None:
                grades = "; ".join(
                    ", ".join(f"{verdict.grader} {verdict.grade}" for verdict in verdicts[number]) for number in numbers
                )
                attempt.end("rejected", f"no good response of {len(numbers)} ({grades})")
                continue
            attempt.response, attempt.verdicts = offered[numbers[chosen]][1].response, verdicts[numbers[chosen]]

    def _judge(self, requests: Sequence[str]) -> list[str | None]:
        params = SamplingParams(temperature=0.0, max_tokens=16)
        return [None if isinstance(answer, Failure) else answer[0] for answer in self._ask(requests, params)]

    def _ask(self, requests: Sequence[str], params: SamplingParams) -> list[Answer]:
        if not requests:
            return []
        if self._generator is None:
            raise DataError(f"{self._config.method} needs a generator for these inputs", "Give a model")
        answers = ask(self._generator, requests, params, self._config.concurrency)
        failures = [answer for answer in answers if isinstance(answer, Failure)]
        if len(failures) == len(requests) > 1:
            raise DataError(
                f"the generator answered none of {len(requests)} prompts ({failures[0].reason})",
                "See to the generator; the same command goes on where this one stopped",
            )
        return answers

    def _seeded(self, params: SamplingParams, begin: int, step: int) -> SamplingParams:
        """The parameters with a seed of this round's own."""
        seed = Random(f"{self._config.seed}:{begin}:{step}").randrange(1 << 31)
        return params.model_copy(update={"seed": seed})

    def _finished(self, attempt: _Attempt) -> dict[str, Any]:
        """The attempt as the journal keeps it."""
        draft, config = attempt.draft, self._config
        told = {"attempt": attempt.number, "operation": draft.operation, "parents": [p.id for p in draft.parents]}
        if attempt.status:
            return {**told, "status": attempt.status, "reason": attempt.reason, "instruction": attempt.instruction}
        sampling = {}
        begin = attempt.number // config.round_size * config.round_size
        if draft.request:
            sampling["instruction"] = _short(self._seeded(config.instruction_sampling, begin, 1))
        if attempt.generated:
            sampling["response"] = _short(self._seeded(config.response_sampling, begin, 0))
        lineage = {
            "method": config.method, **told, "generator": self._identity if sampling else "",
            "sampling_params": sampling, "verdicts": [asdict(verdict) for verdict in attempt.verdicts],
        }  # fmt: skip
        carried = {
            key: value for key, value in draft.parents[0].extra.items() if key in ("language", "task", "license")
        }
        said = (Message(role="user", content=attempt.instruction), Message(role="assistant", content=attempt.response))
        extra = {**carried, "id": row_id(attempt.instruction, attempt.response), "lineage": lineage}
        row = write_row(CompletionRow(said[:1], said[1:], extra=extra))
        return {"attempt": attempt.number, "status": "kept", "row": row}


def _short(params: SamplingParams) -> dict[str, Any]:
    return params.model_dump(mode="json", exclude_defaults=True)


def _publish(config: SynthesizeConfig, recorded: dict[str, Any], run: _Run) -> Manifest:
    if not run.rows:
        told = ", ".join(f"{count} {status}" for status, count in run.statuses.most_common())
        first = f"; the first: {run.others[0].get('reason', '')}" if run.others else ""
        raise DataError(f"no attempt gave a row ({told}{first})", "Look at the inputs, the model and the thresholds")
    parents = {f"inputs[{number}]": path for number, path in enumerate(config.inputs)}
    with write_artifact(config.output, "conversations", config=recorded, parents=parents) as writer:
        for name, values in ((FILE, run.rows), (OUTCOMES, run.others)):
            lines = "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values)
            (writer.folder / name).write_text(lines, encoding="utf-8", errors="surrogatepass")
        writer.metrics.update({"rows": len(run.rows), "attempts": sum(run.statuses.values()), **run.statuses})
        failed = [one for one in run.others if one["status"] == "failed"]
        writer.notes["failed"] = [f"attempt {one['attempt']}: {one['reason']}" for one in failed[:_NAMED]]
    assert writer.manifest is not None, "the artifact is published"
    return writer.manifest
