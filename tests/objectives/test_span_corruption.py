"""Span corruption and UL2: what is hidden and said again, lengths against T5's rule, and that nothing is lost."""

import collections

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from objective_case import documents

from lmworks.core.errors import ConfigError
from lmworks.objectives.draws import Draws
from lmworks.objectives.span_corruption import SpanCorruptionConfig, draw_spans, hide_spans, span_corruption, span_sizes
from lmworks.objectives.ul2 import UL2_DENOISERS, Denoiser, UL2Config, ul2

SENTINELS = tuple(range(999, 899, -1))
CONFIG = SpanCorruptionConfig(sentinel_token_ids=SENTINELS, eos_token_id=1)


def put_together(pair, sentinels=SENTINELS, eos=1):
    """The document that a pair was made of."""
    source, target = pair.source.tolist(), pair.target.tolist()
    assert source.pop() == target.pop() == eos
    spans, current = {}, None
    for token in target:
        if token in sentinels:
            current = spans.setdefault(token, [])
        else:
            current.append(token)
    assert list(spans) == [t for t in source if t in sentinels] == list(sentinels[: len(spans)])
    return [t for token in source for t in spans.get(token, [token])]


def test_by_hand():
    ids = np.arange(10, 20)
    hidden = np.isin(np.arange(10), [2, 3, 7, 9])
    source, target = hide_spans(ids, hidden, SENTINELS, 1)
    assert source.tolist() == [10, 11, 999, 14, 15, 16, 998, 18, 997, 1]
    assert target.tolist() == [999, 12, 13, 998, 17, 997, 19, 1]


@settings(max_examples=60, deadline=None)
@given(length=st.integers(2, 90), density=st.floats(0.05, 0.95), mean=st.floats(1, 10), row=st.integers(0, 9))
def test_nothing_is_lost_and_lengths_are_known(length, density, mean, row):
    [ids] = documents(length, seed=row)
    config = CONFIG.model_copy(update={"noise_density": density, "mean_noise_span_length": mean})
    [pair] = span_corruption([ids], Draws(0, row), config)
    tokens, spans = span_sizes(length, density, mean)
    assert put_together(pair) == ids.tolist()
    assert len(pair.source) == length - tokens + spans + 1
    assert len(pair.target) == tokens + spans + 1


def test_lengths_are_t5_s():
    # 568 tokens make the pretraining inputs of 512 and targets of 114 that T5 was trained on, with end marks.
    tokens, spans = span_sizes(568, 0.15, 3.0)
    assert (568 - tokens + spans + 1, tokens + spans + 1) == (512, 114)


def test_every_division_is_equally_likely():
    counts = collections.Counter(tuple(draw_spans(6, Draws(0, row), 0.5, 1.5)) for row in range(4000))
    # Three kept in two parts (2 ways), three hidden in two parts (2 ways).
    assert len(counts) == 4
    assert max(abs(n - 1000) for n in counts.values()) < 140


def test_too_few_sentinels_are_named():
    config = SpanCorruptionConfig(sentinel_token_ids=(9, 8))
    with pytest.raises(ConfigError, match="a document of 80 tokens has 4 hidden spans, and there are 2 sentinels"):
        span_corruption(documents(80), Draws(0, 0), config)


def test_single_tokens_are_left_out():
    assert len(span_corruption(documents(1, 5, 1), Draws(0, 0), CONFIG)) == 1
    assert len(ul2(documents(1, 5, 1), Draws(0, 0), MIXTURE)) == 1


MODES = {"R": 2, "S": 3, "X": 4}
MIXTURE = UL2Config(sentinel_token_ids=SENTINELS, mode_token_ids=MODES, eos_token_id=1)


def test_ul2_announces_and_mixes_the_seven_denoisers():
    lengths, modes = collections.defaultdict(list), []
    for row in range(1400):
        [ids] = documents(200, seed=row)
        [pair] = ul2([ids], Draws(0, row), MIXTURE)
        mode = int(pair.source[0])
        modes.append(mode)
        assert put_together(pair._replace(source=pair.source[1:])) == ids.tolist()
        sentinels = int(np.isin(pair.target, SENTINELS).sum())
        lengths[mode].append((len(pair.target) - 1 - sentinels, sentinels))
        if mode == 3:
            assert sentinels == 1
            assert pair.source[-2:].tolist() == [999, 1]  # all that is hidden stands at the end
    shares = np.bincount(modes, minlength=5)[2:] / 1400
    assert abs(shares - np.array([2, 1, 4]) / 7).max() < 0.066
    assert {(tokens, spans) for tokens, spans in lengths[2]} == {(30, 10), (30, 4)}
    assert {(tokens, spans) for tokens, spans in lengths[4]} == {(100, 33), (100, 12), (30, 1), (100, 2)}
    suffixes = [tokens for tokens, _ in lengths[3]]
    assert min(suffixes) >= 1
    assert max(suffixes) <= 100
    assert abs(np.mean(suffixes) - 50.5) < 10.3  # five deviations


def test_weights_choose_among_denoisers():
    config = MIXTURE.model_copy(
        update={"denoisers": (Denoiser(mode="R", noise_density=0.15, weight=3), Denoiser(mode="S", noise_density=0.25))}
    )
    modes = [int(ul2(documents(20), Draws(0, row), config)[0].source[0]) for row in range(2000)]
    assert abs(modes.count(2) / 2000 - 0.75) < 0.05


def test_without_mode_tokens_the_source_begins_with_the_document():
    config = UL2Config(sentinel_token_ids=SENTINELS, mode_token_ids={}, eos_token_id=1)
    [ids] = documents(50)
    for row in range(10):
        [pair] = ul2([ids], Draws(0, row), config)
        assert put_together(pair) == ids.tolist()


@pytest.mark.parametrize("length", [2, 3])
@pytest.mark.parametrize("denoiser", UL2_DENOISERS)
def test_the_shortest_documents(length, denoiser):
    [ids] = documents(length)
    for row in range(10):
        [pair] = ul2([ids], Draws(0, row), MIXTURE.model_copy(update={"denoisers": (denoiser,)}))
        assert put_together(pair._replace(source=pair.source[1:])) == ids.tolist()


def test_a_mode_without_a_token_is_named():
    with pytest.raises(ConfigError, match=r"mode_token_ids lacks \['S', 'X'\]"):
        UL2Config.parse({"sentinel_token_ids": [9], "mode_token_ids": {"R": 2}})
