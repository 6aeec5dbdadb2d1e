"""Requests whose grammar is still being compiled on another thread. Knows no grammar and no scheduler."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future

from lmworks.core.errors import EngineError, RequestError
from lmworks.engine.grammar.constraint import Constraint
from lmworks.engine.scheduling.sequence import Sequence as Completion


class PendingConstraints:
    """Gives every completion its constraint as soon as it can be made."""

    def __init__(self) -> None:
        self._waiting: dict[str, tuple[Future[Callable[[], Constraint]], Sequence[Completion]]] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, completions: Sequence[Completion], factory: Future[Callable[[], Constraint]]) -> None:
        """Have the completions of a request wait for what makes their constraints."""
        for completion in completions:
            completion.waits_for_constraint = True
        self._waiting[completions[0].request_id] = factory, tuple(completions)

    def remove(self, request_id: str) -> None:
        """The request has ended, if it waited at all."""
        self._waiting.pop(request_id, None)

    def settle(self) -> list[tuple[str, EngineError]]:
        """Let those run whose constraint is ready; the others that will never have one, and why."""
        failed: list[tuple[str, EngineError]] = []
        for request_id, (factory, completions) in list(self._waiting.items()):
            if not factory.done():
                continue
            del self._waiting[request_id]
            error = factory.exception()
            if error is None:
                for completion in completions:
                    completion.constraint = factory.result()()
                    completion.waits_for_constraint = False
            elif isinstance(error, EngineError):
                failed.append((request_id, error.again()))
            else:  # whatever a compiler does to one request must not reach the others
                problem = f"the grammar cannot be compiled: {error}"
                failed.append((request_id, RequestError(problem, "Simplify what is asked for")))
        return failed
