"""Attempts on their way to rows, a round at a time: drafts, novelty, answers, grades. Knows no file.

An attempt is a pure function of the seed, its number and the rounds before it. Every attempt ends with a status.
What a generator answered is told at once to whoever keeps it, and what was kept is not asked again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from random import Random
from typing import Any

from lmworks.core.errors import DataError
from lmworks.core.generation import Generator
from lmworks.core.messages import Message
from lmworks.core.sampling import SamplingParams
from lmworks.data.identity import row_id
from lmworks.data.rows.layouts import write_row
from lmworks.data.rows.values import CompletionRow, RowFault
from lmworks.data.synthesis.asking import Answer, Failure, ask
from lmworks.data.synthesis.config import SynthesizeConfig
from lmworks.data.synthesis.grade import Candidate, Verdict, best, grade
from lmworks.data.synthesis.methods import METHODS, Draft, Seed, read_instruction, read_response
from lmworks.data.synthesis.novelty import NoveltyConfig, Pool

_CARRIED = ("language", "task", "license")
"""Fields of a parent that a row made of it has too."""


@dataclass
class _Attempt:
    """One attempt on its way; `status` is empty while nothing ended it."""

    number: int
    begin: int
    """Number of the first attempt of its round."""
    draft: Draft
    instruction: str
    response: str = ""
    cut_off: bool = False
    """Whether the response ends at the most tokens allowed."""
    status: str = ""
    reason: str = ""
    verdicts: tuple[Verdict, ...] = ()
    generated: bool = False
    """Whether the response is new, not a parent's."""
    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    """What all requests for this attempt cost, the judge's among them."""

    def end(self, status: str, reason: str) -> None:
        self.status, self.reason = status, reason


@dataclass(frozen=True)
class _Offer:
    """A response that an attempt may end with."""

    attempt: _Attempt
    text: str
    cut_off: bool

    @property
    def candidate(self) -> Candidate:
        """What graders see."""
        return Candidate(self.attempt.instruction, self.text, self.attempt.draft.parents[0].extra)


