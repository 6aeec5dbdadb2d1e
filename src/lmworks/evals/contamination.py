"""Has the training text seen the test? Which items it holds, for every corpus that a compared model learned from.

An item is found where a training document shares 13 words in a row with it (1.7 CJK characters are a word), or holds a
shorter item whole: appendix C of GPT-3, arXiv:2005.14165. The corpora are those that the evaluation names and those
that the models' lineage names; a model of unknown lineage is told as such, never taken for clean. Knows no tasks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lmworks.core.errors import ArtifactError
from lmworks.core.generation import Document
from lmworks.core.lineage import content_hash
from lmworks.core.trace import trace
from lmworks.data.decontamination.evaluation_sets import EvaluationItem
from lmworks.data.decontamination.matching import NGRAM, EvaluationIndex


@dataclass(frozen=True)
class Overlap:
    """How many items were found in the training text."""

    items: int
    testable: int
    """Items of at least eight words; a shorter one cannot be told from chance."""
    found: tuple[bool, ...]
    """Per item, whether the training text holds it."""
    examples: tuple[tuple[str, str], ...] = ()
    """Of some found items: the training document's id and what they share."""

    @property
    def overlapping(self) -> int:
        """Items found in the training text."""
        return sum(self.found)


EXAMPLES = 5


def find_overlaps(
    texts: Mapping[str, Sequence[str]], documents: Iterable[Document], n: int = NGRAM
) -> dict[str, Overlap]:
    """Look every item of every task up in the training text.

    Args:
        texts: by task, each item with its right answer.
        documents: the training text; read once, never held.
        n: words in a row.
    """
    items = [EvaluationItem(task, str(i), (text,)) for task, its in texts.items() for i, text in enumerate(its)]
    index = EvaluationIndex(items, n, overlap=None)
    found: dict[str, set[int]] = {task: set() for task in texts}
    examples: dict[str, list[tuple[str, str]]] = {task: [] for task in texts}
    for document in documents:
        for match in index.find(document.text):
            task, number = match.item.set, int(match.item.name)
            if number not in found[task] and len(examples[task]) < EXAMPLES:
                start, end = match.longest
                examples[task].append((document.id, document.text[start:end][:300]))
            found[task].add(number)
    testable = dict.fromkeys(texts, 0)
    for item, enough in zip(items, index.testable.tolist(), strict=True):
        testable[item.set] += enough
    return {
        task: Overlap(len(its), testable[task], tuple(i in found[task] for i in range(len(its))), tuple(examples[task]))
        for task, its in texts.items()
    }


@dataclass(frozen=True)
class Learned:
    """What is known of what a model learned from."""

    corpora: tuple[Path, ...]
    """Corpora in its lineage that are still what they were."""
    unknown: str = ""
    """Why there may be more: no lineage, or corpora that are gone or have changed."""


def learned_from(model: Path) -> Learned:
    """Corpora behind a model, by its lineage."""
    try:
        behind = list(trace(model, check=False).walk())
    except ArtifactError:
        return Learned((), "its lineage is unknown")
    corpora = [node for node in behind if node.parent.kind == "corpus"]
    lost = [str(node.where) for node in corpora if node.state != "intact"]
    whole = tuple(node.where for node in corpora if node.state == "intact")
    if lost:
        return Learned(whole, f"{', '.join(lost)} is gone or has changed since")
    return Learned(whole, "" if whole else "its lineage names no corpus")


def other_corpora(models: Mapping[str, Path], corpus: Path) -> Iterator[Path]:
    """Each corpus once that a model learned from and that is not `corpus`."""
    seen = {content_hash(corpus)}
    for model in models.values():
        for path in learned_from(model).corpora:
            if (found := content_hash(path)) not in seen:
                seen.add(found)
                yield path
