"""Where completions end, and what of their text is shown when."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_engine import BOS, FIRST_BYTE, IM_END, IM_START, byte_tokenizer

from lmworks.core.sampling import SamplingParams
from lmworks.engine.decoding.stop import StopChecker
from lmworks.engine.request import Request
from lmworks.engine.scheduling.sequence import Sequence, Status

TOKENIZER = byte_tokenizer()


def run(token_ids, stop=(), max_tokens=1000, **params):
    """Feed tokens until the end; the pieces shown, and the reason."""
    pieces, reason, _ = watch(token_ids, stop, max_tokens, **params)
    return pieces, reason


def watch(token_ids, stop=(), max_tokens=1000, **params):
    """As `run`, and what is noted as the sequence's stop reason."""
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
            return pieces, reason, s.stop_reason
    return [*pieces, checker.abort()], "abort", s.stop_reason


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


STOP_ID = TOKENIZER.encode("!")[0]

ENDINGS = {
    "a stop string": ("one<two", {"stop": ["<", "w"]}, "one", "<"),
    "a stop string, shown": ("one<<two", {"stop": ["<<"], "include_stop_str_in_output": True}, "one<<", "<<"),
    "a stop token": ("one!two", {"stop_token_ids": (STOP_ID,)}, "one", STOP_ID),
    "a stop token, shown": ("one!", {"stop_token_ids": (STOP_ID,), "include_stop_str_in_output": True}, "one!",
                            STOP_ID),
    "the end of sequence": ("one", {}, "one", None),
    "the end of sequence, shown": ("one", {"include_stop_str_in_output": True, "skip_special_tokens": False},
                                   "one<|im_end|>", None),
    "a special token to be skipped": ("one", {"include_stop_str_in_output": True}, "one", None),
    "an end of sequence that is asked for too": ("one", {"stop_token_ids": (IM_END,)}, "one", None),
    "a stop token that ignored ends may be": ("one", {"stop_token_ids": (IM_END,), "ignore_eos": True}, "one", IM_END),
}  # fmt: skip


@pytest.mark.parametrize("name", ENDINGS)
def test_what_ended_a_completion_is_told_and_shown_on_request(name):
    text, params, shown, stop_reason = ENDINGS[name]
    pieces, reason, noted = watch([*TOKENIZER.encode(text), IM_END], **params)
    assert ("".join(pieces), reason, noted) == (shown, "stop", stop_reason)


def test_special_tokens_are_shown_on_request():
    tokens = [*TOKENIZER.encode("a"), IM_START, *TOKENIZER.encode("b")]
    assert "".join(run(tokens)[0]) == "ab"
    assert "".join(run(tokens, skip_special_tokens=False)[0]) == "a<|im_start|>b"
    shown, reason = run(tokens, stop=["im_st"], skip_special_tokens=False)
    assert ("".join(shown), reason) == ("a<|", "stop")


@pytest.mark.parametrize(
    ("min_tokens", "shown"),
    [(0, "ab"), (2, "ab"), (3, "ab"), (4, "abcdab"), (6, "abcdab"), (7, "abcdab"), (8, "abcdabcd-")],
)
def test_nothing_stops_before_the_minimum_length(min_tokens, shown):
    """A stop string counts where it ends: with the token after the minimum at the earliest, as in vLLM."""
    pieces, _ = run([*TOKENIZER.encode("abcdabcd-"), IM_END], stop=["cd"], min_tokens=min_tokens)
    assert "".join(pieces) == shown


def test_end_tokens_before_the_minimum_length_do_not_end():
    tokens = [IM_END, *TOKENIZER.encode("a"), IM_END]
    pieces, reason = run(tokens, min_tokens=2)
    assert ("".join(pieces), reason, len(pieces)) == ("a", "stop", 3)


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
    min_tokens=st.integers(0, 20),
    include=st.booleans(),
)
def test_shown_text_is_the_text_up_to_the_first_stop_string(text, stop, max_tokens, min_tokens, include):
    tokens = TOKENIZER.encode(text)
    min_tokens = min(min_tokens, len(tokens))
    pieces, reason = run([*tokens, IM_END], stop, max_tokens, min_tokens=min_tokens, include_stop_str_in_output=include)
    whole = TOKENIZER.decode(tokens[:max_tokens])
    exempt = len(b"".join(map(TOKENIZER.token_bytes, tokens[:min_tokens])).decode("utf-8", "ignore"))
    # The first end of a stop string, and its earliest beginning there.
    hits = [(e, b) for e in range(exempt + 1, len(whole) + 1) for b in range(e) if whole[b:e] in stop]
    at = min(hits)[0 if include else 1] if hits else None
    assert "".join(pieces) == whole[:at]
    assert reason == ("stop" if at is not None or len(tokens) < max_tokens else "length")
