"""Compared tokenizers: figures that can be counted by hand, entries nothing reaches, the command and its files."""

import json

import pytest
from click.testing import CliRunner
from tiny_tokenizers import KINDS, save

from lmworks.cli.main import cli
from lmworks.core.errors import CheckpointError, ConfigError, DataError
from lmworks.models.build import build_model
from lmworks.models.config import ModelConfig
from lmworks.models.hub import load_pretrained, save_pretrained
from lmworks.tokenization import load_tokenizer
from lmworks.tokenization.compare import compare
from lmworks.tokenization.definition import TokenizerDefinition
from lmworks.tokenization.tokenizer import Tokenizer

TEXTS = {"en": ["The fox jumps.", "Zebra"], "zh": ["床前明月光"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    home = tmp_path_factory.mktemp("compare")
    for kind in KINDS:
        save(kind, home / kind)
    (home / "en.txt").write_text("The quick brown fox jumps over the lazy dog.")
    (home / "zh.jsonl").write_text(json.dumps({"text": "床前明月光，疑是地上霜。"}) + "\n")
    return home


def test_figures_are_what_counting_gives(folder):
    tokenizer = load_tokenizer(folder / "gpt2")
    found = compare({"a": tokenizer}, TEXTS).texts["a"]
    tokens = sum(len(tokenizer.encode(text)) for text in TEXTS["en"])
    en = found["en"]
    assert (en.documents, en.num_bytes, en.tokens) == (2, 19, tokens)
    assert (en.bytes_per_token, en.tokens_per_character, en.tokens_per_word) == (19 / tokens, tokens / 19, tokens / 4)
    assert (en.unknown_share, en.exact_share) == (0, 1)
    assert found["zh"].num_bytes == 15
    assert found["zh"].tokens_per_character == len(tokenizer.encode("床前明月光")) / 5


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_measured(folder, kind):
    found = compare({kind: load_tokenizer(folder / kind)}, TEXTS)
    reached = found.vocabularies[kind]
    # BERT's lower case and its continuations, Unigram's pieces that others beat: some are hard to reach, never most.
    assert reached.unreachable < 0.3 * reached.vocab_size
    assert reached.unused > reached.unreachable


def test_what_is_lost_is_seen(folder):
    found = compare({"bert": load_tokenizer(folder / "bert")}, {"x": ["ж fox"], "y": ["fox"]}).texts["bert"]
    assert found["x"].unknown_share > 0 == found["y"].unknown_share
    assert (found["x"].exact_share, found["y"].exact_share) == (0, 1)


def test_an_entry_that_no_merge_makes_is_unreachable(folder):
    definition = load_tokenizer(folder / "gpt2").definition
    model = definition.spec["model"]
    vocab = {**model["vocab"], "SolidGold": len(model["vocab"]), "Ã": len(model["vocab"]) + 1}
    planted = Tokenizer(TokenizerDefinition({**definition.spec, "model": {**model, "vocab": vocab}}, definition.config))
    before = compare({"a": Tokenizer(definition)}, TEXTS).vocabularies["a"]
    after = compare({"a": planted}, TEXTS).vocabularies["a"]
    assert after.unreachable == before.unreachable + 1
    assert "SolidGold" in after.examples


def test_vocabularies_overlap_by_their_bytes(folder):
    same = load_tokenizer(folder / "gpt2")
    found = compare({"a": same, "b": same, "c": load_tokenizer(folder / "llama3")}, TEXTS).overlap
    assert found["a", "b"] == 1
    assert found["a", "c"] == found["b", "c"]
    assert 0.4 < found["a", "c"] < 1


def test_empty_texts_are_refused(folder):
    with pytest.raises(DataError, match="'en' are empty"):
        compare({"a": load_tokenizer(folder / "gpt2")}, {"en": [""]})


def test_the_command_shows_tables_and_draws(folder, tmp_path):
    words = [str(folder / "gpt2" / "tokenizer.json"), str(folder / "t5"), "--texts", f"en={folder / 'en.txt'}",
             f"zh={folder / 'zh.jsonl'}", "--plot", str(tmp_path / "p.png")]  # fmt: skip
    shown = CliRunner().invoke(cli, ["tokenizer", "compare", *words], catch_exceptions=False)
    assert "bytes/token" in shown.output
    assert "share" in shown.output
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    report = json.loads(CliRunner().invoke(cli, ["tokenizer", "compare", *words, "--json"]).output)
    assert set(report["tokenizers"][words[1]]["texts"]) == {"en", "zh"}
    assert report["overlap"][0]["jaccard"] < 1


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["gpt2"], ConfigError),
        (["gpt2", "--texts", "en"], ConfigError),
        (["gpt2", "--texts", "en=none.txt"], DataError),
        (["gpt2", "en=en.txt", "en=zh.jsonl"], ConfigError),
        (["gpt2", "gpt2", "en=en.txt"], ConfigError),
        (["gpt2", "en=en.txt", "--plot", "p.txt"], ConfigError),
        (["gpt2", "en=en.txt", "--weights"], CheckpointError),
    ],
)
def test_mistakes_are_named(folder, monkeypatch, words, error):
    monkeypatch.chdir(folder)
    with pytest.raises(error):
        CliRunner().invoke(cli, ["tokenizer", "compare", *words], catch_exceptions=False)


