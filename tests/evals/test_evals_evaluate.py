"""The stage: what it writes, that it repeats, what it refuses; with doubles, and once with the engine."""

import json
import math

import pytest

from lmworks.core.errors import ConfigError, DataError, EvalError, RequestError
from lmworks.core.generation import CompletionOutput
from lmworks.core.lineage import load_manifest, verify
from lmworks.evals.byte_ngram import ByteNgramModel
from lmworks.evals.evaluate import EvalConfig, evaluate


@pytest.fixture
def models(tmp_path):
    """Two files that stand for models."""
    paths = {name: tmp_path / name for name in ("good", "bad")}
    for name, path in paths.items():
        path.write_text(name)
    return paths


@pytest.fixture
def load(byte_model):
    """Loads the good model, which answers, and the bad one, which pays more and never stops."""
    made = {
        "good": lambda: byte_model(bits=(1, 3)),
        "bad": lambda: byte_model(bits=(2, 3), default=CompletionOutput("river in Spain", (1,), "length")),
    }
    return lambda path: made[path.name]()


def scores_of(manifest):
    rows = json.loads((manifest.path / "results.json").read_text())["scores"]
    return {(row["model"], row["task"], row["metric"]): row for row in rows}


def test_a_full_evaluation(models, load, corpus, conversations, questions, tmp_path):
    config = EvalConfig(
        models=models, corpus=corpus, conversations=conversations, questions=questions, output=tmp_path / "out"
    )
    manifest = verify(evaluate(config, load=load).path)
    assert manifest.kind == "report"
    assert {p.role for p in manifest.parents} == {"models.good", "models.bad", "corpus", "conversations", "questions"}
    assert set(manifest.files) == {"results.json", "results.md", "report.html", "samples.jsonl"}

    scores = scores_of(manifest)
    texts = [json.loads(line)["text"] for line in (corpus / "validation.jsonl").read_text().splitlines()]
    train = [json.loads(line)["text"].encode() for line in (corpus / "train.jsonl").read_text().splitlines()]
    size = sum(len(t.encode()) for t in texts)
    expected = sum(1 if byte in b"aeiou" else 3 for t in texts for byte in b"\0" + t.encode()[:-1]) / size
    assert scores["good", "bits-per-byte", "bits_per_byte"]["value"] == pytest.approx(expected)
    order_5 = scores["order-5", "bits-per-byte", "bits_per_byte"]
    heldout = [t.encode() for t in texts]
    assert order_5["value"] == pytest.approx(ByteNgramModel(train, 5).bits(heldout).sum() / size)
    assert order_5["low"] < order_5["value"] < order_5["high"]
    assert scores["xz -9e primed", "bits-per-byte", "bits_per_byte"]["low"] is None
    assert scores["good", "format", "answered"]["value"] == 1
    assert scores["bad", "format", "answered"]["value"] == 0
    assert scores["bad", "wiki-recall", "contains"]["value"] == pytest.approx(1 / 40), "one article is a river in Spain"

    results = json.loads((manifest.path / "results.json").read_text())
    overlap = {row["task"]: (row["items"], row["overlapping"]) for row in results["contamination"]}
    assert overlap["bits-per-byte"] == (12, 1), "the planted training article is counted"
    assert "wiki-recall" not in overlap, "which is built from the training text"
    clean = scores["good", "bits-per-byte", "bits_per_byte"]["clean_value"]
    assert clean != scores["good", "bits-per-byte", "bits_per_byte"]["value"]
    first, *_ = (c for c in results["comparisons"] if c["task"] == "bits-per-byte")
    assert (first["model"], first["against"]) == ("bad", "good")
    assert first["low"] > 0, "worse on every document"

    samples = [json.loads(line) for line in (manifest.path / "samples.jsonl").read_text().splitlines()]
    assert [(s["model"], s["prompt"], s["finish_reason"]) for s in samples[:2]] == [
        ("good", "What is 0?", "stop"),
        ("bad", "What is 0?", "length"),
    ]
    assert {row["model"] for row in manifest.metrics["seconds"]} == set(models)
    for name in ("results.md", "report.html"):
        text = (manifest.path / name).read_text()
        assert all(word in text for word in ("order-5", "good", "bad", "cloze", "Overlap with the training text"))


def test_the_same_seed_gives_the_same_files(models, load, corpus, tmp_path):
    def run(name, **fields):
        return evaluate(EvalConfig(models=models, corpus=corpus, output=tmp_path / name, **fields), load=load)

    limits = {"bits-per-byte": 5, "cloze": 5}
    assert run("a", limits=limits).files == run("b", limits=limits).files
    assert run("c", limits=limits, seed=1).files["results.json"] != run("a", limits=limits).files["results.json"]


def test_what_is_not_given_is_skipped_and_said(models, load, corpus, tmp_path):
    manifest = evaluate(EvalConfig(models=models, corpus=corpus, output=tmp_path / "out", baselines=False), load=load)
    skipped = {row["task"]: row["reason"] for row in manifest.metrics["skipped"]}
    assert skipped.keys() == {"format", "boolq"}
    assert "boolq-questions" in skipped["boolq"]
    assert "boolq-questions" in (manifest.path / "results.md").read_text()
    assert {row["model"] for row in manifest.metrics["scores"]} == {"good", "bad"}


def test_held_out_conversations_are_found_beside_a_tuned_model(load, conversations, corpus, tmp_path):
    tuned = tmp_path / "good"
    tuned.mkdir()
    conversations.rename(tuned / "held_out.jsonl")
    config = EvalConfig(models={"tuned": tuned}, corpus=corpus, output=tmp_path / "out", tasks=("format",))
    assert scores_of(evaluate(config, load=load))["tuned", "format", "answered"]["n"] == 5


