"""A ladder of real runs on real text, from the commands: the law fitted to the small ones foresees the largest."""

import json
from pathlib import Path
from pydoc_data.topics import topics

import pytest
import yaml

from lmworks.cli.main import cli
from lmworks.core.lineage import load_manifest, write_artifact
from lmworks.data.tokens.tokenize import TokenizeConfig, tokenize
from lmworks.tokenization.training import TokenizerConfig, train_tokenizer

SIZES, STEPS = ("32x2", "48x2", "64x2"), (20, 40, 80)
LARGEST = ("96x3", "120")


def write_text(folder: Path) -> None:
    """The reference manual of Python: half a megabyte of prose wherever Python is. Every 16th topic is held out."""
    with write_artifact(folder / "corpus", "corpus", config={}) as writer:
        for split in ("train", "validation"):
            with (writer.folder / f"{split}.jsonl").open("w", encoding="utf-8") as file:
                for number, (name, text) in enumerate(sorted(topics.items())):
                    if (number % 16 == 0) == (split == "validation"):
                        row = {"id": name, "text": text, "source": "Python", "license": "PSF-2.0"}
                        file.write(json.dumps(row) + "\n")
    train_tokenizer(TokenizerConfig(corpus=folder / "corpus", output=folder / "tokenizer", vocab_size=512))
    tokenize(TokenizeConfig(corpus=folder / "corpus", tokenizer=folder / "tokenizer", output=folder / "tokens"))


@pytest.mark.slow
@pytest.mark.timeout(400)  # ten runs, of seconds each where nothing else runs
def test_the_law_of_small_runs_foresees_a_larger_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("lmworks.train.pretrain.plot_run", lambda *_: None)
    write_text(tmp_path)
    planned = {
        "model": {"hidden_size": 96, "num_hidden_layers": 3, "num_attention_heads": 6, "intermediate_size": 192},
        "tokens": str(tmp_path / "tokens"),
        "tokenizer": str(tmp_path / "tokenizer"),
        "output": str(tmp_path / "unused"),
        "train": {"steps": 120, "batch_tokens": 1024, "sequence_length": 128, "schedule": {"warmup_steps": 12}},
    }
    (tmp_path / "planned.yaml").write_text(yaml.safe_dump(planned))
    run = ["scaling", "run", str(tmp_path / "planned.yaml"), str(tmp_path / "ladder")]
    sizes = [part for size in SIZES for part in ("--size", size)]
    steps = [part for number in STEPS for part in ("--steps", str(number))]
    cli.main([*run, *sizes, *steps], standalone_mode=False)
    cli.main([*run, "--size", LARGEST[0], "--steps", LARGEST[1]], standalone_mode=False)
    folders = sorted((tmp_path / "ladder").glob("*x*-*"))
    assert len(folders) == len(SIZES) * len(STEPS) + 1
    capsys.readouterr()
    fit = ["scaling", "fit", *map(str, folders), "--loss", "validation_bits_per_byte", "--json"]
    cli.main(fit, standalone_mode=False)
    report = json.loads(capsys.readouterr().out.rstrip().rsplit("\n", 1)[1])
    (check,) = report["held_out"]
    measured = {folder.name: load_manifest(folder).metrics for folder in folders}
    largest = measured.pop("-".join(LARGEST))
    assert check["loss"] == largest["validation_bits_per_byte"]
    assert check["parameters"] == largest["parameters"]
    beyond = min(metrics["validation_bits_per_byte"] for metrics in measured.values()) - check["loss"]
    assert beyond > 0.2, "nothing was to be foreseen"
    assert abs(check["predicted"]["value"] - check["loss"]) < beyond / 2
