"""Task `wiki-recall`: does the model remember what the training text says a thing is?

`Carmen is an` is to be completed with `opera in four`. Items come from the training text on purpose: this measures
memory, not generalization.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from lmworks.core.sampling import SamplingParams
from lmworks.evals.choosing import choose
from lmworks.evals.task import Inputs, Prompt, Sample, Task
from lmworks.grading.text import contains, exact_match, f1

WORDS = 3
"""Words of the reference: enough to be specific, few enough to be recalled. `_DEFINITION` takes as many."""
_DEFINITION = re.compile(r"([^.\n]{3,120}? (?:is|was|are|were) (?:an?|the))((?: [^\s.,;:()]+){3})[ .,;]")


def build(inputs: Inputs, limit: int, seed: int) -> list[Prompt]:
    """Up to `limit` training documents that open by defining their subject."""
    found = [match for match in (_DEFINITION.match(d.text) for d in inputs.train) if match is not None]
    return [Prompt(match[1], (match[2].strip(),)) for match in choose(found, limit, seed)]


def grade(prompt: Prompt, sample: Sample) -> Mapping[str, float]:
    """Exact match and F1 of the answer's first words, as many as the reference has; containment in the whole answer."""
    opening = " ".join(sample.answer.split()[:WORDS])
    return {
        "exact_match": exact_match(opening, prompt.references),
        "f1": f1(opening, prompt.references),
        "contains": contains(sample.answer, prompt.references),
    }


TASK = Task(
    name="wiki-recall",
    about="Completing definitions from the training text (`Carmen is an` ...): memory, not generalization.",
    kind="generate_until",
    needs="a corpus whose training documents open with definitions",
    build=build,
    limit=64,
    grade=grade,
    sampling=SamplingParams(temperature=0.0, max_tokens=16, stop=("\n",)),
    heldout=False,
)