def test_a_task_that_one_model_refuses_is_measured_on_the_other(
    models, byte_model, load, corpus, conversations, tmp_path
):
    class Base(byte_model):
        def chat(self, conversations, sampling_params):
            raise RequestError("this model has no chat template", "Tune it first")

    config = EvalConfig(
        models=models, corpus=corpus, conversations=conversations, output=tmp_path / "out", tasks=("format",)
    )
    manifest = evaluate(config, load=lambda path: Base() if path.name == "good" else load(path))
    (skipped,) = manifest.metrics["skipped"]
    assert (skipped["model"], skipped["task"]) == ("good", "format")
    assert "no chat template" in skipped["reason"]
    assert list(scores_of(manifest)) == [("bad", "format", "answered")]


def test_sampling_overrides_the_tasks_own(models, byte_model, corpus, tmp_path):
    made = byte_model()
    config = EvalConfig(
        models={"good": models["good"]}, corpus=corpus, output=tmp_path / "out", tasks=("wiki-recall",),
        sampling={"temperature": 0.7}, seed=5,
    )  # fmt: skip
    evaluate(config, load=lambda path: made)
    assert (made.params[0].temperature, made.params[0].max_tokens, made.params[0].seed) == (0.7, 16, 5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tasks": ["clozes"]}, r"unknown task 'clozes' \(did you mean 'cloze'\?\)"),
        ({"limits": {"boolqs": 3}}, r"unknown task 'boolqs' \(did you mean 'boolq'\?\)"),
        ({"limits": {"cloze": 0}}, "greater than or equal to 1"),
        ({"tasks": []}, "name at least one"),
        ({"models": {}}, "at least 1 item"),
        ({"models": {"order-5": "m"}}, "that of a baseline"),
        ({"sampling": {"temperatur": 1}}, r"did you mean 'temperature'\?"),
    ],
)
def test_impossible_configurations_are_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        EvalConfig.parse({"models": {"m": "m"}, "corpus": "c", "output": "o", **fields})


def test_bad_inputs_are_named_and_leave_nothing(models, load, corpus, questions, tmp_path):
    def run(**fields):
        return evaluate(
            EvalConfig(**{"models": models, "corpus": corpus, "output": tmp_path / "out"} | fields), load=load
        )

    with pytest.raises(EvalError, match=r"cannot read .*nowhere.train\.jsonl"):
        run(corpus=tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"none\.jsonl does not exist"):
        run(conversations=tmp_path / "none.jsonl")
    (questions / "questions.jsonl").write_text('{"question": "is it", "passage": "p", "label": "yes"}\n')
    with pytest.raises(EvalError, match=r"questions\.jsonl:1 has no field 'label' of type bool"):
        run(questions=questions)
    validation = corpus / "validation.jsonl"
    for text, message in (
        ('{"id": "1"}\n', r"validation\.jsonl:1 has no field 'text'"),
        ('{"text": "a"}\n{"text":', r"validation\.jsonl:2 is not JSON"),
        ("[1]\n", "holds a list, not an object"),
    ):
        validation.write_text(text)
        with pytest.raises(EvalError, match=message):
            run()
    validation.write_bytes(b'{"text": "\xff"}\n')
    with pytest.raises(EvalError, match="cannot read"):
        run()
    validation.write_text("")
    with pytest.raises(EvalError, match=r"no task has anything to measure on.*non-empty validation split"):
        run(tasks=("bits-per-byte", "cloze"))
    assert not (tmp_path / "out").exists()


def test_with_the_engine_and_a_tiny_random_model(corpus, conversations, tmp_path):
    from lmworks.models.build import build_model
    from lmworks.models.hub import save_pretrained
    from lmworks.proofs.tiny import LLAMA
    from lmworks.tokenization import load_tokenizer
    from lmworks.tokenization.training import TokenizerConfig, train_tokenizer

    folder = tmp_path / "model"
    train_tokenizer(TokenizerConfig(corpus=corpus, output=tmp_path / "tokenizer", vocab_size=280))
    tokenizer = load_tokenizer(tmp_path / "tokenizer")
    eos = tuple({*tokenizer.eos_token_ids})
    # Small weights make every token about equally likely, so the cost is known: log2(vocabulary) bits a token.
    model = build_model(LLAMA.model_copy(update={"vocab_size": tokenizer.vocab_size, "initializer_range": 1e-4,
                                                 "eos_token_ids": eos}), seed=0)  # fmt: skip
    save_pretrained(model, folder)
    tokenizer.save(folder)
    config = EvalConfig(
        models={"tiny": folder}, corpus=corpus, conversations=conversations, output=tmp_path / "out",
        limits={"bits-per-byte": 4, "cloze": 3, "format": 2, "wiki-recall": 2}, sampling={"max_tokens": 4},
    )  # fmt: skip
    manifest = evaluate(config)
    found = scores_of(manifest)["tiny", "bits-per-byte", "bits_per_byte"]
    texts = [json.loads(line)["text"] for line in (corpus / "validation.jsonl").read_text().splitlines()]
    per_text = [len(tokenizer.encode(t)) * math.log2(tokenizer.vocab_size) / len(t.encode()) for t in texts]
    assert min(per_text) * 0.98 < found["value"] < max(per_text) * 1.02
    assert {task for _, task, _ in scores_of(manifest)} == {"bits-per-byte", "format", "wiki-recall", "cloze"}
    assert load_manifest(manifest.path).metrics["skipped"][0]["task"] == "boolq"
