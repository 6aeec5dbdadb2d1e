"""The loop that owns an engine: carry out commands, step, report. The same in a thread and in a process of its own.

One thread runs it and alone touches the engine; any thread may send commands. Knows no event loop and no socket.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from queue import SimpleQueue
from time import perf_counter, sleep
from typing import Any, Protocol

from lmworks.core.errors import EngineError, LMWorksError, RequestError
from lmworks.engine.execution.roofline import Roofline
from lmworks.engine.outputs import Delta
from lmworks.engine.process.exchange import Abort, Call, Command, ModelInfo, Ping, Pong, Refused, Report, Result, Stop
from lmworks.engine.process.operations import carry_out
from lmworks.engine.request import Request
from lmworks.engine.stats import ITERATION_TOKEN_BUCKETS, EngineStats

log = logging.getLogger(__name__)

STATS_SECONDS = 0.05
"""How often, at least, running steps say what has been done; the end of a completion says it too."""
NOTHING_SECONDS = 50e-6
"""A step that took less had nothing to compute: what it needs, such as a grammar, is made elsewhere."""
PAUSE_SECONDS = 0.001
"""How long the loop then leaves the processor to others."""
BUSY_STEPS = 512
"""So many steps pass before the machine is measured, unless there is nothing to do before."""


@dataclass(frozen=True)
class _Settled:
    """An operation that went on in a thread has come to its end."""

    number: int
    name: str
    outcome: Future[object]


class SteppedEngine(Protocol):
    """What the loop drives: `LLMEngine`, or a model that generates nothing."""

    @property
    def has_unfinished(self) -> bool:
        """Whether a step would do something."""
        ...

    @property
    def num_tokens(self) -> int:
        """Tokens computed so far, of prompts and of answers."""
        ...

    def add_request(self, request: Request) -> None:
        """Queue a request, or raise an `LMWorksError`."""
        ...

    def abort(self, request_id: str) -> list[Delta]:
        """End a request; nothing where it has ended."""
        ...

    def step(self) -> list[Delta]:
        """Compute one batch."""
        ...

    def stats(self) -> EngineStats:
        """What has been done and is held now."""
        ...


class EngineLoop:
    """Drives one engine.

    Args:
        engine: nobody else may touch it while `run` runs.
        info: what it is.
        publish: gets the reports of each round, in order.
        roofline: measures steps against the machine; None measures nothing.
        commands: where they come from; None makes a queue for `send`.
    """

    def __init__(
        self,
        engine: SteppedEngine,
        info: ModelInfo,
        publish: Callable[[Sequence[Report]], None],
        roofline: Roofline | None = None,
        commands: SimpleQueue[Command] | None = None,
    ) -> None:
        self.engine, self.info, self.reports = engine, info, list[Report]()
        """What waits to be published; whoever emits telemetry within a step may append."""
        self._publish, self._roofline = publish, roofline
        self._commands: SimpleQueue[Any] = SimpleQueue() if commands is None else commands
        self._unfinished: dict[str, int] = {}
        """Requests that the engine has, and how many of their completions have not ended."""
        self._steps = [0] * (len(ITERATION_TOKEN_BUCKETS) + 1)
        """Steps by the tokens they computed, at most 1, 2, 4 and so on."""
        self._tokens = 0
        """Computed by all of them."""
        self._told = 0.0
        """When the statistics were last reported (`perf_counter`)."""

    def send(self, command: Command) -> None:
        """Have a command carried out before the next step."""
        self._commands.put(command)

    def run(self) -> None:
        """Until told to stop.

        Raises:
            Exception: whatever the engine failed with; it must not be used any more.
        """
        while self._obey():
            began = perf_counter()
            deltas = self.engine.step()
            now = perf_counter()
            if not deltas and now - began < NOTHING_SECONDS:
                sleep(PAUSE_SECONDS)
                continue
            self._count_step()
            if self._roofline is not None:
                self._roofline.add(now - began)
            self._report(deltas, now)

    def wind_up(self) -> None:
        """After `run` has ended: drop what is unfinished, so that everything held is given back."""
        while not self._commands.empty():
            self._commands.get()
        for request_id in self._unfinished:
            self.engine.abort(request_id)
        self._tell_stats(perf_counter())
        self._flush()

    def _obey(self) -> bool:
        """Carry out waiting commands, sleeping while there is nothing else to do; False means stop."""
        while not self._commands.empty() or not self.engine.has_unfinished:
            if self._commands.empty():
                self._tell_stats(perf_counter())
                self._flush()
                self._know_limit()
            command = self._commands.get()
            if isinstance(command, Stop):
                return False
            self._carry_out(command)
        return True

    def _carry_out(self, command: Command | _Settled) -> None:
        match command:
            case Request():
                try:
                    self.engine.add_request(command)
                except LMWorksError as error:
                    self.reports.append(Refused(command.request_id, error))
                else:
                    self._unfinished[command.request_id] = command.params.n
            case Abort(request_id):
                deltas = self.engine.abort(request_id)
                self._note_ends(deltas)
                self.reports += deltas
            case Call(number, name, arguments):
                self._call(number, name, arguments)
            case _Settled(number, name, outcome):
                self._answer(number, name, outcome.result)
            case Ping():
                self.reports.append(Pong())
                self._flush()

    def _call(self, number: int, name: str, arguments: dict[str, object]) -> None:
        """Carry out an operation; one that goes on in a thread is answered when it has come to its end."""

        def work() -> object:
            if name not in self.info.operations:
                raise RequestError(
                    f"a model of the kind {self.info.kind!r} cannot {name}",
                    f"It can: {', '.join(self.info.operations) or 'nothing of the kind'}",
                )
            return carry_out(self.engine, self.info.kind, name, arguments)

        self._answer(number, name, work)

    def _answer(self, number: int, name: str, work: Callable[[], object]) -> None:
        """Report what an operation gives. Its failure is its caller's; those who generate are not affected."""
        try:
            value = work()
        except LMWorksError as error:
            self.reports.append(Result(number, error=error))
        except Exception as error:
            log.exception("%s failed", name)
            self.reports.append(Result(number, error=EngineError(f"{name} failed: {error!r}", "See the log")))
        else:
            if isinstance(value, Future):
                value.add_done_callback(lambda outcome: self._commands.put(_Settled(number, name, outcome)))
                return
            self._tell_stats(perf_counter())  # it may have changed what they tell
            self.reports.append(Result(number, value))

    def _report(self, deltas: list[Delta], now: float) -> None:
        if self._note_ends(deltas) or now - self._told > STATS_SECONDS:
            self._tell_stats(now)
        self.reports += deltas
        self._flush()

    def _note_ends(self, deltas: list[Delta]) -> bool:
        """Whether a completion has ended."""
        ended = [delta.request_id for delta in deltas if delta.finish_reason is not None]
        for request_id in ended:
            self._unfinished[request_id] -= 1
            if not self._unfinished[request_id]:
                del self._unfinished[request_id]
        return bool(ended)

    def _count_step(self) -> None:
        """Note how many tokens the step computed."""
        total = self.engine.num_tokens
        place = max(0, total - self._tokens - 1).bit_length()
        self._steps[min(place, len(self._steps) - 1)] += 1
        self._tokens = total
        if sum(self._steps) == BUSY_STEPS:
            self._know_limit()

    def _know_limit(self) -> None:
        """Measure the machine once something was computed: nobody waits for it while the engine starts."""
        if self._roofline is not None and self._tokens:
            self._roofline.measure()

    def _tell_stats(self, now: float) -> None:
        """First of what is published, so that whoever has its answer finds it counted."""
        stats = replace(self.engine.stats(), iteration_tokens=tuple(self._steps), iteration_tokens_sum=self._tokens)
        if self._roofline is not None:
            stats = replace(stats, roofline_ratio=self._roofline.ratio(stats.kv_cache_usage))
        self.reports.insert(0, stats)
        self._told = now

    def _flush(self) -> None:
        if self.reports:
            self._publish(tuple(self.reports))
            self.reports.clear()
