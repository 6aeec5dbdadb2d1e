"""Stage `eval`: put models through tasks on the same items and say how good they are, and how sure that is.

Writes `results.json`, `results.md`, `report.html` and `samples.jsonl`. Models are whatever the loader returns that
generates and scores; knows no engine, no tokenizer and no weights.
"""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from lmworks.core.code_version import code_version
from lmworks.core.config import Config, nearest
from lmworks.core.errors import EvalError, RequestError, TokenizerError
from lmworks.core.lineage import ArtifactWriter, Manifest, clock, write_artifact
from lmworks.core.progress import bar, console, say
from lmworks.core.registry import resolve
from lmworks.core.sampling import SamplingParams
from lmworks.evals.baselines import BASELINES, NOTE, Baseline, within
from lmworks.evals.contamination import Overlap, learned_from, other_corpora
from lmworks.evals.inputs import read_documents, read_inputs
from lmworks.evals.results import Contamination, Results, Skip, to_html, to_markdown, to_rich
from lmworks.evals.runner import build_items, overlaps_of, run_task
from lmworks.evals.scores import Score, compare, score
from lmworks.evals.task import Inputs, Item, Model, Outcome, Passage
from lmworks.evals.tasks import TASKS
from lmworks.evals.tasks.bits_per_byte import TASK as BITS_PER_BYTE

BITS = BITS_PER_BYTE.name
LOADER = "lmworks.engine:LLM"
"""What turns a model's path into something that generates and scores."""


class EvalConfig(Config):
    """Measure models on the same items."""

    models: Annotated[dict[str, Path], Field(min_length=1)]
    """Models by the name they have in the results; the others are compared with the first."""
    corpus: Path
    """Corpus artifact: what to measure on (validation), and what baselines and the overlap check learn (train)."""
    output: Path
    """Report folder to write."""
    tasks: tuple[str, ...] = tuple(TASKS)
    """Which tasks to run; one whose data is not given is reported as skipped."""
    limits: dict[str, Annotated[int, Field(ge=1)]] = Field(default_factory=dict)
    """Items per task where the task's own limit is not wanted, such as `{bits-per-byte: 1000}`."""
    conversations: Path | None = None
    """Held-out conversations for `format`; None takes `held_out.jsonl` of the first model folder that has one."""
    questions: Path | None = None
    """The fetched source boolq-questions, for `boolq`."""
    baselines: bool = True
    """Measure gzip, primed xz and an order-5 byte model on the same held-out documents."""
    baseline_bytes: Annotated[int, Field(ge=1)] = 32 * 2**20
    """Training text the baselines may use at most; xz takes some 1.5 seconds a megabyte."""
    sampling: dict[str, Any] = Field(default_factory=dict)
    """Fields of SamplingParams that override the tasks' own, such as `{temperature: 0.7}`."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Fixes the choice of items, sampling and resampling."""
    contaminated: Literal["report", "fail"] = "report"
    """What to do about items that stand in a training corpus, this one or one in a model's lineage: report scores
    without and with them, or end with an error before any model runs."""

    @model_validator(mode="after")
    def _known(self) -> Self:
        for name in (*self.tasks, *self.limits):
            if name not in TASKS:
                raise ValueError(f"unknown task {name!r}{nearest(name, list(TASKS))}")
        if not self.tasks:
            raise ValueError("tasks is empty: name at least one")
        for name in self.models:
            if name in BASELINES:
                raise ValueError(f"the model name {name!r} is that of a baseline: choose another")
        SamplingParams.parse(self.sampling)
        return self


def evaluate(config: EvalConfig, *, load: Callable[[Path], Model] | None = None) -> Manifest:
    """Run every task on every model.

    Args:
        config: what to measure.
        load: makes a model from its path; None takes the engine.

    Returns:
        The manifest of the report artifact; its metrics hold the scores.

    Raises:
        EvalError: an input is missing or damaged, no task has items, a model's figures are not finite, or items stand
            in a training corpus and that was to be an error.
        CheckpointError: a model cannot be loaded.
    """
    started = clock()
    models = list(config.models.values())
    inputs = read_inputs(config.corpus, conversations=config.conversations, questions=config.questions, models=models)
    items, skipped = build_items(config.tasks, inputs, config.limits, config.seed)
    for skip in skipped:
        say(f"{skip.task} skipped: {skip.reason}")
    others = tuple(other_corpora(config.models, config.corpus))
    learned = (document for corpus in others for document in read_documents(corpus / "train.jsonl"))
    overlaps = overlaps_of(items, chain(inputs.train, learned))
    _guard(config, overlaps)
    heldout = [item.text.encode() for item in items.get(BITS, ()) if isinstance(item, Passage)]
    train = within([document.text.encode() for document in inputs.train], config.baseline_bytes)
    methods = BASELINES if config.baselines and heldout and train else {}
    # One thread: xz, by far the slowest, is a process of its own and runs beside the models wherever a core is free.
    with ThreadPoolExecutor(1) as pool:
        pending = {name: pool.submit(method, train, heldout) for name, method in methods.items()}
        outcomes, refused, seconds = _run(config, items, load or resolve(LOADER))
        with bar("baselines", len(pending)) as progress:
            baselines = {}
            for name, future in pending.items():
                baselines[name] = future.result()
                progress.advance(note=name)
    sizes = tuple(float(len(document)) for document in heldout)
    for name, baseline in baselines.items():
        if baseline.document_bits is not None:  # it joins the models, to be compared with them
            outcomes[BITS][name] = Outcome({"bits_per_byte": baseline.document_bits}, sizes)
    results = Results(
        config.seed,
        tuple(_scores(outcomes, baselines, overlaps, heldout, config.seed)),
        tuple(c for task, by_model in outcomes.items() for c in compare(task, by_model, config.seed)),
        tuple(Contamination(task, o.items, o.testable, o.overlapping, o.examples) for task, o in overlaps.items()),
        (*skipped, *refused),
        (*_notes(items, inputs, heldout, train if baselines else []), *_checked(config, others)),
    )
    with write_artifact(
        config.output,
        "report",
        config=config.to_dict(),
        parents=_parents(config),
        code_version=code_version(__name__),
        started=started,
    ) as writer:
        _write(writer, results, outcomes)
        writer.metrics["seconds"] = seconds
    for table in to_rich(results):
        console.print(table)
    assert writer.manifest is not None
    return writer.manifest


