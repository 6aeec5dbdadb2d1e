"""Masked language modeling: what is chosen and what becomes of it, against transformers; the loss by its formula."""

import numpy as np
import pytest
import torch
import transformers
from objective_case import MASKED_LM, TYPED, assert_same_gradients, cross_entropies, documents, model

from lmworks.core.errors import ConfigError
from lmworks.nn.attention_context import PackedContext
from lmworks.objectives.draws import Draws
from lmworks.objectives.masked_lm import MaskingConfig, choose_tokens, corrupt, mask_documents, masked_lm

CONFIG = MaskingConfig(mask_token_id=4, vocab_size=61, special_token_ids=(0, 1, 2, 3))


def test_the_loss_is_that_of_the_chosen_tokens():
    encoder = model("encoder", MASKED_LM, **TYPED)
    batch = mask_documents(documents(9, 30, 4), Draws(0, 0), CONFIG)
    assert batch.loss_weights.sum() == 1 + 4 + 1  # rounded shares, one at least
    loss = masked_lm(encoder, batch)
    hidden = encoder(batch.input_ids, batch.positions, PackedContext(batch.cu_seqlens))
    wanted = cross_entropies(encoder, hidden, batch.targets)[batch.loss_weights > 0].sum()
    torch.testing.assert_close(loss.loss_sum, wanted, rtol=1e-5, atol=1e-5)
    assert loss.n_targets == 6
    assert_same_gradients(encoder, loss.loss_sum, wanted)


def test_what_is_not_chosen_stays_and_marks_are_never_chosen():
    ids = np.concatenate([[1], *documents(40), [2, 2, 3]])
    for row in range(50):
        batch = mask_documents([ids], Draws(0, row), CONFIG)
        chosen = batch.loss_weights.bool().numpy()
        assert chosen.sum() == 6
        assert not chosen[[0, -1, -2, -3]].any()
        assert (batch.input_ids.numpy()[~chosen] == ids[~chosen]).all()
        assert (batch.targets.numpy() == ids).all()


def shares(inputs, labels, chosen):
    """Of the tokens: chosen; of the chosen: masked, kept."""
    masked = (inputs == 4) & chosen
    return [chosen.mean(), masked.sum() / chosen.sum(), ((inputs == labels) & chosen).sum() / chosen.sum()]


def test_shares_are_those_of_transformers():
    ids = np.stack(documents(*[200] * 60))
    batch = mask_documents(list(ids), Draws(1, 0), CONFIG)
    ours = shares(batch.input_ids.numpy(), batch.targets.numpy(), batch.loss_weights.bool().numpy())
    vocabulary = {f"t{i}": i for i in range(61)} | {"[MASK]": 4}
    del vocabulary["t4"]
    tokenizer = _tokenizer(vocabulary)
    collator = transformers.DataCollatorForLanguageModeling(tokenizer, seed=0)
    out = collator([{"input_ids": row.tolist(), "special_tokens_mask": [0] * 200} for row in ids])
    labels = out["labels"].numpy()
    theirs = shares(out["input_ids"].numpy(), ids, labels != -100)
    for mine, other, deviation in zip(ours, theirs, (0.0033, 0.0094, 0.0071), strict=True):
        assert abs(mine - other) < 5 * deviation, (ours, theirs)
    assert ours[0] == 0.15


def _tokenizer(vocabulary):
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    backend = Tokenizer(WordLevel(vocabulary, unk_token="t0"))
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, mask_token="[MASK]", pad_token="t0", unk_token="t0"
    )


def test_words_are_chosen_whole():
    continues = np.zeros(61, np.bool_)
    continues[30:] = True
    ids = np.concatenate([[1], *documents(120, vocab=61), [2]])
    words = np.cumsum(~continues[ids])
    sizes = []
    for row in range(40):
        chosen = choose_tokens(ids, Draws(0, row), CONFIG, continues)
        for word in np.unique(words[chosen]):
            own = (words == word) & ~np.isin(ids, CONFIG.special_token_ids)
            assert chosen[own].all()
        sizes.append(chosen.sum())
    assert max(sizes) == 18  # 15 % of 120, never more
    assert np.mean(sizes) > 16


def test_a_word_does_not_go_on_across_a_mark():
    continues = np.ones(61, np.bool_)
    ids = np.array([10, 11, 2, 12, 13])  # all continue, so there are two words: before and after the mark
    config = CONFIG.model_copy(update={"mlm_probability": 0.5})
    seen = {tuple(choose_tokens(ids, Draws(0, row), config, continues)) for row in range(30)}
    assert seen == {(True, True, False, False, False), (False, False, False, True, True)}


def test_a_document_of_marks_alone_has_no_target():
    batch = mask_documents([np.array([1, 2])], Draws(0, 0), CONFIG)
    assert batch.loss_weights.sum() == 0
    assert batch.input_ids.tolist() == [1, 2]


@pytest.mark.parametrize(("mask", "other"), [(1.0, 0.0), (0.0, 1.0), (0.0, 0.0)])
def test_shares_at_their_ends(mask, other):
    config = CONFIG.model_copy(update={"mask_replace_prob": mask, "random_replace_prob": other})
    ids = np.full(4000, 50)
    corrupted = corrupt(ids, np.ones(4000, np.bool_), Draws(0, 0), config)
    if mask:
        assert (corrupted == 4).all()
    elif other:
        assert np.bincount(corrupted, minlength=61).min() > 30  # of 65
    else:
        assert (corrupted == 50).all()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"mask_token_id": 61}, "outside the vocabulary of 61"),
        ({"mask_replace_prob": 0.95}, "must not exceed 1"),
        ({"mlm_probability": 0.0}, "mlm_probability"),
        ({"mlm_probabilty": 0.1}, "did you mean 'mlm_probability'"),
    ],
)
def test_impossible_configurations_are_named(changes, named):
    with pytest.raises(ConfigError, match=named):
        MaskingConfig.parse({"mask_token_id": 4, "vocab_size": 61} | changes)
