"""Every objective through the stage: first losses in closed form, learning, resume, and named errors before work."""

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pretrain_case import corpus, stopped_after
from safetensors.torch import load_file

from lmworks.core.errors import ConfigError, DataError
from lmworks.core.lineage import write_artifact
from lmworks.data.tokens.packing import PackedRows
from lmworks.data.tokens.token_store import TokenStore
from lmworks.data.tokens.tokenize import TokenizeConfig, tokenize
from lmworks.data.tokens.whole_documents import WholeDocuments
from lmworks.models.build import build_model
from lmworks.models.families import family_named
from lmworks.models.hub import load_pretrained, save_pretrained
from lmworks.models.transformer import Transformer
from lmworks.objectives.arrange import documents_of, join
from lmworks.objectives.contrastive import contrastive, info_nce, siglip
from lmworks.objectives.draws import Draws
from lmworks.objectives.source_target import for_decoder
from lmworks.tokenization import load_tokenizer
from lmworks.tokenization.training import TokenizerConfig, train_tokenizer
from lmworks.train.objective_wiring import (
    continues_word,
    crop_pairs,
    longest_document,
    pairs_by_separator,
    teaching_or_nothing,
    wire,
)
from lmworks.train.pretrain import PretrainConfig, pretrain

VOCAB = 320
SPECIAL = ("<mask>", "<fim_prefix>", "<fim_suffix>", "<fim_middle>", "[NLU]", "[S2S]", "[NLG]")
MODES = {"R": "[NLU]", "S": "[S2S]", "X": "[NLG]"}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "causal": ("llama", {"z_loss": 1e-4, "label_smoothing": 0.1}),
    "multi_token": ("llama", {"num_nextn_predict_layers": 2}),
    "fill_in_the_middle": ("gpt2", {"fill_in_the_middle": {"fim_rate": 0.9}}),
    "experts": ("mixtral", {}),
    "masked": ("bert", {"kind": "masked_lm"}),
    "whole_word": ("bert", {"kind": "masked_lm", "whole_word": True, "mlm_probability": 0.3}),
    "replaced": ("electra", {"kind": "replaced_tokens"}),
    "spans": ("t5", {"kind": "span_corruption"}),
    "spans_decoder": ("gpt2", {"kind": "span_corruption"}),
    "ul2": ("t5", {"kind": "ul2", "mode_tokens": MODES}),
    "ul2_decoder": ("gpt2", {"kind": "ul2"}),
    "prefix": ("qwen3", {"kind": "prefix_lm"}),
    "prefix_t5": ("t5", {"kind": "prefix_lm"}),
    "permutation": ("xlnet", {"kind": "permutation", "predicted": 0.3}),
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("objectives")
    corpus(folder / "corpus")
    train_tokenizer(
        TokenizerConfig(
            corpus=folder / "corpus", output=folder / "tokenizer", vocab_size=VOCAB, special_tokens=SPECIAL,
            num_sentinels=40,
        )
    )  # fmt: skip
    tokenize(TokenizeConfig(corpus=folder / "corpus", tokenizer=folder / "tokenizer", output=folder / "tokens"))
    return folder


