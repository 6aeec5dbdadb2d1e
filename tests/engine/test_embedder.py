"""The embedder gives what sentence-transformers gives, in any batch; folders that ask for more are refused."""

import json

import pytest
import torch
import transformers

from lmworks.core.errors import CheckpointError, ConfigError
from lmworks.core.generation import Embedder as EmbedderProtocol
from lmworks.engine.pooling.embedder import Embedder, EmbedderSettings
from lmworks.models.hub import load_pretrained
from lmworks.tokenization import load_tokenizer

WORDS = [
    "cat",
    "dog",
    "rain",
    "on",
    "the",
    "mat",
    "sat",
    "fell",
    "runs",
    "slowly",
    "and",
    "was",
    "seen",
    "by",
    "nobody",
]
TEXTS = [" ".join(WORDS[i % 7 : i % 7 + 1 + i]) for i in range(12)]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A tiny BERT with its tokenizer."""
    folder = tmp_path_factory.mktemp("bert")
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    transformers.BertTokenizerFast(vocab={w: i for i, w in enumerate(vocabulary)}).save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(vocabulary), hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=32,
        max_position_embeddings=40,
    )  # fmt: skip
    model = transformers.BertModel(config)
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return folder


def pipeline(plain, folder, pooling="mean", **options):
    """A sentence-transformers folder and the model that the library makes of it."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

    transformer = Transformer(str(plain))
    modules = [transformer, Pooling(transformer.get_embedding_dimension(), pooling_mode=pooling)]
    model = SentenceTransformer(
        modules=[*modules, *([Normalize()] if options.pop("normalize", True) else [])], **options
    )
    model.max_seq_length = 10
    model.save(str(folder))
    return model


def load(folder):
    return Embedder.load(folder, load_tokenizer(folder).encode_batch, max_num_batched_tokens=30)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("pooling", "normalize"), [("mean", True), ("cls", False), ("lasttoken", True)])
def test_vectors_are_those_of_sentence_transformers(plain, tmp_path, pooling, normalize):
    theirs = pipeline(plain, tmp_path, pooling, normalize=normalize)
    ours = load(tmp_path)
    assert ours.max_seq_length == 10  # so that some texts are cut
    ids = [ours.surround(e) for e in ours.encode(TEXTS)]
    wanted = torch.tensor(theirs.encode(TEXTS))
    torch.testing.assert_close(ours.embed_token_ids(ids), wanted, rtol=1e-5, atol=1e-5)
    unit = torch.nn.functional.normalize(wanted, dim=-1)
    torch.testing.assert_close(torch.tensor(ours.embed(TEXTS)), unit, rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_prompts_go_before_texts(plain, tmp_path):
    theirs = pipeline(
        plain, tmp_path, prompts={"query": "the cat ", "document": "dog "}, default_prompt_name="document"
    )
    ours = load(tmp_path)
    for name in ("query", None):
        wanted = torch.tensor(theirs.encode(TEXTS, prompt_name=name))
        torch.testing.assert_close(torch.tensor(ours.embed(TEXTS, name)), wanted, rtol=1e-5, atol=1e-5)
    with pytest.raises(ConfigError, match=r"no prompt 'other'.*document, query"):
        ours.embed(TEXTS, "other")


def test_a_plain_folder_is_pooled_by_the_mean(plain):
    ours = load(plain)
    assert isinstance(ours, EmbedderProtocol)
    assert ours.settings.prefix_ids == (2,)
    assert ours.settings.suffix_ids == (3,)
    theirs = transformers.BertModel.from_pretrained(plain).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(plain)
    for text, vector in zip(TEXTS, ours.embed(TEXTS), strict=True):
        with torch.no_grad():
            mean = theirs(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0)
        torch.testing.assert_close(torch.tensor(vector), mean / mean.norm(), rtol=1e-5, atol=1e-5)


def test_no_vector_depends_on_its_neighbors(plain):
    ours = load(plain)
    alone = [ours.embed([t])[0] for t in TEXTS]
    torch.testing.assert_close(torch.tensor(ours.embed(TEXTS)), torch.tensor(alone), rtol=1e-5, atol=1e-6)
    assert ours.embed([]) == []


def test_a_text_that_leaves_no_tokens_is_refused(plain):
    ours = Embedder(load_pretrained(plain), load_tokenizer(plain).encode_batch)
    with pytest.raises(ConfigError, match="document 1 has no tokens"):
        ours.embed(["cat", ""])


def test_texts_are_cut_to_the_models_positions(plain):
    ours = Embedder(load_pretrained(plain), load_tokenizer(plain).encode_batch, EmbedderSettings(suffix_ids=(3,)))
    assert ours.surround([7] * 100) == [7] * 39 + [3]


@pytest.mark.parametrize(
    ("module", "said"),
    [({"type": "sentence_transformers.models.Dense", "path": ""}, "'Dense'"),
     ({"type": "sentence_transformers.models.Pooling", "path": "../elsewhere"}, "outside the folder"),
     (None, "no list of modules")],
)  # fmt: skip
def test_modules_that_are_not_supported(tmp_path, module, said):
    (tmp_path / "modules.json").write_text(json.dumps([module] if module else {"0": "Transformer"}))
    with pytest.raises((ConfigError, CheckpointError), match=said):
        load_plain(tmp_path)


@pytest.mark.parametrize(
    "pooling",
    [{"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}, {"pooling_mode": "max"},
     {"pooling_mode": "mean", "include_prompt": False}],
)  # fmt: skip
def test_poolings_that_are_not_supported(plain, tmp_path, pooling):
    for file in plain.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    kinds = {"Transformer": "", "Pooling": "1_Pooling"}
    (tmp_path / "modules.json").write_text(json.dumps([{"type": f"x.{k}", "path": p} for k, p in kinds.items()]))
    with pytest.raises(ConfigError, match="pooling"):
        load_plain(tmp_path)


def load_plain(folder):
    return Embedder.load(folder, lambda texts: [[5] for _ in texts])
