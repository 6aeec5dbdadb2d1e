"""The table of tasks. A task is a module with one `TASK`; adding one is a file and a line here."""

from __future__ import annotations

from lmworks.evals.task import Task
from lmworks.evals.tasks import answer_format, bits_per_byte, boolq, cloze, wiki_recall

TASKS: dict[str, Task] = {
    module.TASK.name: module.TASK for module in (bits_per_byte, answer_format, wiki_recall, cloze, boolq)
}
"""By name, in the order they are run and reported."""
