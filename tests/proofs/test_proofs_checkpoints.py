"""Published checkpoints hold what `lmworks prove checkpoints` bounds, and its measures see planted mistakes."""

import copy
from types import SimpleNamespace

import pytest
import torch

from lmworks.models.hub import save_pretrained
from lmworks.proofs import checkpoints
from lmworks.proofs.parity import PROMPTS, ChatModel, load_reference
from lmworks.proofs.tiny import random_tokens, tiny_model


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_proofs_hold():
    rows = checkpoints.prove()
    assert len(rows) == 5
    for row in rows:
        assert row.ok, row


class Bytes:
    """A tokenizer of 64 tokens without a template."""

    def encode_chat(self, messages, *, add_generation_prompt):
        return SimpleNamespace(token_ids=[ord(c) % 64 for c in messages[0].content])


@pytest.fixture
def model(tmp_path):
    ours = tiny_model("llama")
    save_pretrained(ours, tmp_path)
    return ChatModel(Bytes(), ours, load_reference(str(tmp_path)))


def test_measures_see_other_weights(model):
    ids = random_tokens(60, 1)
    ours, theirs = checkpoints.perplexities(model, ids)
    assert ours == pytest.approx(theirs, rel=1e-5)
    assert model.greedy_row(PROMPTS[:3]).ok
    other = copy.deepcopy(model.ours)
    with torch.no_grad():
        other.decoder.layers[1].self_attn.v_proj.weight[3] += 0.5
    broken = ChatModel(model.tokenizer, other, model.theirs)
    assert abs(checkpoints.perplexities(broken, ids)[0] / theirs - 1) > 1e-3
    assert not broken.greedy_row(PROMPTS[:3]).ok


def test_measures_see_other_vectors():
    theirs = torch.randn(20, 8)
    assert all(row.ok for row in checkpoints.vector_rows(3 * theirs, theirs))
    turned = theirs.clone()
    turned[4] = -turned[4]
    assert not any(row.ok for row in checkpoints.vector_rows(turned, theirs))
    assert not checkpoints.vector_rows(theirs.fill_(torch.nan), theirs)[0].ok


def test_texts_are_different_and_of_many_lengths():
    texts = checkpoints.SENTENCES
    assert len(texts) + checkpoints.ARTICLES >= 50
    assert len(set(texts)) == len(texts)
    assert len(set(PROMPTS)) == len(PROMPTS) == 20
    assert min(map(len, texts)) == 1
    assert max(len(t.split()) for t in texts) > 256, "one is cut"