def test_a_model_grows_with_its_tokenizer(folder, tmp_path):
    tokenizer = load_tokenizer(folder / "llama3")
    values = {
        "family": "llama", "vocab_size": tokenizer.vocab_size, "hidden_size": 16, "max_position_embeddings": 64,
        "decoder": {
            "num_hidden_layers": 1,
            "attention": {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8},
            "mlp": {"intermediate_size": 24},
        },
    }  # fmt: skip
    model = build_model(ModelConfig.parse(values), seed=0)
    save_pretrained(model, tmp_path / "old")
    tokenizer.save(tmp_path / "old")
    command = ["tokenizer", "extend", str(tmp_path / "old"), str(tmp_path / "new")]
    judged = ["tokenizer", "compare", str(tmp_path / "old"), f"en={folder / 'en.txt'}", "--weights", "--json"]
    report = json.loads(CliRunner().invoke(cli, judged, catch_exceptions=False).output)
    assert "under_trained" in report["tokenizers"][str(tmp_path / "old")]
    done = CliRunner().invoke(cli, [*command, "--token", "量子力学", "--token", "Sorbonne"], catch_exceptions=False)
    assert "2 new tokens" in done.output
    grown, new = load_pretrained(tmp_path / "new"), load_tokenizer(tmp_path / "new")
    assert grown.config.vocab_size == new.vocab_size == tokenizer.vocab_size + 2
    old_rows = model.embed_tokens.weight[tokenizer.encode("量子力学")].mean(0)
    assert grown.embed_tokens.weight[new.token_id("量子力学")].tolist() == pytest.approx(old_rows.tolist())
    command[-1] = str(tmp_path / "round")
    CliRunner().invoke(cli, [*command, "--token", "x y", "--pad-to-multiple-of", "64"], catch_exceptions=False)
    assert load_pretrained(tmp_path / "round").config.vocab_size == -(-new.vocab_size // 64) * 64
    with pytest.raises(ConfigError, match="not empty"):
        CliRunner().invoke(cli, [*command, "--token", "x"], catch_exceptions=False)


def test_a_corpus_extends_a_tokenizer(folder, tmp_path):
    (tmp_path / "c.jsonl").write_text(json.dumps({"text": "chlorophyll " * 9}) + "\n")
    command = ["tokenizer", "extend", str(folder / "gpt2"), str(tmp_path / "t")]
    done = CliRunner().invoke(cli, [*command, "--corpus", str(tmp_path / "c.jsonl"), "--num-tokens", "20"])
    assert done.exit_code == 0, done.output
    assert len(load_tokenizer(tmp_path / "t").encode(" chlorophyll")) < 3
    for more in ([], ["--token", "x", "--corpus", "y"], ["--special", "--corpus", "y"]):
        with pytest.raises(ConfigError):
            CliRunner().invoke(cli, [*command[:3], str(tmp_path / "u"), *more], catch_exceptions=False)
