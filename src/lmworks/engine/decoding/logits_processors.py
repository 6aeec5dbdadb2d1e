"""What a request's parameters do to its logits before a token is chosen: forbid tokens, favor some, punish repetition.

In vLLM's order: grammar, allowed tokens, bad words, minimum length; then bias; then repetition, frequency and presence
penalty. Knows no temperature and no draw.
"""

from __future__ import annotations

from collections.abc import Collection
from collections.abc import Sequence as Rows
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lmworks.core.errors import RequestError
from lmworks.core.sampling import SamplingParams
from lmworks.engine.scheduling.sequence import Sequence
from lmworks.tokenization import Tokenizer

FORBIDDEN = float("-inf")

MAX_BIAS = 100.0
"""Larger biases are cut to this, as in vLLM and OpenAI's API."""


class TokenCounts:
    """How often each token stands in a sequence, kept from step to step instead of counted anew."""

    def __init__(self) -> None:
        self._length = 0
        """Tokens counted so far."""
        self._columns: dict[int, int] = {}
        self._table: NDArray[np.int64] = np.zeros((2, 64), np.int64)
        """Rows: token id, times in the completion."""

    def of(self, row: Sequence) -> NDArray[np.int64]:
        """[2, K]: each different token of prompt and completion, and how often it stands in the latter."""
        for place in range(self._length, len(row.token_ids)):
            token_id = row.token_ids[place]
            column = self._columns.setdefault(token_id, len(self._columns))
            if column == self._table.shape[1]:
                self._table = np.concatenate([self._table, np.zeros_like(self._table)], axis=1)
            self._table[0, column] = token_id
            self._table[1, column] += place >= row.num_prompt_tokens
        self._length = len(row.token_ids)
        return self._table[:, : len(self._columns)]


@dataclass(eq=False)
class LogitsRules:
    """What one sequence's parameters ask for; made by `logits_rules`."""

    allowed: Tensor | None
    """[A] the only tokens that may come."""
    bad_words: tuple[tuple[int, ...], ...]
    """The last token of each is forbidden after the ones before."""
    min_tokens: int
    ends: Tensor
    """[S] tokens that are forbidden before so many others."""
    biased: Tensor
    """[K] tokens."""
    bias: Tensor
    """[K]."""
    penalties: tuple[float, float, float] | None
    """Of repetition, frequency and presence."""
    counts: TokenCounts = field(default_factory=TokenCounts)

    def fresh(self) -> LogitsRules:
        """The same for another sequence."""
        return replace(self, counts=TokenCounts())

    def forbid(self, logits: Tensor, row: Sequence) -> None:
        """Set the logits [V] of what must not come to minus infinity."""
        if self.allowed is not None:
            kept = logits[self.allowed]
            logits.fill_(FORBIDDEN)[self.allowed] = kept
        if self.bad_words and (completing := self._completing(row)):
            logits[completing] = FORBIDDEN
        if row.num_output_tokens < self.min_tokens:
            logits[self.ends] = FORBIDDEN

    def _completing(self, row: Sequence) -> list[int]:
        """Tokens that would complete a bad word; only what was generated can begin one."""
        longest = max(map(len, self.bad_words)) - 1
        tokens = row.token_ids
        said = tuple(tokens[max(row.num_prompt_tokens, len(tokens) - longest) :])
        return [w[-1] for w in self.bad_words if len(w) - 1 <= len(said) and said[len(said) - len(w) + 1 :] == w[:-1]]


def logits_rules(
    params: SamplingParams, end_token_ids: Collection[int], tokenizer: Tokenizer | None, vocab_size: int
) -> LogitsRules | None:
    """What a request asks to be done to its logits, None where that is nothing.

    Args:
        params: of the request.
        end_token_ids: end-of-sequence tokens, which `min_tokens` forbids together with the request's own.
        tokenizer: for `bad_words`.
        vocab_size: columns of the logits.

    Raises:
        RequestError: a token id is outside the vocabulary, or bad words lack a tokenizer.
    """
    named: dict[str, Collection[int]] = {
        "logit_bias": params.logit_bias, "allowed_token_ids": params.allowed_token_ids or (),
        "stop_token_ids": params.stop_token_ids,
    }  # fmt: skip
    for name, ids in named.items():
        if (bad := next((i for i in ids if not 0 <= i < vocab_size), None)) is not None:
            raise RequestError(
                f"token id {bad} in {name} is outside the vocabulary of {vocab_size}", "Use ids of this model"
            )
    penalties = params.repetition_penalty, params.frequency_penalty, params.presence_penalty
    punishes = penalties != (1.0, 0.0, 0.0)
    if not (punishes or params.logit_bias or params.allowed_token_ids or params.bad_words or params.min_tokens):
        return None
    return LogitsRules(
        allowed=None if params.allowed_token_ids is None else torch.tensor(sorted(set(params.allowed_token_ids))),
        bad_words=bad_word_ids(params.bad_words, tokenizer),
        min_tokens=params.min_tokens,
        ends=torch.tensor(sorted({*end_token_ids, *params.stop_token_ids}), dtype=torch.int64),
        biased=torch.tensor(list(params.logit_bias), dtype=torch.int64),
        bias=torch.tensor(list(params.logit_bias.values()), dtype=torch.float32).clamp_(-MAX_BIAS, MAX_BIAS),
        penalties=penalties if punishes else None,
    )


