"""Grammars that hold a completion to a form, compiled beside the engine's thread. Knows no scheduler and no wire.

The work is done by `llguidance` (MIT, extra `structured`): one self-contained wheel for every Python from 3.10, an
Earley parser over derivatives of regular expressions that computes masks lazily, so that a grammar compiles in
milliseconds and has no states to enumerate. It takes tokens as bytes, which is what our tokenizer gives for every kind
of vocabulary, refuses what it cannot express, and bounds its own work. `xgrammar`, the alternative, brings
`transformers` and `triton` along and recognizes tokenizers by their class.

Its compiler descends into what it reads, and a deep enough chain of rules ends the process; `grammar_source` therefore
bounds everything that comes from a request, and compilation runs on threads with a stack far beyond those bounds.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from contextlib import suppress
from functools import cached_property
from time import thread_time
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from lmworks.core.errors import RequestError, require
from lmworks.core.sampling import StructuredOutputs
from lmworks.engine.grammar.constraint import Constraint
from lmworks.engine.grammar.source import grammar_source, own_words
from lmworks.engine.grammar.vocabulary import GrammarVocabulary
from lmworks.tokenization import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher

THREADS = 2
STACK_BYTES = 256 << 20
"""Reserved, not touched: ten times what the longest permitted chain of rules needs."""
TIMEOUT_SECONDS = 10.0
CACHED_GRAMMARS = 128
MAX_LEXER_STATES = 50_000
"""Of one grammar; a state takes one or two kilobytes."""
BUDGET_SECONDS, BUDGET_SECONDS_PER_TOKEN = 0.25, 0.002
"""Of the processor, for following one completion; a mask takes 0.0001 as a rule."""
MAX_ITEMS_IN_ROW = 500
"""Of a grammar that a request writes: what one token may cost at most, when a place can be read in so many ways."""

ConstraintFactory = Callable[[], Constraint]


class GrammarConstraint:
    """One completion's place in a compiled grammar.

    Args:
        matcher: in its initial state; owned by this object.
        ends: [ceil(V/32)] int32, the bits of the end-of-sequence tokens.
        eos_token_ids: the same as ids.
    """

    def __init__(self, matcher: LLMatcher, ends: Tensor, eos_token_ids: frozenset[int]) -> None:
        self._matcher = matcher
        self._ends = ends
        self._eos_token_ids = eos_token_ids
        self._buffer = torch.empty_like(ends)
        self._num_ends = 0
        """End-of-sequence tokens accepted last; the library is not told about them."""
        self._stale = True
        self._num_tokens = 0
        self._seconds = 0.0
        self._exhausted = False

    def mask(self) -> Tensor:
        """[ceil(V/32)] int32 on the CPU; overwritten by the next call.

        Where the grammar turned out too costly to follow (`fault`), only the end is allowed.
        """
        if self.finished:
            return self._ends
        if self._stale:
            began = thread_time()
            self._matcher.unsafe_compute_mask_ptr(self._buffer.data_ptr(), self._buffer.nbytes)
            self._stale = False
            self._spend(began)
        return self._ends if self._matcher.is_error() else self._buffer

    def accept(self, token_id: int) -> bool:
        """Advance by a token; False where it is not allowed, and nothing has changed."""
        if token_id in self._eos_token_ids:
            if not (self.finished or self._matcher.is_accepting()):
                return False
            self._num_ends += 1
            return True
        if self._num_ends or self._exhausted:
            return False
        began = thread_time()
        accepted = bool(self._matcher.try_consume_tokens([token_id]))
        if accepted:
            self._num_tokens += 1
            self._stale = True
        self._spend(began)
        return accepted

    def rollback(self, count: int) -> None:
        """Take back the last `count` accepted tokens."""
        ends = min(count, self._num_ends)
        self._num_ends -= ends
        if count > ends:
            taken = self._matcher.rollback(count - ends)
            assert taken, self._matcher.get_error()
            self._num_tokens -= count - ends
            self._stale = True

    @property
    def finished(self) -> bool:
        """Whether nothing but the end may follow."""
        return self._num_ends > 0 or self._exhausted or self._matcher.is_stopped()

    @property
    def fault(self) -> str | None:
        """Why the grammar could not be followed to its end, where that is so."""
        if self._exhausted:
            return f"it is too ambiguous: {self._num_tokens} tokens took {self._seconds:.1f} seconds"
        return own_words(self._matcher.get_error()) if self._matcher.is_error() else None

    def _spend(self, began: float) -> None:
        """An ambiguous grammar costs the square of the text at every token, at everybody's expense."""
        self._seconds += thread_time() - began
        self._exhausted = self._seconds > BUDGET_SECONDS + BUDGET_SECONDS_PER_TOKEN * self._num_tokens


