"""Runs tasks: builds their items, looks these up in the training text, puts them to a model.

Knows tasks by their rows in the table, and models only as `Generator` and `Scorer`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from lmworks.core.errors import EvalError
from lmworks.core.generation import Document
from lmworks.core.sampling import SamplingParams
from lmworks.evals.contamination import Overlap, find_overlaps
from lmworks.evals.generation import generate_until
from lmworks.evals.likelihood import multiple_choice
from lmworks.evals.perplexity import bits_per_byte
from lmworks.evals.results import Skip
from lmworks.evals.task import Inputs, Item, Model, Outcome, Passage, Question, Task
from lmworks.evals.tasks import TASKS


def build_items(
    names: Iterable[str], inputs: Inputs, limits: Mapping[str, int], seed: int
) -> tuple[dict[str, list[Item]], list[Skip]]:
    """The items of every task that has any, and the tasks that have none with the reason.

    Args:
        names: rows of the task table.
        inputs: what to build from.
        limits: items per task where not the task's own.
        seed: of the choice.

    Raises:
        EvalError: no task has items.
    """
    items: dict[str, list[Item]] = {}
    skipped = []
    for name in names:
        task = TASKS[name]
        built = task.build(inputs, limits.get(name, task.limit), seed)
        if built:
            items[name] = built
        else:
            skipped.append(Skip(name, f"needs {task.needs}"))
    if not items:
        lacking = "; ".join(f"{skip.task} {skip.reason}" for skip in skipped)
        raise EvalError("no task has anything to measure on", f"Give what is lacking: {lacking}")
    return items, skipped


def overlaps_of(items: Mapping[str, Sequence[Item]], documents: Iterable[Document]) -> dict[str, Overlap]:
    """Look up the items of each held-out task in the training text; tasks built from that text are left out."""
    heldout = {name: [_text(item) for item in its] for name, its in items.items() if TASKS[name].heldout}
    return find_overlaps(heldout, documents) if heldout else {}


def run_task(
    task: Task,
    model: Model,
    items: Sequence[Any],
    sampling: Mapping[str, Any],
    advance: Callable[[float], None],
) -> Outcome:
    """Put a task's items to a model.

    Args:
        task: the row.
        model: who is asked.
        items: of the task's kind.
        sampling: fields of `SamplingParams` that override the task's own.
        advance: told how many items were done.

    Raises:
        EvalError: the model's figures are not finite numbers.
    """
    if task.kind == "loglikelihood_rolling":
        return bits_per_byte(model, items, advance)
    if task.kind == "multiple_choice":
        return multiple_choice(model, items, advance)
    assert task.grade is not None, f"the generation task {task.name} has no grade"
    params = SamplingParams.parse({**task.sampling.to_dict(), **sampling})
    return generate_until(model, items, task.grade, params, advance)


def _text(item: Item) -> str:
    """What must not stand in the training text: the item with its right answer."""
    if isinstance(item, Passage):
        return item.text
    if isinstance(item, Question):
        return item.context + item.choices[item.answer]
    asked = item.text if isinstance(item.text, str) else "\n".join(message.content for message in item.text)
    return "\n".join((asked, *item.references))