def bad_word_ids(words: Rows[str], tokenizer: Tokenizer | None) -> tuple[tuple[int, ...], ...]:
    """Tokens of words at a text's beginning and after a space, in order and without repetitions.

    vLLM leaves the spaced form out where it has another number of tokens; a word could then be generated after all,
    so here it is kept.

    Raises:
        RequestError: there is no tokenizer, or a word has no tokens.
    """
    if words and tokenizer is None:
        raise RequestError(f"bad_words {tuple(words)} need a tokenizer", "Use logit_bias of -100 for token ids")
    found: dict[tuple[int, ...], None] = {}
    for word in words:
        assert tokenizer is not None, "checked above"
        forms = [tuple(tokenizer.encode(prefix + word.lstrip())) for prefix in ("", " ")]
        if not forms[0]:
            raise RequestError(f"the bad word {word!r} has no tokens", "Leave it out")
        found |= dict.fromkeys(form for form in forms if form)
    return tuple(found)


def process(logits: Tensor, rows: Rows[Sequence]) -> list[int]:
    """Change logits in place as their rows ask.

    Args:
        logits: [R, V] float32, finite.
        rows: R of them.

    Returns:
        The rows of which no token is left; their logits are minus infinity.
    """
    forbidding = []
    for i, row in enumerate(rows):
        rules = row.logits_rules
        if row.constraint is not None:
            logits[i].masked_fill_(~_bits(row.constraint.mask(), logits), FORBIDDEN)
            forbidding.append(i)
        if rules is not None and (rules.allowed is not None or rules.bad_words or rules.min_tokens):
            rules.forbid(logits[i], row)
            forbidding.append(i)
    empty = [i for i in dict.fromkeys(forbidding) if logits[i].amax().item() == FORBIDDEN]
    for i, row in enumerate(rows):
        rules = row.logits_rules
        if rules is not None and len(rules.biased):
            logits[i].index_add_(0, rules.biased.to(logits.device), rules.bias.to(logits.device))
    _punish(logits, [(i, r, r.logits_rules) for i, r in enumerate(rows) if r.logits_rules is not None])
    return empty


def forced_first_token(logits: Tensor, rows: Rows[Sequence], token_id: int | None) -> Tensor:
    """Leave nothing but a model's forced first token where a sequence has said nothing.

    Args:
        logits: [R, V] float32; not changed.
        rows: R sequences.
        token_id: None forces nothing.
    """
    silent = [i for i, row in enumerate(rows) if row.num_output_tokens == 0] if token_id is not None else []
    if silent:
        logits = logits.clone()
        logits[silent] = -1e9  # finite: log-probabilities are reported as JSON, which has no infinity
        logits[silent, token_id] = 0.0
    return logits


def _bits(mask: Tensor, logits: Tensor) -> Tensor:
    """[ceil(V/32)] int32 -> [V] bool; what a mask is too short to name is not allowed."""
    bits = np.unpackbits(mask.numpy().view(np.uint8), count=logits.shape[-1], bitorder="little")
    return torch.from_numpy(bits.view(np.bool_)).to(logits.device)


def _punish(logits: Tensor, ruled: Rows[tuple[int, Sequence, LogitsRules]]) -> None:
    """Repetition, frequency and presence penalty, for all rows that ask in one pass over what they hold."""
    parts: list[tuple[NDArray[Any], ...]] = []
    for i, row, rules in ruled:
        if rules.penalties is None:
            continue
        token_ids, generated = rules.counts.of(row)
        repetition, frequency, presence = rules.penalties
        taken = frequency * generated + presence * (generated > 0)
        parts.append((token_ids + i * logits.shape[-1], np.full(len(token_ids), repetition), taken))
    if not parts:
        return
    places, repetitions, losses = (np.concatenate(column) for column in zip(*parts, strict=True))
    flat, at = logits.view(-1), torch.from_numpy(places).to(logits.device)
    factor, loss = (torch.from_numpy(x).to(logits.device, torch.float32) for x in (repetitions, losses))
    score = flat[at]
    flat[at] = torch.where(score > 0, score / factor, score * factor) - loss
