"""The project as its first reader meets it: commands shown work, links lead somewhere, promises about imports hold."""

import contextlib
import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from tiny_tokenizers import save

from lmworks.cli.main import cli
from lmworks.core.config import Config, load_yaml, parse_scalar
from lmworks.data.corpus.prepare import PrepareConfig
from lmworks.pipeline.recipe import load_recipe
from lmworks.pipeline.runner import Runner
from lmworks.pipeline.schema import recipe_schema
from lmworks.pipeline.stages import STAGES, Stage, input_paths
from lmworks.proofs import reference
from lmworks.proofs.cases.case import Case

ROOT = Path(__file__).resolve().parents[1]
SHOWN = [ROOT / "README.md", ROOT / "recipes/README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PACKAGES = sorted(p.parent.name for p in (ROOT / "src/lmworks").glob("*/__init__.py"))

MAKE_VARIABLES = {"SMOKE", "ARGS", "PYTHON"}
ELSEWHERE = {
    r"source \.venv/bin/activate": "a shell's own command",
    r"curl http://127\.0\.0\.1:8000/\S+( .*)?": "tests/test_guides.py asks the same of a server",
    r"torchrun .*": "tests/train/test_replay_guide.py starts its two ranks",
    r"pip install '?lmworks(\[[a-z,]+\])?'?": "scripts/install, which every CI run uses",
}
"""Shown commands that are neither `lmworks` nor `make`, and what runs them instead."""


def shown_commands(file: Path) -> Iterator[str]:
    """Commands in `sh` and `console` fences, and in backticks of tables, that a reader would type."""
    text = file.read_text(encoding="utf-8")
    for kind, block in re.findall(r"```(sh|console)\n(.*?)```", text, re.DOTALL):
        lines = block.replace("\\\n", " ").splitlines()
        if kind == "console":
            lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
        yield from (
            line.split("   #")[0].split("  #")[0].strip() for line in lines if line.strip()[:1] not in ("", "#")
        )
    yield from re.findall(r"^\|.*`((?:lmworks|make) [^`…]+)`", text, re.MULTILINE)


COMMANDS = sorted({(str(file.relative_to(ROOT)), command) for file in SHOWN for command in shown_commands(file)})


@pytest.mark.parametrize(("file", "command"), COMMANDS)
def test_shown_command_exists(file: str, command: str) -> None:
    """The command, its flags and its recipe overrides are understood, though not carried out."""
    words = shlex.split(command)
    if words[0] == "lmworks":
        understand(words[1:])
    elif words[0] == "make":
        targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
        for word in words[1:]:
            name, assigned, _ = word.partition("=")
            assert name in (MAKE_VARIABLES if assigned else targets), f"{file}: make knows no {name!r}"
    else:
        assert any(re.fullmatch(pattern, command) for pattern in ELSEWHERE), f"{file}: {command!r} is run nowhere"


def understand(arguments: list[str]) -> None:
    """Parse as the command line would; for `run`, validate the recipe and its overrides too."""
    command: click.Command = cli
    context = click.Context(cli, info_name="lmworks")
    while isinstance(command, click.Group) and arguments != ["--help"]:
        name, found, arguments = command.resolve_command(context, arguments)
        assert found is not None
        command, context = found, click.Context(found, info_name=name, parent=context)
    with contextlib.suppress(click.exceptions.Exit), contextlib.redirect_stdout(None):  # `--help` is an exit
        context = command.make_context(command.name, list(arguments))
    if "recipe" in context.params and "overrides" in context.params:
        overrides = dict(text.split("=", 1) for text in context.params["overrides"])
        recipe = ROOT / context.params["recipe"]
        loaded = load_recipe(recipe, {key: parse_scalar(value) for key, value in overrides.items()})
        Runner(loaded, recipe, start=context.params["start"], only=context.params["only"])


@pytest.mark.parametrize(
    "wrong",
    ["lmworks pretrian", "lmworks run recipes/life.yaml --dryrun", "lmworks run recipes/life.yaml corpus.sed=1",
     "lmworks run recipes/life.yaml korpus.seed=1", "lmworks data prepare --sorces x", "lmworks serve --help --prot"],
)  # fmt: skip
def test_a_wrong_command_would_be_noticed(wrong: str) -> None:
    with pytest.raises(Exception, match=r"no |No |unknown|names no step"):
        understand(shlex.split(wrong)[1:])


T5 = {"d_model": 24, "d_kv": 8, "d_ff": 40, "num_layers": 2, "num_heads": 3}
BERT = {"dim": 24, "hidden_dim": 40, "n_layers": 2, "n_heads": 3, "id2label": {0: "NEGATIVE", 1: "POSITIVE"}}
QWEN = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 512}  # fmt: skip
MINILM = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 3}
PUBLISHED = {
    "Qwen3-0.6B": ("llama3", Case("qwen3", "", QWEN, "Qwen3ForCausalLM")),
    "flan-t5-small": ("t5", Case("t5", "", T5, "T5ForConditionalGeneration")),
    "all-MiniLM-L6-v2": ("bert", Case("bert", "", MINILM, "BertModel")),
    "distilbert-sst-2": ("bert", Case("distilbert", "", BERT, "DistilBertForSequenceClassification")),
}
"""Folders that the guide to published models names, as tiny random models: kind of tokenizer, model."""