class GrammarCompiler:
    """Turns what requests ask for into constraints, for one tokenizer.

    Args:
        tokenizer: of the model.
        vocab_size: rows of its logits; those beyond the tokenizer's vocabulary are never allowed.
        eos_token_ids: tokens that may end a completion; the tokenizer's by default.
        timeout_seconds: a grammar that takes longer is refused.

    Raises:
        MissingExtraError: `llguidance` is not installed.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        vocab_size: int,
        eos_token_ids: Iterable[int] | None = None,
        timeout_seconds: float = TIMEOUT_SECONDS,
    ) -> None:
        require("llguidance", "structured")
        self._eos_token_ids = frozenset(tokenizer.eos_token_ids if eos_token_ids is None else eos_token_ids)
        self._ends = _bits(self._eos_token_ids, vocab_size)
        self._vocabulary = GrammarVocabulary(tokenizer, vocab_size, self._eos_token_ids)
        self._timeout_seconds = timeout_seconds
        self._cache: OrderedDict[tuple[str, bool], Future[ConstraintFactory]] = OrderedDict()
        self._lock = threading.Lock()

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        """Threads are started here, while their stack's size is set: it holds for the whole process."""
        pool, meeting = ThreadPoolExecutor(THREADS, "grammar"), threading.Barrier(THREADS)
        before = threading.stack_size(STACK_BYTES)
        for _ in range(THREADS):
            pool.submit(meeting.wait)
        threading.stack_size(before)
        return pool

    def compile(self, outputs: StructuredOutputs, begins_text: bool = False) -> Future[ConstraintFactory]:
        """Compile, or find among the compiled. Returns at once.

        Args:
            outputs: what the completion must be.
            begins_text: the completion begins a text rather than going on with one (`StreamingDetokenizer` with
                `continues=False`): some tokenizers then drop the mark of its first word.

        Returns:
            What makes a fresh constraint, one for each completion; or a `RequestError` naming the fault. It is shared
            and cannot be cancelled.
        """
        future: Future[ConstraintFactory]
        try:
            key = outputs.model_dump_json(), begins_text
        except ValueError:
            future = Future()
            future.set_exception(RequestError("structured_outputs is nested too deeply", "Use $defs and $ref"))
            return future
        with self._lock:
            if (known := self._cache.get(key)) is not None:
                self._cache.move_to_end(key)
                return known
            future = Future()
            future.set_running_or_notify_cancel()
            self._cache[key] = future
            if len(self._cache) > CACHED_GRAMMARS:
                self._cache.popitem(last=False)
            timer = threading.Timer(self._timeout_seconds, self._give_up, (key, future))
            timer.daemon = True
            timer.start()
            self._pool.submit(self._work, outputs, begins_text, future, timer)
            return future

    def close(self) -> None:
        """Let the threads end; what was compiled stays usable."""
        if "_pool" in vars(self):
            self._pool.shutdown(wait=False)

    def _give_up(self, key: tuple[str, bool], future: Future[ConstraintFactory]) -> None:
        error = RequestError(
            f"the grammar of structured_outputs took longer than {self._timeout_seconds:g} seconds to compile",
            "Simplify it, or try again when fewer grammars are being compiled",
        )
        with self._lock, suppress(InvalidStateError):
            self._cache.pop(key, None)
            future.set_exception(error)

    def _work(
        self,
        outputs: StructuredOutputs,
        begins_text: bool,
        future: Future[ConstraintFactory],
        timer: threading.Timer,
    ) -> None:
        if future.done():
            return
        try:
            factory = self._factory(outputs, begins_text)
        except RequestError as error:
            fault: RequestError | None = error
        except BaseException as error:  # noqa: BLE001 - a panic of the library is no Exception
            fault = RequestError(f"the grammar of structured_outputs cannot be compiled: {own_words(str(error))}")
        else:
            fault = None
        timer.cancel()
        with suppress(InvalidStateError):
            if fault is None:
                future.set_result(factory)
            else:
                future.set_exception(fault)

    def _factory(self, outputs: StructuredOutputs, begins_text: bool) -> ConstraintFactory:
        from llguidance import LLMatcher, LLParserLimits

        items = MAX_ITEMS_IN_ROW if outputs.grammar is not None else None
        limits = LLParserLimits(max_items_in_row=items, max_lexer_states=MAX_LEXER_STATES)
        source = grammar_source(outputs, begins_text and self._vocabulary.marks_words)
        matcher = LLMatcher(self._vocabulary.tokens, source, log_level=0, limits=limits)
        if matcher.is_error():
            remedy = "See docs/packages/engine.md for what can be enforced"
            raise RequestError(f"structured_outputs cannot be enforced: {own_words(matcher.get_error())}", remedy)
        first = GrammarConstraint(matcher, self._ends, self._eos_token_ids)
        if not first.mask().any() or first.fault:
            problem = "nothing that the model's tokens can write satisfies structured_outputs"
            raise RequestError(problem, "Check the schema for contradictions and endless references")
        return lambda: GrammarConstraint(matcher.deep_copy(), self._ends, self._eos_token_ids)


def _bits(token_ids: Iterable[int], vocab_size: int) -> Tensor:
    """[ceil(V/32)] int32 with the bits of these tokens."""
    bits = np.zeros(-(-vocab_size // 32) * 32, dtype=np.uint8)
    bits[[i for i in token_ids if i < vocab_size]] = 1
    return torch.from_numpy(np.packbits(bits, bitorder="little").view(np.int32))
