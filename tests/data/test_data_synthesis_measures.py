"""What synthesis measures texts by: words changed by EDA, ROUGE-L as published, MinHash for large pools."""

from collections import Counter
from random import Random

import pytest

from lmworks.data.synthesis.eda import OPERATIONS, EdaConfig, augment
from lmworks.data.synthesis.novelty import NoveltyConfig, Pool, rouge_l

WORDS = [f"w{n}" for n in range(20)]
SYNONYMS = {f"w{n}": (f"s{n}",) for n in range(0, 20, 2)}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_eda_changes_as_many_words_as_it_says(operation):
    settings = EdaConfig(alpha=0.2, synonyms=SYNONYMS)
    changed = augment(" ".join(WORDS), operation, Random(3), settings).split()
    before, after = Counter(WORDS), Counter(changed)
    gone, new = before - after, after - before
    if operation == "synonym_replacement":
        assert {f"s{word[1:]}" for word in gone} == set(new)
        assert gone.total() == 4
    elif operation == "random_insertion":
        assert not gone
        assert new.total() == 4
    elif operation == "random_swap":
        assert before == after
        assert 2 <= sum(a != b for a, b in zip(WORDS, changed, strict=True)) <= 8
    else:
        assert not new
        assert [word for word in WORDS if word in changed] == changed
        assert len(changed) == 16
    assert changed == augment(" ".join(WORDS), operation, Random(3), settings).split()
    assert augment("x", operation, Random(0), EdaConfig()) == "x"
    assert augment(" ", operation, Random(0), EdaConfig()) == " "
    assert set(augment("描述河流", operation, Random(0), EdaConfig())) <= set("描述河流")


def test_rouge_l_is_the_published_scorers():
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"])
    random = Random(0)
    for _ in range(200):
        one, other = (
            " ".join(random.choices(["a", "b", "c", "dog", "Cat,", "x1."], k=random.randrange(12))) for _ in range(2)
        )
        assert rouge_l(one, other) == pytest.approx(scorer.score(one, other)["rougeL"].fmeasure, abs=1e-12)
    assert rouge_l("我爱北京", "我爱上海") == 0.5


def test_minhash_finds_what_is_nearly_the_same():
    pool = Pool(NoveltyConfig(measure="minhash", threshold=0.6))
    text = "Explain to a child of eight years how a bridge carries the weight of a train without falling"
    assert pool.like(text) is None
    pool.add("a", "Something about painting walls in bright colors before winter comes to the north")
    pool.add("b", text)
    assert pool.like(text + " down") is not None
    assert pool.like(text + " down")[0] == "b"
    assert pool.like("A wholly different question about the taste of soup and the price of salt") is None