def test_the_guide_to_published_models_runs_as_it_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its commands, but for the server that never ends, and its code, one block after the other."""
    monkeypatch.chdir(tmp_path)
    for name, (kind, case) in PUBLISHED.items():
        save(kind, Path(name))
        tokenizer = reference.transformers().AutoTokenizer.from_pretrained(name)
        ids = {f"{role}_token_id": getattr(tokenizer, f"{role}_token_id") for role in ("bos", "eos", "pad")}
        sizes = {**case.config, **ids, "vocab_size": len(tokenizer)}
        if case.family == "t5":
            sizes["decoder_start_token_id"] = ids["pad_token_id"]
        reference.build(replace(case, config=sizes), seed=0).save_pretrained(name)
    guide = ROOT / "docs/guides/models.md"
    capsys.readouterr()
    for command in shown_commands(guide):
        if not command.startswith("lmworks serve"):
            result = CliRunner().invoke(cli, shlex.split(command)[1:], input="What is the capital?\n")
            assert result.exit_code == 0, (command, result.exception)
            assert result.stdout.strip(), command
    known: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", guide.read_text(encoding="utf-8"), re.DOTALL):
        exec(block, known)
    _, cosines, labels = capsys.readouterr().out.strip().rsplit("\n", 2)
    assert all(-1 <= float(cosine) <= 1 for cosine in cosines.split())
    assert set(eval(labels)) <= {"NEGATIVE", "POSITIVE"}
    copied = reference.transformers().AutoModelForSequenceClassification.from_pretrained("copy")
    assert copied.config.id2label == BERT["id2label"]


@pytest.mark.parametrize("file", SHOWN, ids=lambda file: str(file.relative_to(ROOT)))
def test_links_lead_somewhere(file: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", file.read_text(encoding="utf-8"))
    gone = [t for t in targets if "://" not in t and not (file.parent / t).exists()]
    assert gone == []


def test_every_package_has_its_page() -> None:
    pages = {file.stem for file in (ROOT / "docs/packages").glob("*.md")}
    assert set(PACKAGES) <= pages
    index = (ROOT / "docs/README.md").read_text()
    assert [p for p in PACKAGES if f"packages/{p}.md" not in index] == []


def test_map_is_honest() -> None:
    """Every topic once, with a known status; what is done names code and a test."""
    rows = re.findall(r"^\| ([A-Z]+-\d+) \| .* \| (\w+) \| (.*) \|$", (ROOT / "docs/map.md").read_text(), re.MULTILINE)
    assert len(rows) == len({row[0] for row in rows}) > 150
    for identity, status, where in rows:
        assert status in ("done", "partial", "planned"), identity
        assert ("](../src/" in where or "](../labs/" in where) == (status != "planned"), identity
        assert "](../tests/" in where or status != "done", identity


@pytest.mark.parametrize("stage", STAGES.values(), ids=lambda stage: stage.name)
def test_stage_table_is_true(stage: Stage) -> None:
    config_class = stage.config_class()
    assert callable(stage.call())
    assert ("output" in config_class.model_fields) is stage.makes_artifact
    for name, field in config_class.model_fields.items():
        explained = field.description or name == "output" or issubclass(type(field.default), Config)
        assert explained, f"{stage.name}: {name} has no docstring"


def test_recipes_validate_in_full_and_in_smoke() -> None:
    for recipe in sorted((ROOT / "recipes").glob("*.yaml")):
        if "steps" not in load_yaml(recipe):  # of one stage
            assert PrepareConfig.parse(load_yaml(recipe))
            continue
        for smoke in (False, True):
            runner = Runner(load_recipe(recipe, smoke=smoke), recipe)
            made: set[Path] = set()
            for step, stage, config in runner.steps:
                reads = input_paths(config).values()
                inside = [p for p in reads if stage.makes_artifact and p.is_relative_to(runner.recipe.folder)]
                assert all(any(p.is_relative_to(m) for m in made) for p in inside), step.name
                made |= {Path(config.to_dict()["output"])} if stage.makes_artifact else set()


def test_recipe_schema_is_current() -> None:
    committed = json.loads((ROOT / "recipes/recipe.schema.json").read_text())
    assert committed == recipe_schema(), "run: make schema"


def test_core_install_imports_everything_promised() -> None:
    """With every optional package hidden, each module imports, but for those whose whole job is an extra's."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [r for name in ("data", "pii", "plot", "serve", "test") for r in project["optional-dependencies"][name]]
    named = {re.split(r"[\[>=<]", r)[0].replace("-", "_") for r in extras}
    hidden = sorted(named - {"lmworks", "pytest", "fsspec", "zstandard"})  # torch needs the one, looks for the other
    probe = f"""
import importlib, pkgutil, sys
hidden = set({hidden!r}) | {{"starlette"}}
class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in hidden:
            raise ModuleNotFoundError(f"hidden: {{name}}", name=name.partition(".")[0])
sys.meta_path.insert(0, Hide())
import lmworks
needs = {{}}
for module in pkgutil.walk_packages(lmworks.__path__, "lmworks."):
    if module.name == "lmworks.__main__":
        continue
    try:
        importlib.import_module(module.name)
    except ModuleNotFoundError as error:
        needs[module.name] = error.name
print(needs)
"""
    said = subprocess.run([sys.executable, "-W", "error::DeprecationWarning:lmworks", "-c", probe],
                          capture_output=True, text=True, check=True)  # fmt: skip
    needs = eval(said.stdout.splitlines()[-1])
    serving = ("fastapi", "starlette", "uvicorn", "prometheus_client", "msgpack", "opentelemetry")
    needs = {name: missing for name, missing in needs.items() if not name.startswith("lmworks.kernels.triton.")}
    assert {name for name, missing in needs.items() if missing not in serving} == set()
    # What a server's two processes say to each other.
    speaking = {"lmworks.engine.process.wire", "lmworks.engine.process.child"}
    assert all(name.startswith("lmworks.server.") for name in needs.keys() - speaking)
    assert needs.keys().isdisjoint({"lmworks.server.serve", "lmworks.server.config", "lmworks.server.journal"})