Outcomes = dict[str, dict[str, Outcome]]
"""By task, then by model."""


def _run(
    config: EvalConfig, items: Mapping[str, Sequence[Item]], load: Callable[[Path], Model]
) -> tuple[Outcomes, list[Skip], list[dict[str, Any]]]:
    """Outcomes, what a model refused, and how long each task took; one model is in memory at a time."""
    outcomes: Outcomes = {task: {} for task in items}
    refused = []
    seconds = []
    sampling = {"seed": config.seed, **config.sampling}
    for name, path in config.models.items():
        model = load(path)
        for task, its in items.items():
            begun = time.perf_counter()
            try:
                with bar(f"{name}: {task}", len(its)) as progress:
                    outcomes[task][name] = run_task(TASKS[task], model, its, sampling, progress.advance)
            except (RequestError, TokenizerError) as error:  # such as a base model without a chat template
                refused.append(Skip(task, str(error), name))
                say(f"{name}: {task} skipped: {error}")
            seconds.append({"model": name, "task": task, "seconds": round(time.perf_counter() - begun, 2)})
        del model
        gc.collect()  # an engine's parts refer to each other; the next model needs the memory
    return outcomes, refused, seconds


def _scores(
    outcomes: Outcomes,
    baselines: Mapping[str, Baseline],
    overlaps: Mapping[str, Overlap],
    heldout: Sequence[bytes],
    seed: int,
) -> Iterator[Score]:
    """Every score, baselines that know no single documents last."""
    for task, by_model in outcomes.items():
        found = overlaps[task].found if task in overlaps else None
        for name, outcome in by_model.items():
            yield from score(name, task, outcome, found, seed)
    for name, baseline in baselines.items():
        if baseline.document_bits is None:
            value = baseline.bits / sum(map(len, heldout))
            yield Score(name, BITS, "bits_per_byte", value, None, None, len(heldout), None, higher_is_better=False)


def _notes(
    items: Mapping[str, Sequence[Item]], inputs: Inputs, heldout: Sequence[bytes], train: Sequence[bytes]
) -> Iterator[str]:
    """What must be known to read the numbers."""
    for task in items:
        yield f"{task}: {TASKS[task].about}"
    if heldout:
        size = sum(map(len, heldout))
        yield f"{BITS}: {len(heldout)} of {len(inputs.validation)} validation documents, {size:,} bytes."
    if train:
        yield (
            f"Baselines see the same documents and {sum(map(len, train)):,} bytes of training text, {len(train)} of "
            f"{len(inputs.train)} documents: {NOTE}"
        )


def _guard(config: EvalConfig, overlaps: Mapping[str, Overlap]) -> None:
    """Say that items are contaminated, or fail where that was asked for."""
    found = {task: overlap for task, overlap in overlaps.items() if overlap.overlapping}
    if not found:
        return
    named = ", ".join(f"{task}: {overlap.overlapping} of {overlap.items}" for task, overlap in found.items())
    if config.contaminated == "fail":
        raise EvalError(
            f"items stand in the training text ({named})",
            "Decontaminate the corpus and train anew, or report clean and contaminated items apart with "
            "--contaminated report",
        )
    say(f"items that stand in the training text: {named}; scores without and with them are told apart")


def _checked(config: EvalConfig, others: Sequence[Path]) -> Iterator[str]:
    """Which training text was searched for the items, and what could not be."""
    searched = ", ".join(map(str, (config.corpus, *others)))
    yield f"Items were looked for in the training text of {searched}."
    for name, path in config.models.items():
        if unknown := learned_from(path).unknown:
            yield f"{name}: {unknown}, so it may have learned from text that was not searched."


def _parents(config: EvalConfig) -> dict[str, Path]:
    optional = {"conversations": config.conversations, "questions": config.questions}
    return {
        **{f"models.{name}": path for name, path in config.models.items()},
        "corpus": config.corpus,
        **{role: path for role, path in optional.items() if path is not None},
    }


def _write(writer: ArtifactWriter, results: Results, outcomes: Outcomes) -> None:
    values = results.to_dict()
    writer.metrics.update({key: values[key] for key in ("scores", "comparisons", "contamination", "skipped")})
    writer.notes["notes"] = list(results.notes)
    files = {
        "results.json": json.dumps(values, indent=2, ensure_ascii=False) + "\n",
        "results.md": to_markdown(results),
        "report.html": to_html(results),
        "samples.jsonl": "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in _samples(outcomes)),
    }
    for name, text in files.items():
        (writer.folder / name).write_text(text, encoding="utf-8")


def _samples(outcomes: Outcomes) -> Iterator[dict[str, Any]]:
    """Every generated answer, the models' answers to one prompt side by side."""
    for task, by_model in outcomes.items():
        answers = {name: outcome.samples for name, outcome in by_model.items() if outcome.samples}
        for row in zip(*answers.values(), strict=True):
            for name, sample in zip(answers, row, strict=True):
                yield {"task": task, "model": name, **asdict(sample)}
