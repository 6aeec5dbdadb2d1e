"""The likeliest completions of one prompt, by beam search; diverse ones by groups of beams. Knows no engine.

The search asks for the likeliest next tokens after some prefixes and is told their log-probabilities, until it is done:

    search = BeamSearch(params, eos_token_ids)
    while search.prefixes:
        search.advance(ask(search.prefixes))

So one search serves a synchronous engine, an asynchronous one and many prompts at once. Each step asks for whole
prefixes; a prefix cache makes that cheap. Scores and stopping are those of transformers' `generate`.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from lmworks.core.generation import FinishReason
from lmworks.core.sampling import BeamSearchParams, SamplingParams

log = logging.getLogger(__name__)

NextTokens = Sequence[tuple[int, float]]
"""The likeliest tokens after a prefix, best first, with their log-probabilities."""


@dataclass(frozen=True)
class Beam:
    """A completion, ended or not."""

    token_ids: tuple[int, ...] = ()
    cumulative_logprob: float = 0.0
    """In nats."""
    merit: float = 0.0
    """What beams are ranked by while they grow: the log-probability, less what diversity took."""
    score: float = 0.0
    """What ended ones are ranked by: the merit by length."""
    finish_reason: FinishReason | None = None


@dataclass
class _Group:
    """Beams that compete with each other alone."""

    width: int
    running: list[Beam] = field(default_factory=lambda: [Beam()])
    """Best first."""
    ended: list[Beam] = field(default_factory=list)
    """Best first, `width` at most."""


class BeamSearch:
    """The search after one prompt.

    Args:
        params: of the search.
        eos_token_ids: tokens that end a completion, unless `ignore_eos`.
        max_tokens: what the model's context leaves, where that is less than `params.max_tokens`.
    """

    def __init__(self, params: BeamSearchParams, eos_token_ids: Collection[int], max_tokens: int | None = None) -> None:
        if params.temperature:
            log.warning("temperature %s has no effect on beam search: it ranks by raw logits", params.temperature)
        self._params = params
        self._eos = frozenset[int]() if params.ignore_eos else frozenset(eos_token_ids)
        self._max_tokens = min(params.max_tokens, max_tokens or params.max_tokens)
        self._groups = [_Group(params.beam_width // params.num_beam_groups) for _ in range(params.num_beam_groups)]
        self._length = 0

    @property
    def prefixes(self) -> list[tuple[int, ...]]:
        """Completions so far whose next tokens are asked for; none when the search is done."""
        return list(dict.fromkeys(beam.token_ids for group in self._groups for beam in group.running))

    @property
    def sampling_params(self) -> SamplingParams:
        """Of the request of one token that tells what follows a prefix."""
        # A group keeps `width` tokens beside those that end, and those that earlier groups have made worse.
        count = self._params.beam_width + len(self._eos)
        return SamplingParams(temperature=0, max_tokens=1, ignore_eos=True, logprobs=count)

    @property
    def beams(self) -> list[Beam]:
        """The completions that have ended, best first."""
        ended = [beam for group in self._groups for beam in group.ended]
        return sorted(ended, key=lambda beam: -beam.score)[: self._params.beam_width]

    def advance(self, following: Sequence[NextTokens]) -> None:
        """Take one step.

        Args:
            following: for each of `prefixes`, in order, as many next tokens as `sampling_params` asks for.
        """
        known = dict(zip(self.prefixes, following, strict=True))
        self._length += 1
        chosen = Counter[int]()
        for group in self._groups:
            if group.running:
                self._advance(group, known, chosen)
                chosen.update(beam.token_ids[-1] for beam in group.running)
                if self._length == self._max_tokens or self._settled(group):
                    group.running = []

    def _advance(self, group: _Group, known: Mapping[tuple[int, ...], NextTokens], chosen: Counter[int]) -> None:
        """One step of one group; `chosen` counts the tokens that earlier groups put at this place."""
        candidates = sorted(self._candidates(group, known, chosen), key=lambda beam: -beam.merit)
        last = self._length == self._max_tokens
        # Completions worse than the `width` best are no results even if they end: a better beam goes on.
        for beam in candidates[: group.width]:
            if beam.finish_reason is not None or last:
                score = beam.merit / self._length**self._params.length_penalty
                reason = beam.finish_reason or "length"
                group.ended.append(Beam(beam.token_ids, beam.cumulative_logprob, beam.merit, score, reason))
        group.ended = sorted(group.ended, key=lambda beam: -beam.score)[: group.width]
        group.running = [beam for beam in candidates if beam.finish_reason is None][: group.width]

    def _candidates(
        self, group: _Group, known: Mapping[tuple[int, ...], NextTokens], chosen: Counter[int]
    ) -> Iterator[Beam]:
        for beam in group.running:
            for token_id, logprob in known[beam.token_ids]:
                yield Beam(
                    (*beam.token_ids, token_id),
                    beam.cumulative_logprob + logprob,
                    beam.merit + logprob - self._params.diversity_penalty * chosen[token_id],
                    finish_reason="stop" if token_id in self._eos else None,
                )

    def _settled(self, group: _Group) -> bool:
        """Whether what runs could not, or need not, become better than what has ended."""
        params = self._params
        if len(group.ended) < group.width or not group.running:
            return not group.running
        if params.early_stopping is True:
            return True
        hopeful = params.early_stopping == "never" and params.length_penalty > 0
        length = self._max_tokens if hopeful else self._length
        return group.running[0].merit / length**params.length_penalty <= group.ended[-1].score