def test_project_speaks_of_itself_alone() -> None:
    """No machine's paths, no words of how the text came about, no stub left behind."""
    foreign = re.compile(r"/wor[k]/|/tm[p]/w/|\bsubagen[t]|\bTOD[O]\b|\bFIXM[E]\b|raise NotImplementedErro[r]")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    names = listed.stdout.split() if listed.returncode == 0 else []
    found = []
    for name in names:
        file = ROOT / name
        if file.suffix in {".py", ".md", ".yaml", ".toml", ".html", ".js", ".css", ".jinja", ".txt"} and file.exists():
            found += [f"{name}: {m.group()}" for m in [foreign.search(file.read_text(encoding="utf-8"))] if m]
    assert found == []


@pytest.mark.parametrize(
    ("script", "message"),
    [
        (None, "found none."),
        ('echo "3.9"; case "$*" in *exit*) exit 1;; esac', "python3 is Python 3.9"),
        ('echo "3.12"; case "$*" in *venv*) exit 1;; esac', "apt-get install python3.12-venv"),
        ("exit 127", "found none."),
    ],
)
def test_missing_python_is_explained(tmp_path: Path, script: str | None, message: str) -> None:
    if script is not None:
        (tmp_path / "python3").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "python3").chmod(0o755)
    said = subprocess.run(
        [shutil.which("bash") or "bash", ROOT / "scripts/find-python"],
        env={"PATH": str(tmp_path)}, capture_output=True, text=True,
    )  # fmt: skip
    assert (said.returncode, said.stdout) == (2, "")
    assert message in said.stderr
    assert "make run PYTHON=" in said.stderr
