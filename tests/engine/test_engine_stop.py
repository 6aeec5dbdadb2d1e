"""Where completions end, and what of their text is shown when."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_engine import BOS, FIRST_BYTE, IM_END, byte_tokenizer

from lmworks.core.sampling import SamplingParams
from lmworks.engine.request import Request
from lmworks.engine.sequence import Sequence, Status
from lmworks.engine.stop import StopChecker

TOKENIZER = byte_tokenizer()


def run(token_ids, stop=(), max_tokens=1000, **params):
    """Feed tokens until the end; the pieces shown, and the reason."""
    request = Request("r", (BOS,), SamplingParams(stop=tuple(stop), **params))
    s = Sequence(request, 0, (BOS,), max_tokens)
    s.status, s.num_computed_tokens = Status.RUNNING, 1
    checker = StopChecker(s, frozenset({BOS, IM_END}), TOKENIZER)
    pieces = []
    for token in token_ids:
        s.append(token)
        s.num_computed_tokens += 1
        text, reason = checker.add(token)
        pieces.append(text)
        if reason:
            return pieces, reason
    return [*pieces, checker.abort()], "abort"


def test_stop_string_across_tokens_is_never_shown():
    pieces, reason = run(TOKENIZER.encode("one\nUser: two"), stop=["\nUser:"])
    assert ("".join(pieces), reason) == ("one", "stop")
    assert pieces[:3] == ["o", "n", "e"], "text that cannot begin the stop string is shown at once"


def test_text_held_back_in_vain_is_shown():
    pieces, reason = run([*TOKENIZER.encode("a\nUs"), IM_END], stop=["\nUser:"])
    assert ("".join(pieces), reason) == ("a\nUs", "stop")


def test_stop_string_that_is_complete_first_wins():
    pieces, _ = run(TOKENIZER.encode("abcdef"), stop=["ef", "cd", "cde"])
    assert "".join(pieces) == "ab"
    pieces, _ = run(TOKENIZER.encode("abcdef"), stop=["abcde", "cd"])
    assert "".join(pieces) == "ab"


@pytest.mark.parametrize(
    ("params", "expected"),
    [({}, ("x", "stop")), ({"ignore_eos": True}, ("xy", "abort")), ({"stop_token_ids": (FIRST_BYTE,)}, ("x", "stop"))],
)
def test_end_tokens(params, expected):
    tokens = [*TOKENIZER.encode("x"), params.get("stop_token_ids", (IM_END,))[0], *TOKENIZER.encode("y")]
    pieces, reason = run(tokens, **params)
    assert ("".join(pieces), reason) == expected


def test_length_shows_everything_that_is_left():
    pieces, reason = run(TOKENIZER.encode("abc"), stop=["cd"], max_tokens=3)
    assert ("".join(pieces), reason) == ("abc", "length")


def test_characters_of_several_bytes_come_whole_and_a_broken_one_at_the_end_is_replaced():
    pieces, _ = run(TOKENIZER.encode("é👩")[:-1], max_tokens=5)
    assert pieces == ["", "é", "", "", "\ufffd"]


@settings(max_examples=200, deadline=None)
@given(
    text=st.text("abé", max_size=30),
    stop=st.lists(st.text("abé", min_size=1, max_size=4), max_size=3),
    max_tokens=st.integers(1, 40),
)
def test_shown_text_is_the_text_up_to_the_first_stop_string(text, stop, max_tokens):
    tokens = TOKENIZER.encode(text)
    pieces, reason = run([*tokens, IM_END], stop, max_tokens)
    whole = TOKENIZER.decode(tokens[:max_tokens])
    # The first end of a stop string, and its earliest beginning there.
    hits = [(e, b) for e in range(len(whole) + 1) for b in range(e) if whole[b:e] in stop]
    at = min(hits)[1] if hits else None
    assert "".join(pieces) == whole[:at]
    assert reason == ("stop" if at is not None or len(tokens) < max_tokens else "length")
