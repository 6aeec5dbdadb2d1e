"""From logits to tokens, every row by its own request's parameters, in vLLM's order of operations.

The order is: log-probabilities of the raw logits; what `logits_processors` does; greedy rows end here; temperature;
what `truncation` cuts; one draw.

A draw inverts the cumulative distribution at a number that is a function of the request's seed, the completion
and the place of the token. It depends on nothing else, so the same request gives the same answer alone, in any
batch, after preemption, and when tokens are guessed ahead. Knows no cache.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows
from hashlib import blake2b

import torch
from torch import Tensor

from lmworks.core.errors import RequestError
from lmworks.core.generation import TokenLogprob
from lmworks.engine.decoding.logits_processors import process
from lmworks.engine.decoding.truncation import draw
from lmworks.engine.scheduling.sequence import Sequence
from lmworks.kernels.row_argmax import row_argmax

MIN_TEMPERATURE = 1e-2
"""Lower positive temperatures are raised to this, as in vLLM: logits would overflow."""

HELD = 2**18
"""So many probabilities are computed at a time: they stay in a core's cache, and a long prompt's fit into memory."""

Sampled = tuple[int, TokenLogprob | None]
"""A token, and its log-probability if asked for."""


@torch.inference_mode()
def sample(logits: Tensor, rows: Rows[Sequence]) -> list[Sampled | RequestError]:
    """Choose the next token of each row.

    Args:
        logits: [R, V] float32, without NaN or positive infinity; not changed.
        rows: R sequences, no two the same.

    Returns:
        Per row what was chosen, or why nothing can be: its parameters forbid every token.
    """
    ruled = [i for i, row in enumerate(rows) if row.logits_rules is not None or row.constraint is not None]
    if not ruled:
        return _with_logprobs(logits, _choose(logits, rows).tolist(), rows)
    asking = [rows[i] for i in ruled]
    changed = logits[ruled]
    empty = process(changed, asking)
    changed[empty] = 0  # drawn from like any other, and then thrown away
    chosen = [0] * len(rows)
    plain = [i for i, row in enumerate(rows) if row.logits_rules is None and row.constraint is None]
    for places, tokens in (
        (ruled, _choose(changed, asking)),
        (plain, _choose(logits[plain], [rows[i] for i in plain]) if plain else torch.empty(0)),
    ):
        for place, token in zip(places, tokens.tolist(), strict=True):
            chosen[place] = token
    results: list[Sampled | RequestError] = [*_with_logprobs(logits, chosen, rows)]
    for i in empty:
        results[ruled[i]] = _nothing_left(asking[i])
    return results


def prompt_logprobs(logits: Tensor, targets: Rows[int], count: int) -> list[TokenLogprob]:
    """Log-probabilities of given tokens.

    Args:
        logits: [T, V] float32, raw, each before its target.
        targets: T tokens.
        count: alternatives to tell.

    Returns:
        One per target, in nats.
    """
    few = max(1, HELD // logits.shape[-1])
    result: list[TokenLogprob] = []
    for begin in range(0, len(targets), few):
        logprobs = logits[begin : begin + few].log_softmax(-1)
        tokens = targets[begin : begin + few]
        own = logprobs.gather(-1, torch.tensor(tokens, device=logits.device)[:, None]).flatten().tolist()
        values, ids = logprobs.topk(min(count, logits.shape[-1]))
        tops = (tuple(zip(i, v, strict=True)) for i, v in zip(ids.tolist(), values.tolist(), strict=True))
        result += map(TokenLogprob, tokens, own, tops)
    return result


def uniform(seed: int, index: int, place: int) -> float:
    """A number in [0, 1): a function of a request's seed, the completion and the token's place in it."""
    digest = blake2b(f"{seed}:{index}:{place}".encode(), digest_size=6).digest()
    return int.from_bytes(digest, "little") * 2.0**-48


def _choose(logits: Tensor, rows: Rows[Sequence]) -> Tensor:
    """[R, V] final logits -> [R] tokens."""
    drawn = [i for i, row in enumerate(rows) if row.params.temperature > 0]
    if not drawn:
        return row_argmax(logits)
    if len(drawn) == len(rows):
        return _draw(logits, rows)
    tokens = row_argmax(logits)
    tokens[drawn] = _draw(logits[drawn], [rows[i] for i in drawn])
    return tokens


def _draw(logits: Tensor, rows: Rows[Sequence]) -> Tensor:
    """[R, V], all rows with a positive temperature -> [R] tokens."""
    few = max(1, HELD // logits.shape[-1])
    parts = [slice(begin, begin + few) for begin in range(0, len(rows), few)]
    return torch.cat([_draw_few(logits[part], rows[part]) for part in parts])


def _draw_few(logits: Tensor, rows: Rows[Sequence]) -> Tensor:
    temperature = logits.new_tensor([max(row.params.temperature, MIN_TEMPERATURE) for row in rows])
    numbers = torch.tensor(
        [uniform(row.seed, row.index, row.num_output_tokens) for row in rows],
        dtype=torch.float64,
        device=logits.device,
    )
    return draw((logits / temperature[:, None]).softmax(-1), [row.params for row in rows], numbers)


def _with_logprobs(logits: Tensor, chosen: list[int], rows: Rows[Sequence]) -> list[Sampled | RequestError]:
    """Tokens beside their log-probabilities by the raw logits, for the rows that ask."""
    asking: dict[int, list[int]] = {}
    for i, row in enumerate(rows):
        if row.params.logprobs is not None:
            asking.setdefault(row.params.logprobs, []).append(i)
    logprobs: list[TokenLogprob | None] = [None] * len(rows)
    for count, places in asking.items():
        asked = prompt_logprobs(logits[places], [chosen[i] for i in places], count)
        for i, logprob in zip(places, asked, strict=True):
            logprobs[i] = logprob
    return list(zip(chosen, logprobs, strict=True))


def _nothing_left(row: Sequence) -> RequestError:
    given = [name for name in ("min_tokens", "allowed_token_ids", "bad_words") if getattr(row.params, name)]
    given += [] if row.constraint is None else ["structured_outputs"]
    return RequestError(
        f"after {row.num_output_tokens} tokens no token may come next: {', '.join(given)} together forbid all",
        "Loosen one of them",
    )
