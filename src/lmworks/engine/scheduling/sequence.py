"""One completion on its way through the engine, and the states it may take.

    WAITING ── scheduled ──> RUNNING ── stop, length, abort ──> FINISHED
       ^                        │
       └────── preempted ───────┘

`WAITING` may also be aborted. Prefill and decode are not states: a sequence has tokens, some of which are
computed (their keys and values are cached), and every step computes some of the rest. Knows no torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from time import monotonic
from typing import TYPE_CHECKING

from lmworks.core.generation import FinishReason, TokenLogprob
from lmworks.core.sampling import SamplingParams
from lmworks.engine.request import Request

if TYPE_CHECKING:  # it is defined over tensors, and this file knows none
    from lmworks.engine.decoding.logits_processors import LogitsRules
    from lmworks.engine.grammar.constraint import Constraint
    from lmworks.engine.weights.adapters import Adapter


class Status(Enum):
    """Where a sequence is."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(eq=False)
class Sequence:
    """One of a request's `n` completions."""

    request: Request
    index: int
    """Which of the request's completions."""
    prompt_token_ids: tuple[int, ...]
    """What the decoder begins with: the request's prompt, or a marker where an encoder reads that."""
    max_tokens: int
    """New tokens at most, the context's end considered."""
    seed: int = 0
    source_token_ids: tuple[int, ...] = ()
    """What the encoder reads, where the model has one; the prompt is then what the decoder begins with."""

    request_id: str = field(init=False)
    params: SamplingParams = field(init=False)
    token_ids: list[int] = field(init=False)
    """Prompt and completion."""
    num_computed_tokens: int = 0
    block_table: list[int] = field(default_factory=list)
    source_table: list[int] = field(default_factory=list)
    """Blocks with the source's keys and values."""
    block_hashes: list[bytes] = field(default_factory=list)
    """Digest of each full block and all before it, as far as it was asked for."""
    num_known_tokens: int = field(init=False)
    """The document's length as positions take it, where they ask for it: the prompt's, until all is computed anew."""
    status: Status = Status.WAITING
    finish_reason: FinishReason | None = None
    num_cached_tokens: int = 0
    """Prompt tokens found in the prefix cache when first scheduled."""
    num_preemptions: int = 0
    arrived: float = field(default_factory=monotonic)
    first_scheduled: float | None = None
    first_token: float | None = None
    constraint: Constraint | None = None
    """What the completion must satisfy; set when it is ready."""
    draft_token_ids: list[int] = field(default_factory=list)
    """What may come next (speculative decoding): computed beyond the last token, never part of `token_ids`."""
    waits_for_constraint: bool = False
    """Whether it is still being made; the sequence is not scheduled until then."""
    stop_reason: int | str | None = None
    """The stop token or stop string that ended it; None for an end-of-sequence token and all else."""
    logits_rules: LogitsRules | None = None
    """What its parameters do to its logits; None where they do nothing."""
    order: tuple[int, int] = (0, 0)
    """Priority and number of arrival; the least goes first."""
    leader: Sequence | None = None
    """The request's first completion: the others wait until it has computed the prompt that they share."""
    followers: tuple[Sequence, ...] = ()
    """Of a leader: those others."""
    prompt_logprobs: list[TokenLogprob | None] | None = None
    """If asked for: of the prompt's tokens as far as computed, one list for all completions of the request."""
    lost_tokens: int = 0
    """Computed tokens that preemptions threw away."""
    num_draft_tokens: int = 0
    """Drafted tokens that were verified (speculative decoding)."""
    num_accepted_tokens: int = 0
    """Of those, the ones that were right."""
    adapter: Adapter | None = None
    """As it was loaded when the request came; None is the base model."""

    def __post_init__(self) -> None:
        assert self.prompt_token_ids, "a prompt needs a token"
        self.request_id, self.params = self.request.request_id, self.request.params
        self.token_ids = list(self.prompt_token_ids)
        if self.params.prompt_logprobs is not None:
            self.prompt_logprobs = [None]
        self.num_known_tokens = len(self.token_ids)

    @property
    def num_tokens(self) -> int:
        """Prompt and completion so far."""
        return len(self.token_ids)

    @property
    def num_prompt_tokens(self) -> int:
        """Of the prompt."""
        return len(self.prompt_token_ids)

    @property
    def num_request_tokens(self) -> int:
        """What the user gave: the source, or the prompt."""
        return len(self.source_token_ids or self.prompt_token_ids)

    @property
    def num_output_tokens(self) -> int:
        """Of the completion so far."""
        return len(self.token_ids) - len(self.prompt_token_ids)

    @property
    def num_uncomputed_tokens(self) -> int:
        """Tokens whose keys and values are still to be computed; one while decoding."""
        return len(self.token_ids) - self.num_computed_tokens

    @property
    def waits(self) -> bool:
        """Whether it cannot be scheduled yet: its constraint is being made, or its prompt computed by its leader."""
        if self.waits_for_constraint:
            return True
        leader = self.leader
        return leader is not None and not leader.finished and leader.num_output_tokens == 0

    @property
    def wants_prompt_logprobs(self) -> bool:
        """Whether logits of the prompt are still needed, so that none of it may be found in a cache."""
        return self.prompt_logprobs is not None and len(self.prompt_logprobs) < len(self.prompt_token_ids)

    @property
    def finished(self) -> bool:
        """Whether nothing more will come."""
        return self.status is Status.FINISHED

    def run(self) -> None:
        """WAITING -> RUNNING."""
        assert self.status is Status.WAITING, f"cannot run a {self.status.value} sequence"
        self.status = Status.RUNNING
        if self.first_scheduled is None:
            self.first_scheduled = monotonic()

    def preempt(self) -> None:
        """RUNNING -> WAITING; its tokens stay, their keys and values are computed again."""
        assert self.status is Status.RUNNING, f"cannot preempt a {self.status.value} sequence"
        assert not [*self.block_table, *self.source_table], "blocks are freed before preemption"
        self.status = Status.WAITING
        self.lost_tokens += self.num_computed_tokens
        self.num_computed_tokens = 0
        self.num_preemptions += 1
        self.draft_token_ids.clear()

    def append(self, token_id: int) -> None:
        """Add a sampled token."""
        assert self.status is Status.RUNNING, f"a token for a {self.status.value} sequence"
        assert self.num_uncomputed_tokens == 0, "a token is sampled only when all before it are computed"
        if self.first_token is None:
            self.first_token = monotonic()
        self.token_ids.append(token_id)

    def finish(self, reason: FinishReason) -> None:
        """Any state but FINISHED -> FINISHED."""
        assert not self.finished, "finished twice"
        self.status, self.finish_reason = Status.FINISHED, reason
