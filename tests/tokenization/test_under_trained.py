"""Entries a model hardly met: planted rows are found by the company they keep, and only then."""

import numpy as np

from lmworks.tokenization.compare import compare
from lmworks.tokenization.definition import TokenizerDefinition, added_token
from lmworks.tokenization.tokenizer import Tokenizer
from lmworks.tokenization.under_trained import under_trained


def head(rows: int, untrained: list[int], seed: int = 0) -> np.ndarray:
    """Trained rows point anywhere; untrained ones all the same way, whatever their length."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(rows, 32)).astype(np.float32) + 3  # a direction that all have in common
    common = rng.normal(size=32)
    for i in untrained:
        values[i] = 3 + common * rng.uniform(0.5, 2) + rng.normal(size=32) * 0.02
    return values


def test_planted_rows_are_found_whatever_else_is_suspected():
    planted = [3, 40, 77, 150, 199]
    assert sorted(under_trained(head(200, planted), [40, 77, 10, 11, 12])) == planted


def test_without_unused_tokens_side_by_side_nothing_is_said():
    values = head(200, [3, 40, 77])
    assert under_trained(values, [40, 10, 11, 12]) is None
    assert under_trained(values, []) is None
    assert under_trained(np.zeros((50, 8), np.float32), [1, 2, 3]) is None


def test_a_comparison_names_ordinary_entries_alone(tokenizer):
    definition = tokenizer.definition
    reserved = [added_token(tokenizer.vocab_size + n, f"<|reserved_{n}|>") for n in range(3)]
    spec = {**definition.spec, "added_tokens": [*definition.spec["added_tokens"], *reserved]}
    wider = Tokenizer(TokenizerDefinition(spec, definition.config))
    glitches = [tokenizer.encode(word)[0] for word in ("x", "q")]
    values = head(wider.vocab_size + 5, [*glitches, *(t["id"] for t in reserved), *range(wider.vocab_size, 405)])
    figures = compare({"a": wider}, {"en": ["a text"]}, {"a": values}).vocabularies["a"]
    assert figures.under_trained == 2
    assert set(figures.under_trained_examples) == {"x", "q"}
    assert compare({"a": wider}, {"en": ["a text"]}).vocabularies["a"].under_trained is None
