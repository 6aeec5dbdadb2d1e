"""Task `boolq`: does the passage say yes or no?

Questions of the development split (Clark et al. 2019, arXiv:1905.10044), with the prompt of lm-evaluation-harness.
Passages are Wikipedia text that a corpus may well hold; the overlap is counted beside the score.
"""

from __future__ import annotations

from lmworks.evals.choosing import choose
from lmworks.evals.task import Inputs, Question, Task

CHOICES = (" no", " yes")


def build(inputs: Inputs, limit: int, seed: int) -> list[Question]:
    """Up to `limit` labelled validation questions."""
    rows = choose([row for row in inputs.questions if row.get("split", "validation") == "validation"], limit, seed)
    return [
        Question(f"{row['passage']}\nQuestion: {row['question']}?\nAnswer:", CHOICES, int(row["label"])) for row in rows
    ]


TASK = Task(
    name="boolq",
    about="Yes or no by log-likelihood, given the passage; always answering yes scores about 62 %.",
    kind="multiple_choice",
    needs="`questions: FOLDER` of the fetched source boolq-questions",
    build=build,
    limit=80,
)
