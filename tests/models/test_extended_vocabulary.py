"""New rows of a vocabulary: means of old ones; what the model says of old tokens stays, bit by bit."""

import pytest
import torch

from lmworks.core.errors import ConfigError
from lmworks.models.build import build_model
from lmworks.models.config import ModelConfig
from lmworks.models.extended_vocabulary import extend_vocabulary
from lmworks.models.hub import load_pretrained, save_pretrained
from lmworks.nn.attention_context import PackedContext

VALUES = {
    "family": "llama", "vocab_size": 50, "hidden_size": 32, "max_position_embeddings": 64,
    "decoder": {
        "num_hidden_layers": 2,
        "attention": {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8},
        "mlp": {"intermediate_size": 48},
    },
}  # fmt: skip
PIECES = {50: (3, 4), 51: (7,), 53: (1, 2, 2)}


def logits(model, ids):
    context = PackedContext(torch.tensor([0, len(ids)], dtype=torch.int32))
    with torch.no_grad():
        return model.logits(model(ids, torch.arange(len(ids)), context))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("multiple_of", [1, 64])
def test_old_tokens_keep_their_logits(tmp_path, tied, multiple_of):
    model = build_model(ModelConfig.parse({**VALUES, "tie_word_embeddings": tied}), seed=0)
    old = model.embed_tokens.weight.detach().clone()
    head = model.lm_head.weight.detach().clone()
    ids = torch.arange(20)
    before = logits(model, ids)
    extend_vocabulary(model, PIECES, multiple_of)
    rows = 54 if multiple_of == 1 else 64
    assert model.config.vocab_size == len(model.embed_tokens.weight) == rows
    assert (model.lm_head.weight is model.embed_tokens.weight) == tied
    after = logits(model, ids)
    assert after.shape == (20, rows)
    torch.testing.assert_close(after[:, :50], before, rtol=0, atol=1e-6)
    assert torch.equal(model.embed_tokens.weight[:50], old)
    for new, parts in PIECES.items():
        torch.testing.assert_close(model.embed_tokens.weight[new], old[list(parts)].mean(0))
        torch.testing.assert_close(model.lm_head.weight[new], head[list(parts)].mean(0))
    # The mean of rows gives the mean of logits.
    torch.testing.assert_close(after[:, 50], before[:, [3, 4]].mean(1))
    save_pretrained(model, tmp_path)
    torch.testing.assert_close(logits(load_pretrained(tmp_path), ids), after)


def test_spare_rows_of_a_padded_table_are_used():
    model = build_model(ModelConfig.parse(VALUES), seed=0)
    old = model.embed_tokens.weight.detach().clone()
    extend_vocabulary(model, {48: (1, 2), 49: (3,)})
    assert model.config.vocab_size == 50
    assert torch.equal(model.embed_tokens.weight[:48], old[:48])
    assert torch.equal(model.embed_tokens.weight[49], old[3])


@pytest.mark.parametrize(
    ("pieces", "message"), [({50: (50,)}, r"\[50\]"), ({50: (99,)}, r"\[99\]"), ({50: ()}, "no pieces")]
)
def test_pieces_that_are_not_old_tokens_are_refused(pieces, message):
    with pytest.raises(ConfigError, match=message):
        extend_vocabulary(build_model(ModelConfig.parse(VALUES), seed=0), pieces)
