"""Repeated lines, paragraphs and runs are cut together, whatever the order of the rules; firsts stay."""

import itertools
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmworks.data.corpus.prepare import PrepareConfig, prepare
from lmworks.data.deduplication import cuts
from lmworks.data.deduplication.cuts import repeated_parts, union
from lmworks.data.deduplication.fingerprints import DedupConfig
from lmworks.data.deduplication.substrings import Spans, without

LINE = "All rights of this work are reserved."
TEXTS = [
    f"A beginning\n{LINE}\n\nof two paragraphs, the second.",
    f"{LINE}\nNo, of two paragraphs, the secondary.",
    "end",
]


def test_no_rule_cuts_nothing():
    assert not DedupConfig().cuts
    assert repeated_parts(TEXTS, DedupConfig()).texts.tolist() == []


@pytest.mark.parametrize("at_once", [1, 1024])
def test_rules_join(monkeypatch, at_once):
    monkeypatch.setattr(cuts, "_TEXTS_AT_ONCE", at_once)
    config = DedupConfig(lines="first", substring_bytes=20)
    assert config.cuts
    assert without(TEXTS, repeated_parts(iter(TEXTS), config)) == [TEXTS[0], "No, ary.", "end"]
    config = DedupConfig(lines="none", paragraphs="first")
    left = without(TEXTS, repeated_parts(iter(TEXTS), config))
    assert left == [text.replace(LINE + "\n", "") for text in TEXTS]


SPANS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 20), st.integers(1, 6)), max_size=12)


@given(st.lists(SPANS, max_size=3))
def test_a_union_covers_what_its_parts_cover(parts):
    made = [
        Spans(*(np.asarray(column, np.int64) for column in zip(*((t, b, b + n) for t, b, n in part), strict=True)))
        for part in parts
        if part
    ]
    whole = union(*made)
    covered = {(t, place) for part in parts for t, b, n in part for place in range(b, b + n)}
    spans = list(zip(whole.texts.tolist(), whole.begins.tolist(), whole.ends.tolist(), strict=True))
    assert {(t, place) for t, b, e in spans for place in range(b, e)} == covered
    assert spans == sorted(spans)
    assert all(a[0] < b[0] or a[2] < b[1] for a, b in itertools.pairwise(spans))


@pytest.mark.parametrize("keep", ["longest", "first"])
def test_what_is_cut_depends_on_the_order_of_the_inputs_only_where_the_first_is_kept(tmp_path, keep):
    texts = [f"{n} a beginning of its own.\n{LINE}\nAnd {n} to end it." for n in range(9)]
    dedup = {"keep": keep, "near": False, "lines": "first", "substring_bytes": 30}
    found = set()
    for order in (texts, texts[::-1], [*texts[4:], *texts[:4]]):
        (tmp_path / "in.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in order))
        values = {"inputs": [str(tmp_path / "in.jsonl")], "output": str(tmp_path / "c"), "preset": "none"}
        prepare(PrepareConfig.parse({**values, "dedup": dedup, "validation_fraction": 0, "runner": {"workers": 1}}))
        rows = map(json.loads, (tmp_path / "c/train.jsonl").read_text().splitlines())
        found.add(next(row["text"] for row in rows if LINE in row["text"]))
    assert found == ({texts[0], texts[8], texts[4]} if keep == "first" else {next(iter(found))})