class Rounds:
    """Rows made so far and how the next ones are made.

    Args:
        config: how.
        generator: answers; none is needed where nothing is asked.
        identity: the generator's name, for lineage.
        seeds: what is given.
        keep: is told the name of a request and the answer to it.
    """

    def __init__(
        self,
        config: SynthesizeConfig,
        generator: Generator | None,
        identity: str,
        seeds: Sequence[Seed],
        keep: Callable[[str, Answer], None],
    ) -> None:
        self._config, self._generator, self._identity, self._seeds = config, generator, identity, seeds
        self._keep = keep
        self._answered: dict[str, Answer] = {}
        self._method = METHODS[config.method]
        self._novelty = config.novelty or NoveltyConfig(threshold=self._method.alike)
        self._pool = Pool(self._novelty)
        for seed in seeds:
            if seed.instruction and self._method.makes_instruction:
                self._pool.add(seed.id, seed.instruction)
        self._made: list[Seed] = []
        self._ids: set[str] = set()
        self.rows: list[dict[str, Any]] = []
        self.others: list[dict[str, Any]] = []
        """Attempts that gave no row."""
        self.statuses: Counter[str] = Counter()
        self.cost: Counter[str] = Counter()
        """Requests and tokens of all attempts."""

    @property
    def enough(self) -> bool:
        """Whether as many rows are made as were asked for."""
        return self._config.num_rows is not None and len(self.rows) >= self._config.num_rows

    def answered(self, request: str, answer: Answer) -> None:
        """Take in an answer that an earlier run was given to a request of the next round."""
        self._answered[request] = answer

    def remember(self, attempts: Sequence[dict[str, Any]]) -> None:
        """Take in a finished round."""
        self._answered.clear()
        for attempt in attempts:
            self.cost.update(attempt.get("cost", {}))
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

    @property
    def size(self) -> int:
        """Attempts of a round. One that went over the seeds twice would ask the same with the same seed of chance."""
        return min(self._config.round_size, len(self._seeds)) if self._method.in_turn else self._config.round_size

    def make(self, begin: int, end: int) -> list[dict[str, Any]]:
        """Attempts `begin … end-1`, each with its status and, where it gave one, its row.

        Raises:
            DataError: the generator answered none of several prompts.
        """
        config = self._config
        drafts = [
            self._method.draft(self._seeds, self._made, number, Random(f"{config.seed}:{number}"), config.eda)
            for number in range(begin, end)
        ]
        attempts = [_Attempt(begin + n, begin, draft, draft.instruction) for n, draft in enumerate(drafts)]
        params = self._seeded(config.instruction_sampling, begin, 1)
        self._write_instructions([attempt for attempt in attempts if attempt.draft.request], params)
        if self._method.makes_instruction:
            self._compare([attempt for attempt in attempts if not attempt.status])
        open_ones = [attempt for attempt in attempts if not attempt.status]
        self._respond(open_ones, self._seeded(config.response_sampling, begin, 0))
        return [self._finished(attempt) for attempt in attempts]

    def _write_instructions(self, attempts: list[_Attempt], params: SamplingParams) -> None:
        requests = [(f"instruction {attempt.number}", attempt, attempt.draft.request) for attempt in attempts]
        for attempt, answer in zip(attempts, self._ask(requests, params), strict=True):
            if isinstance(answer, Failure):
                attempt.end("failed", answer.reason)
                continue
            attempt.instruction = answer.texts[0]
            try:
                if not answer.finished[0]:
                    raise RowFault("cut off", "the instruction ends at the most tokens allowed")
                attempt.instruction = read_instruction(attempt.draft, answer.texts[0])
            except RowFault as fault:
                attempt.end("unusable", f"{fault.rule}: {fault}")

    def _compare(self, attempts: list[_Attempt]) -> None:
        """End those that say what the pool or an earlier one of the round says."""
        here = Pool(self._novelty)
        for attempt in attempts:
            like = self._pool.like(attempt.instruction) or here.like(attempt.instruction)
            if like is not None:
                attempt.end("duplicate", f"{like[1]:.2f} like {like[0]}")
            else:
                here.add(f"attempt {attempt.number}", attempt.instruction)

    def _respond(self, attempts: list[_Attempt], params: SamplingParams) -> None:
        wanting: list[_Attempt] = []
        offered: list[_Offer] = []
        for attempt in attempts:
            attempt.response = attempt.draft.parents[0].response if self._method.keeps_response else ""
            if attempt.response:
                offered.append(_Offer(attempt, attempt.response, False))
            else:
                attempt.generated = True
                wanting.append(attempt)
        requests = [(f"response {attempt.number}", attempt, attempt.instruction) for attempt in wanting]
        for attempt, answer in zip(wanting, self._ask(requests, params), strict=True):
            if isinstance(answer, Failure):
                attempt.end("failed", answer.reason)
                continue
            faults: list[RowFault] = []
            for text, finished in zip(answer.texts, answer.finished, strict=True):
                try:
                    read_response(text)
                    if not finished and self._config.cut_off == "drop":
                        raise RowFault("cut off", "the response ends at the most tokens allowed")
                except RowFault as fault:
                    faults.append(fault)
                else:
                    offered.append(_Offer(attempt, text, not finished))
            if len(faults) == len(answer.texts):
                attempt.end("unusable", f"{faults[0].rule}: {faults[0]}")
        self._choose(offered)

    def _choose(self, offered: list[_Offer]) -> None:
        """The best response of each attempt that graders call good."""

        def judge(requests: Sequence[str]) -> list[str | None]:
            named = [
                (f"judge {offer.attempt.number} {number}", offer.attempt, request)
                for number, (offer, request) in enumerate(zip(offered, requests, strict=True))
            ]
            answers = self._ask(named, SamplingParams(temperature=0.0, max_tokens=16))
            for (_, attempt, _), answer in zip(named, answers, strict=True):
                if isinstance(answer, Failure):
                    unjudged[attempt.number] = answer.reason
            return [None if isinstance(answer, Failure) else answer.texts[0] for answer in answers]

        unjudged: dict[int, str] = {}
        verdicts = grade([offer.candidate for offer in offered], self._config.graders, judge)
        by_attempt: dict[int, list[int]] = {}
        for number, offer in enumerate(offered):
            by_attempt.setdefault(offer.attempt.number, []).append(number)
        for numbers in by_attempt.values():
            attempt = offered[numbers[0]].attempt
            chosen = best([verdicts[number] for number in numbers])
            if chosen is None and attempt.number in unjudged:
                attempt.end("failed", f"the judge: {unjudged[attempt.number]}")
                continue
            if chosen is None:
                grades = "; ".join(
                    ", ".join(f"{verdict.grader} {verdict.grade}" for verdict in verdicts[number]) for number in numbers
                )
                attempt.end("rejected", f"no good response of {len(numbers)} ({grades})")
                continue
            offer = offered[numbers[chosen]]
            attempt.response, attempt.cut_off, attempt.verdicts = offer.text, offer.cut_off, verdicts[numbers[chosen]]

    def _ask(self, requests: Sequence[tuple[str, _Attempt, str]], params: SamplingParams) -> list[Answer | Failure]:
        """What the generator says to named requests of attempts; those that were answered before are not asked."""
        missing = [(name, request) for name, _, request in requests if name not in self._answered]
        if missing and self._generator is None:
            raise DataError(f"{self._config.method} needs a generator for these inputs", "Give a model")
        failures: dict[str, Failure] = {}
        if missing and self._generator is not None:

            def keep(number: int, answer: Answer) -> None:
                self._keep(missing[number][0], answer)
                self._answered[missing[number][0]] = answer

            asked = [request for _, request in missing]
            answers = ask(self._generator, asked, params, self._config.concurrency, keep)
            failures = {name: one for (name, _), one in zip(missing, answers, strict=True) if isinstance(one, Failure)}
        if len(failures) == len(missing) > 1:
            raise DataError(
                f"the generator answered none of {len(missing)} prompts ({next(iter(failures.values())).reason})",
                "See to the generator; the same command goes on where this one stopped",
            )
        given = [self._answered.get(name) or failures[name] for name, _, _ in requests]
        for (_, attempt, _), answer in zip(requests, given, strict=True):
            if isinstance(answer, Answer):
                attempt.requests += 1
                attempt.prompt_tokens += answer.prompt_tokens
                attempt.completion_tokens += answer.completion_tokens
        return given

    def _seeded(self, params: SamplingParams, begin: int, step: int) -> SamplingParams:
        """The parameters with a seed of this round's own."""
        seed = Random(f"{self._config.seed}:{begin}:{step}").randrange(1 << 31)
        return params.model_copy(update={"seed": seed})

    def _finished(self, attempt: _Attempt) -> dict[str, Any]:
        """The attempt as the journal keeps it."""
        draft, config = attempt.draft, self._config
        told: dict[str, Any] = {
            "attempt": attempt.number, "operation": draft.operation, "parents": [parent.id for parent in draft.parents]
        }  # fmt: skip
        cost = {name: getattr(attempt, name) for name in ("requests", "prompt_tokens", "completion_tokens")}
        if attempt.status:
            told |= {"status": attempt.status, "reason": attempt.reason, "instruction": attempt.instruction}
            return told | {"cost": cost}
        sampling = {}
        if draft.request:
            told["request"] = draft.request
            sampling["instruction"] = _short(self._seeded(config.instruction_sampling, attempt.begin, 1))
        if attempt.generated:
            sampling["response"] = _short(self._seeded(config.response_sampling, attempt.begin, 0))
        lineage = {
            "method": config.method, **told, "generator": self._identity if sampling else "",
            "sampling_params": sampling, "verdicts": [asdict(verdict) for verdict in attempt.verdicts],
            **({"cut_off": True} if attempt.cut_off else {}),
        }  # fmt: skip
        carried = {key: value for key, value in draft.parents[0].extra.items() if key in _CARRIED}
        said = (Message(role="user", content=attempt.instruction), Message(role="assistant", content=attempt.response))
        extra = {**carried, "id": row_id(attempt.instruction, attempt.response), "lineage": lineage}
        row = write_row(CompletionRow(said[:1], said[1:], extra=extra))
        return {"attempt": attempt.number, "status": "kept", "row": row, "cost": cost}


def _short(params: SamplingParams) -> dict[str, Any]:
    return params.model_dump(mode="json", exclude_defaults=True)