@pytest.fixture(autouse=True)
def no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than these runs."""
    monkeypatch.setattr("lmworks.train.pretrain.plot_run", lambda *_: None)


def config(inputs: Path, output: Path, preset: str, objective: dict[str, Any], **changes: Any) -> PretrainConfig:
    values = {
        "model": {"preset": preset, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
                  "intermediate_size": 16},
        "tokens": inputs / "tokens",
        "tokenizer": inputs / "tokenizer",
        "output": output,
        "objective": objective,
        "validation_documents": 4,
        "train": {"steps": 3, "batch_tokens": 256, "sequence_length": 64, "precision": "float32", "schedule":
                  {"kind": "constant"}, "optimizer": {"kind": "adamw", "lr": 0.02}, "checkpoint_every": 2},
    }  # fmt: skip
    return PretrainConfig.parse(values, changes)


def first_loss(name: str, records: list[dict[str, Any]]) -> float:
    """What random weights must have, up to what a small standard deviation of the logits adds."""
    uniform = math.log(VOCAB)
    first = records[0]
    if name == "multi_token":
        return uniform * (1 + 0.3)
    if name == "replaced":
        return uniform + 50 * math.log(2)
    if name == "experts":
        return uniform + 0.01 * first["router_aux_loss"]
    if name == "causal":
        return uniform + 1e-4 * uniform**2
    return uniform


@pytest.mark.parametrize("name", CASES)
def test_an_objective_begins_at_its_closed_form_and_learns(inputs: Path, tmp_path: Path, name: str) -> None:
    preset, objective = CASES[name]
    manifest = pretrain(config(inputs, tmp_path / "model", preset, objective))
    records = [json.loads(line) for line in (tmp_path / "model" / "metrics.jsonl").read_text().splitlines()]
    assert records[0]["loss"] == pytest.approx(first_loss(name, records), rel=0.03)
    assert records[-1]["loss"] < records[0]["loss"]
    measured = "validation_bits_per_byte" if objective.get("kind", "causal_lm") == "causal_lm" else "validation_loss"
    assert 0 < manifest.metrics[measured] < math.inf
    assert load_pretrained(tmp_path / "model").config.family == preset


@pytest.mark.parametrize(
    ("preset", "objective", "message"),
    [
        (
            "llama",
            {"kind": "masked_lm"},
            r"trains a model of the kind encoder \(bert\), and llama is one of the kind dec",
        ),
        ("bert", {}, "causal_lm' trains a model of the kind decoder.*masked_lm, replaced_tokens, contrastive"),
        ("bert", {"kind": "permutation"}, r"two-stream encoder \(xlnet\)"),
        ("xlnet", {"kind": "masked_lm"}, "xlnet is one of the kind two-stream encoder"),
        ("t5", {}, "t5 is one of the kind encoder-decoder"),
        ("electra", {"kind": "seq2seq"}, "encoder-decoder .t5. or decoder .llama."),
        ("llama", {"kind": "contrastive"}, "a llama model has no embedding head"),
        ("t5", {"kind": "ul2", "denoisers": [{"mode": "X", "noise_density": 0.5, "mean_noise_span_length": 1}]}, None),
        ("t5", {"kind": "seq2seq", "separator": "xyzw"}, "is 4 tokens, and it must be one"),
    ],
)
def test_what_does_not_fit_is_named_before_any_work(
    inputs: Path, tmp_path: Path, preset: str, objective: dict, message: str | None
) -> None:
    changes = {"train.sequence_length": 128} if message is None else {}
    with pytest.raises(ConfigError, match=message or r"hides up to \d+ spans .* the tokenizer has 40.*num_sentinels"):
        pretrain(config(inputs, tmp_path / "model", preset, objective, **changes))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("objective", "changes", "message"),
    [
        ({"kind": "masked"}, {}, "objective"),
        ({"kind": "masked_lm", "mask_replace_prob": 0.8, "random_replace_prob": 0.4}, {}, "must not exceed 1 together"),
        ({"num_nextn_predict_layers": 1, "label_smoothing": 0.1}, {}, "label_smoothing is not there"),
        ({"whole_words": True, "kind": "masked_lm"}, {}, "did you mean 'whole_word'|whole_words"),
        (
            {"kind": "permutation"},
            {"train.size_schedule": [{"from_step": 1, "sequence_length": 32}]},
            "those of permutation must stay whole",
        ),
    ],
)
def test_impossible_settings_are_named(
    inputs: Path, tmp_path: Path, objective: dict, changes: dict, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        config(inputs, tmp_path / "model", "llama", objective, **changes)


def test_a_context_too_short_for_the_arranged_documents_is_named(inputs: Path, tmp_path: Path) -> None:
    longer = {"model.max_position_embeddings": 64}
    with pytest.raises(ConfigError, match="documents of up to 66 tokens of rows of 64, and the model's context is 64"):
        pretrain(config(inputs, tmp_path / "m", "gpt2", {"fill_in_the_middle": {}}, **longer))


@pytest.mark.parametrize("name", ["fill_in_the_middle", "spans", "spans_decoder", "ul2", "ul2_decoder", "prefix"])
@pytest.mark.parametrize("length", [2, 3, 17, 64])
def test_no_arranged_document_is_longer_than_announced(inputs: Path, tmp_path: Path, name: str, length: int) -> None:
    preset, objective = CASES[name]
    asked = config(inputs, tmp_path / "m", preset, objective)
    tokenizer = load_tokenizer(inputs / "tokenizer")
    shape = asked.model.shape
    model = asked.model.to_model_config(vocab_size=VOCAB, sequence_length=256, bos_token_id=0, eos_token_ids=(0,))
    arrangement = wire(asked.objective, model, tokenizer, length).arrangement
    assert arrangement is not None
    longest = 0
    for row in range(200):
        batch = arrangement([np.arange(100, 100 + length)], Draws(0, row))
        bounds = [batch.cu_seqlens] + ([batch.source_cu_seqlens] if hasattr(batch, "source_cu_seqlens") else [])
        longest = max([longest, *(int(b.diff().max()) for b in bounds if len(b) > 1)])
    assert longest <= longest_document(asked.objective, shape, length)


def test_words_are_known_by_their_bytes(inputs: Path) -> None:
    tokenizer = load_tokenizer(inputs / "tokenizer")
    inside = continues_word(tokenizer)
    ids = tokenizer.encode("the dog ran")
    words = "".join("|"[: not inside[i]] + tokenizer.token_bytes(i).decode() for i in ids)
    assert words.lstrip("|") == "the| dog| ran"
    assert not inside[list(tokenizer.special_token_ids)].any()


@pytest.mark.parametrize(
    ("token", "inside"),
    [("ing", True), ("\u00df", True), ("\u0439", True), ("\u0301", True), ("\ud55c", True), ("2", True), (" a", False),
     ("(", False), ("\n", False), ("\u5929", False), ("\uff0c", False), ("\u30c6", False), ("\u0e2a", False),
     (b"\xa9", True), (b"\xc3", True), (b"\xe5\xa4", False), (b"", False)],
)  # fmt: skip
def test_scripts_without_spaces_are_words_token_by_token(token: str | bytes, inside: bool) -> None:
    class OneToken:
        vocab_size, special_token_ids = 1, frozenset[int]()

        def token_bytes(self, _token_id: int) -> bytes:
            return token.encode() if isinstance(token, str) else token

    assert continues_word(OneToken()).tolist() == [inside]  # type: ignore[arg-type]


def test_crops_come_from_one_text_each(inputs: Path) -> None:
    documents = [np.arange(start, start + size) for start, size in ((0, 40), (100, 2), (200, 9))]
    for row in range(30):
        batch = crop_pairs(documents, Draws(1, row), pairs=5, shortest=0.5)
        bounds = batch.cu_seqlens.tolist()
        assert len(bounds) == 11
        for pair in range(5):
            left, right = (batch.input_ids[bounds[i] : bounds[i + 1]] for i in (2 * pair, 2 * pair + 1))
            assert int(left[0]) // 100 == int(right[0]) // 100
            assert (left.diff() == 1).all()
            assert (right.diff() == 1).all()
    with pytest.raises(DataError, match=r"holds no 5 texts to crop.*pairs_per_row"):
        crop_pairs([np.arange(4)], Draws(1, 0), pairs=5, shortest=0.5)


def test_a_separator_parts_source_and_target() -> None:
    documents = [np.array(ids) for ids in ([5, 6, 9, 7, 9, 8], [5, 6], [5, 9], [9, 4])]
    pairs = pairs_by_separator(documents, Draws(0, 0), separator=9)
    assert [(p.source.tolist(), p.target.tolist()) for p in pairs] == [([5, 6, 9], [7, 9, 8]), ([9], [4])]


def test_a_row_without_pairs_teaches_nothing_and_is_no_error() -> None:
    arrangement = for_decoder(lambda documents, draws: pairs_by_separator(documents, draws, separator=9))
    made = teaching_or_nothing(arrangement, np.array([9, 9]))([np.array([5, 6])], Draws(0, 0))
    assert made.num_tokens == 1
    assert made.loss_weights.tolist() == [0.0]


def write_pairs(folder: Path, share: float) -> Path:
    """Questions that name a word and answers that repeat it; of the documents the given share is of that form."""
    words = ["cat", "dog", "sun", "sea", "red", "owl"]
    with write_artifact(folder / "corpus", "corpus", config={}) as writer:
        for split, documents in (("train", 60), ("validation", 12)):
            with (writer.folder / f"{split}.jsonl").open("w") as file:
                for i in range(documents):
                    word = words[i % len(words)]
                    text = (
                        f"say {word}\n{word} {word}" if (i * 7 % 10) / 10 < share else f"only {word} and no answer " * 3
                    )
                    file.write(json.dumps({"id": f"{i}", "text": text, "source": "t", "license": "CC0"}) + "\n")
    return folder / "corpus"


@pytest.mark.parametrize("preset", ["t5", "gpt2"])
def test_pairs_by_separator_are_learned_from_rows(inputs: Path, tmp_path: Path, preset: str) -> None:
    """Half of the documents have no separator; micro-batches in which none has one are passed over."""
    corpus_folder = write_pairs(tmp_path, 0.5)
    tokenize(TokenizeConfig(corpus=corpus_folder, tokenizer=inputs / "tokenizer", output=tmp_path / "tokens"))
    settings = {"train.steps": 15, "train.batch_tokens": 512, "train.micro_batch_tokens": 64}
    asked = config(inputs, tmp_path / "model", preset, {"kind": "seq2seq"}, **settings)
    manifest = pretrain(asked.model_copy(update={"tokens": tmp_path / "tokens"}))
    records = [json.loads(line) for line in (tmp_path / "model" / "metrics.jsonl").read_text().splitlines()]
    assert records[0]["loss"] == pytest.approx(math.log(VOCAB), rel=0.03)
    assert records[-1]["loss"] < 0.8 * records[0]["loss"]
    assert manifest.metrics["validation_loss"] < 0.8 * records[0]["loss"]


def test_rows_of_whole_documents_hold_each_document_once(inputs: Path) -> None:
    store = TokenStore(inputs / "tokens" / "train")
    rows = WholeDocuments(store, 16, 3)
    per_epoch = math.ceil(rows.rows_per_epoch)
    together = rows.rows(0, per_epoch)
    begun = [ids.tolist() for ids in documents_of(together)][: len(store)]
    assert sorted(begun) == sorted(store[i][:16].tolist() for i in range(len(store)))
    apart = join([rows.rows(row, 1) for row in range(per_epoch)])
    for name in ("input_ids", "positions", "cu_seqlens", "targets", "loss_weights"):
        assert torch.equal(getattr(together, name), getattr(apart, name)), name
    ends = together.cu_seqlens[1:].long() - 1
    assert not together.loss_weights[ends].any()
    inside = torch.ones(together.num_tokens, dtype=torch.bool)
    inside[ends] = False
    assert torch.equal(together.targets[inside], together.input_ids[1:][inside[:-1]])


def embedder(hidden_size: int = 16) -> Transformer:
    """A tiny BERT whose head gives vectors."""
    sizes = {
        "hidden_size": hidden_size, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
        "max_position_embeddings": 64, "vocab_size": VOCAB, "pad_token_id": 0, "architectures": ["BertModel"],
    }  # fmt: skip
    return build_model(family_named("bert").config_from_hf(sizes), seed=0)


@pytest.mark.parametrize(("loss", "at_most"), [("info_nce", 0.7), ("siglip", 0.9)])
def test_crops_of_one_text_come_nearer_end_to_end(inputs: Path, tmp_path: Path, loss: str, at_most: float) -> None:
    save_pretrained(embedder(), tmp_path / "start")
    objective = {"kind": "contrastive", "loss": loss, "pairs_per_row": 2, "shortest_crop": 0.8}
    asked = config(inputs, tmp_path / "model", "bert", objective).to_dict()
    del asked["model"]
    # One row over and over, of which other crops are taken each time.
    asked["train"] |= {"steps": 30, "batch_tokens": 64, "micro_batch_tokens": 64}
    asked["train"]["optimizer"]["lr"] = 0.01
    store = TokenStore(inputs / "tokens" / "train")
    once = PackedRows(store, 64, 0).rows

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PackedRows, "rows", lambda self, start, count: once(0, count))
        pretrain(PretrainConfig.parse(asked | {"init_from": tmp_path / "start"}))
    losses = [json.loads(line)["loss"] for line in (tmp_path / "model" / "metrics.jsonl").read_text().splitlines()]
    assert np.mean(losses[-5:]) < at_most * np.mean(losses[:5])


def test_contrastive_losses_of_identical_vectors_are_closed_forms() -> None:
    """Where all vectors are equal every pair is as likely as any other, whatever the temperature."""
    batch = crop_pairs([np.array([5, 5, 5, 5, 5, 5, 5, 5])], Draws(0, 0), pairs=4, shortest=1.0)
    for temperature in (0.05, 1.0):
        found = contrastive(embedder(), batch, loss=partial(info_nce, temperature=temperature), group_pairs=4)
        assert float(found.loss_sum.detach()) == pytest.approx(4 * math.log(4), rel=1e-5)
        assert float(found.n_targets) == 4
    found = contrastive(embedder(), batch, loss=siglip, group_pairs=4)  # all cosines are 1, times 10 less 10: σ(0)
    assert float(found.loss_sum.detach()) == pytest.approx(16 * math.log(2), rel=1e-4)


@pytest.mark.parametrize("name", ["multi_token", "replaced", "permutation", "ul2"])
def test_a_stopped_run_goes_on_with_the_same_bits(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    preset, objective = CASES[name]
    pretrain(config(inputs, tmp_path / "straight", preset, objective))
    with stopped_after(2, monkeypatch):
        pretrain(config(inputs, tmp_path / "stopped", preset, objective))
    pretrain(config(inputs, tmp_path / "stopped", preset, objective))
    one, other = (load_file(tmp_path / folder / "model.safetensors") for folder in ("straight", "stopped"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize(
    ("preset", "objective", "message"),
    [
        ("bert", {"kind": "masked_lm", "mask_token": "[HIDE]"}, r"needs the token '\[HIDE\]'.*special_tokens"),
        ("gpt2", {"fill_in_the_middle": {"middle_token": "<mid>"}}, "needs the token '<mid>'"),
        ("t5", {"kind": "ul2", "mode_tokens": {"R": "[R]"}}, r"needs the token '\[R\]'"),
    ],
)
def test_a_token_that_the_tokenizer_lacks_is_named(
    inputs: Path, tmp_path: Path, preset: str, objective: dict, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        pretrain(config(inputs, tmp_path / "model", preset, objective))
    assert not list(tmp_path.iterdir())


def test_sentinels_that_the_tokenizer_lacks_are_counted(inputs: Path, tmp_path: Path) -> None:
    train_tokenizer(TokenizerConfig(corpus=inputs / "corpus", output=tmp_path / "plain", vocab_size=VOCAB))
    tokenize(TokenizeConfig(corpus=inputs / "corpus", tokenizer=tmp_path / "plain", output=tmp_path / "tokens"))
    asked = config(inputs, tmp_path / "model", "t5", {"kind": "span_corruption"})
    paths = {"tokens": tmp_path / "tokens", "tokenizer": tmp_path / "plain"}
    with pytest.raises(
        ConfigError, match=r"hides up to 3 spans in rows of 64 tokens.* tokenizer has 0.*num_sentinels: 3"
    ):
        pretrain(asked.model_copy(update=paths))
    assert not (tmp_path / "model.checkpoints").exists()
