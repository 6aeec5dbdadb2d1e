"""The stage `data prepare`: from raw documents to a clean, deduplicated, divided corpus and a report about it.

Units of the inputs are cleaned by any number of workers, each into a folder of its own; then duplicates and held-out
documents are decided from what was remembered of all, and the kept lines are written in the order of the inputs. A run
that was killed goes on with the units that are not there yet. Knows neither tokens nor models.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from lmworks.core.code_version import code_version
from lmworks.core.config import Config
from lmworks.core.errors import ConfigError, DataError
from lmworks.core.generation import Embedder
from lmworks.core.lineage import MANIFEST, Manifest, clock, content_hash, load_manifest, write_artifact
from lmworks.core.progress import say
from lmworks.data.cleaning.filters import Preset
from lmworks.data.cleaning.language import LanguageConfig
from lmworks.data.cleaning.licenses import LicenseConfig
from lmworks.data.cleaning.perplexity import PerplexityConfig
from lmworks.data.cleaning.quality import QualityConfig
from lmworks.data.cleaning.word_lists import WordListConfig
from lmworks.data.corpus.clean import Clean, checks_of
from lmworks.data.corpus.cut import Cuts, cut_repetitions, texts_of
from lmworks.data.corpus.data_sheet import DataSheetConfig
from lmworks.data.corpus.decide import TRAIN, VALIDATION, Decisions, decide
from lmworks.data.corpus.index import DOCUMENTS, TALLY, Index, document_of, line_of
from lmworks.data.corpus.inputs import Input, InputConfig, Treatment, resolve_inputs
from lmworks.data.corpus.meaning import SemanticConfig, SemanticDedup
from lmworks.data.corpus.report import Findings, losses
from lmworks.data.corpus.report_page import render_html
from lmworks.data.corpus.runner import Runner, RunnerConfig, runner_of
from lmworks.data.corpus.units import Unit, units_of
from lmworks.data.corpus.workspace import Workspace, workspace_of
from lmworks.data.decontamination.step import DecontaminateConfig, decontamination_steps
from lmworks.data.deduplication.fingerprints import DedupConfig
from lmworks.data.extraction.extract import reader_versions
from lmworks.data.extraction.sources import RowFields
from lmworks.data.privacy.redact import PiiConfig, redaction_steps, vault_entries
from lmworks.data.privacy.vault import vault_path, write_vault
from lmworks.data.steps import Step, Tally
from lmworks.tokenization import load_tokenizer

_TEXTS_AT_ONCE = 512
SPLITS = {"train": TRAIN, "validation": VALIDATION}


class PrepareConfig(Config):
    """What to read and how to clean it."""

    inputs: Annotated[tuple[InputConfig, ...], Field(min_length=1)]
    """Fetched sources, folders, files or URLs of any format that can be read; each a path, or a mapping with the
    settings that differ for it."""
    output: Path
    """Folder of the corpus artifact."""
    preset: Preset = "prose"
    """Filter rules: `prose` for any language, `english`, `chinese`, `code`, those published as `gopher`, `c4` and
    `fineweb`, or `none`."""
    min_words: Annotated[int | None, Field(ge=1)] = None
    """Fewest words of a document; None takes the preset's."""
    max_characters: Annotated[int, Field(ge=1000)] = 20_000
    """Longer documents are cut into pieces of at most this many characters."""
    text_field: str = "text"
    """Field of .jsonl and .parquet rows that holds the text."""
    license: str = "unspecified"
    """Recorded for documents that state no licence of their own."""
    dedup: DedupConfig = DedupConfig()
    validation_fraction: Annotated[float, Field(ge=0.0, le=0.5)] = 0.02
    """Share of the documents that is held out."""
    max_overlap: Annotated[float, Field(ge=0.0, le=1.0)] = 0.2
    """A held-out document that shares more of its 13-grams with training text goes to training."""
    max_documents: Annotated[int | None, Field(ge=1)] = None
    """Read at most this many documents, an equal share from each input."""
    max_bytes: Annotated[int | None, Field(ge=1)] = None
    """Read at most about this many bytes of text, an equal share from each input."""
    seed: int = 0
    """Chooses which documents are held out."""
    runner: RunnerConfig = RunnerConfig()
    pii: PiiConfig | None = None
    """Personal data and secrets to replace, before anything else sees the text; None leaves them."""
    decontaminate: DecontaminateConfig | None = None
    """Evaluation sets whose items must not be in the corpus."""
    language: LanguageConfig | None = None
    """Languages to keep, and to record in `meta`; None identifies none."""
    licenses: LicenseConfig = LicenseConfig()
    """Licences that documents may be under."""
    words: tuple[WordListConfig, ...] = ()
    """Lists of words that a document may hold only so often, such as harmful or sensitive ones."""
    quality: QualityConfig | None = None
    """A trained filter, by `lmworks data train-filter`."""
    tokenizer: Path | None = None
    """Counts the corpus's tokens for the report."""
    data_sheet: DataSheetConfig = DataSheetConfig()
    """What people know of the corpus, for the data sheet in its report."""
    perplexity: PerplexityConfig | None = None
    """How surprising texts may be to a model of chosen text, by `lmworks data train-filter --kind perplexity`."""
    semantic: SemanticConfig | None = None
    """Documents that say the same in other words, looked for among those that other duplicates leave."""

    @property
    def treatment(self) -> Treatment:
        """Of inputs that say nothing else."""
        return Treatment(
            self.preset, self.min_words, RowFields(self.text_field, self.license), self.licenses, self.language,
            self.words, self.quality, self.perplexity,
        )  # fmt: skip

    def consulted(self) -> dict[str, Path]:
        """Files that cleaning depends on beside the inputs, by the field that names them."""
        sets = self.decontaminate.sets if self.decontaminate else ()
        files = {f"decontaminate.sets.{number}": given.path for number, given in enumerate(sets)}
        if self.pii is not None and self.pii.key_file is not None:
            files["pii.key_file"] = self.pii.key_file
        if self.pii is not None and self.pii.names is not None:
            files["pii.names"] = self.pii.names
        files |= {f"words.{number}": given.path for number, given in enumerate(self.words)}
        owners: dict[str, PrepareConfig | InputConfig] = {"": self}
        owners |= {f"inputs.{number}.": given for number, given in enumerate(self.inputs)}
        for where, owner in owners.items():
            filters = {"quality.model": owner.quality, "perplexity.model": owner.perplexity}
            files |= {where + role: trained.model for role, trained in filters.items() if trained is not None}
        return files

    def work_key(self) -> str:
        """Changes with everything that the cleaning of a unit depends on, other than the unit: programs included."""
        values = self.to_dict()
        for other in (
            "inputs",
            "output",
            "validation_fraction",
            "max_overlap",
            "seed",
            "runner",
            "tokenizer",
            "data_sheet",
            "semantic",
        ):
            del values[other]
        del values["dedup"]["keep"]
        contents = {role: content_hash(path) for role, path in self.consulted().items()}
        text = json.dumps([values, contents, code_version(__name__), reader_versions()], sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def prepare(config: PrepareConfig, embedder: Embedder | None = None) -> Manifest:
    """Clean, deduplicate and split documents.

    Args:
        config: what to read and how to clean it.
        embedder: the model of `config.semantic.embedder`.

    Raises:
        DataError: an input cannot be read at all, or no document is left; the message counts what was lost where.
        ArtifactError: a source artifact does not match its manifest, a trained filter is not whole, or the output is
            something else than a corpus.
        ConfigError: a language cannot be identified, or `semantic` is asked for and no embedder given.
        DiskFullError: the device is full; the cleaned units stay for the next run.
        RunInProgressError: another process prepares the same output.
        WorkerError: a worker was killed; the cleaned units stay for the next run.
    """
    started = clock()
    if config.semantic is not None and embedder is None:
        raise ConfigError("semantic needs the model of its embedder", "Give `prepare` an Embedder as second argument")
    runner = runner_of(config.runner)
    inputs = resolve_inputs(config.inputs, config.treatment)
    for given in inputs:
        checks_of(given.treatment)  # what is wrong with one is said before any work
    units = units_of(inputs, max_documents=config.max_documents, max_bytes=config.max_bytes)
    with workspace_of(config.output, config.work_key()) as workspace:
        folders = clean_units(config, units, workspace, runner)
        return _joined(config, embedder, inputs, folders, workspace, runner, started)


def _joined(
    config: PrepareConfig, embedder: Embedder | None, inputs: Sequence[Input], folders: Sequence[Path],
    workspace: Workspace, runner: Runner, started: tuple[float, float],
) -> Manifest:  # fmt: skip
    """Decide about the documents of all cleaned units, and write the corpus."""
    tally = Tally()
    for folder in folders:
        tally.merge(Tally.from_dict(json.loads((folder / TALLY).read_text(encoding="utf-8"))))
    index = Index.read(folders, workspace.folder / "signatures.npy")
    if not len(index.records):
        workspace.remove()
        raise DataError(
            f"no document is left: {losses(tally)}", "Give text that keeps the rules, or choose another preset"
        )
    say(f"{len(index.records):,} documents pass the filters; looking for duplicates …")
    semantic = None
    if config.semantic is not None and embedder is not None:
        semantic = SemanticDedup(config.semantic, embedder, workspace.folder / "embeddings")
    decisions = decide(
        index, config.dedup, runner, validation_fraction=config.validation_fraction,
        max_overlap=config.max_overlap, seed=config.seed, semantic=semantic,
    )  # fmt: skip
    cuts = None
    if config.dedup.cuts:
        index, decisions, cuts = cut_repetitions(index, decisions, config.dedup)
    findings = Findings(
        presets_of(inputs), tally, index, decisions, cuts,
        settings=config.to_dict(), sheet=config.data_sheet, inputs=[described(given.path) for given in inputs],
        tokens=None if config.tokenizer is None else count_tokens(config.tokenizer, index, decisions, cuts),
    )  # fmt: skip
    parents = {f"inputs.{number}": given.path for number, given in enumerate(inputs)} | config.consulted()
    if config.semantic is not None:
        parents["semantic.embedder"] = config.semantic.embedder
    if config.tokenizer is not None:
        parents["tokenizer"] = config.tokenizer
    with write_artifact(
        config.output,
        "corpus",
        config=config.to_dict(),
        parents=parents,
        code_version=code_version(__name__),
        started=started,
    ) as writer:
        for name, split in SPLITS.items():
            write_split(writer.folder / f"{name}.jsonl", index, decisions, cuts, split)
        report = findings.to_dict()
        (writer.folder / "report.json").write_text(
            json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        (writer.folder / "report.html").write_text(render_html(report), encoding="utf-8")
        writer.metrics = report["counts"]
        writer.notes = {"licenses": report["licenses"]}
        if config.pii is not None and config.pii.replacement == "vault":  # before the corpus that needs it is there
            write_vault(vault_path(config.output), vault_entries(tally))
    workspace.remove()
    say(f"corpus: {findings.summary()} · {config.output / 'report.html'}")
    assert writer.manifest is not None, "the block above published it"
    return writer.manifest


def presets_of(inputs: Sequence[Input]) -> dict[Preset, set[int | None]]:
    """Of all inputs, each with the fewest words that they set."""
    presets: dict[Preset, set[int | None]] = {}
    for given in inputs:
        presets.setdefault(given.treatment.preset, set()).add(given.treatment.min_words)
    return presets


def described(path: Path) -> dict[str, str]:
    """What is known of an input: where it lies and, of a fetched source, who made it and which package held it."""
    if not (path / MANIFEST).is_file():
        return {"name": path.name, "what": f"files given as {path.name}"}
    notes = load_manifest(path).notes
    package = notes.get("package") or {}
    held = "{registry} package {project} {version}".format(**package) if package else "this machine"
    name = str(notes.get("name", path.name))
    return {
        "name": name,
        "what": f"{notes.get('description', name)}; {notes.get('upstream', 'unknown upstream')}; "
        f"{notes.get('license', 'unspecified')}; from {held}",
    }


def count_tokens(tokenizer: Path, index: Index, decisions: Decisions, cuts: Cuts | None) -> dict[str, Any]:
    """Tokens of each split, without the marks of a document's beginning and end.

    Raises:
        TokenizerError: the tokenizer cannot be read.
    """
    loaded = load_tokenizer(tokenizer)
    names, sources = index.labels["source"], index.records["source"]
    counts = {}
    by_source = np.zeros(len(names), np.int64)
    for split_name, split in SPLITS.items():
        numbers = np.flatnonzero(decisions.split == split)
        texts_left = texts_of(index, numbers.tolist(), cuts)
        lengths = np.zeros(len(numbers), np.int64)
        for begin in range(0, len(numbers), _TEXTS_AT_ONCE):
            texts = list(islice(texts_left, _TEXTS_AT_ONCE))
            lengths[begin : begin + len(texts)] = [len(tokens) for tokens in loaded.encode_batch(texts)]
        counts[split_name] = int(lengths.sum())
        np.add.at(by_source, sources[numbers], lengths)
    return {
        "tokenizer": tokenizer.name, **counts, "total": sum(counts.values()),
        "sources": dict(zip(names, by_source.tolist(), strict=True)),
    }  # fmt: skip


def clean_units(config: PrepareConfig, units: Sequence[Unit], workspace: Workspace, runner: Runner) -> list[Path]:
    """Folders of the cleaned units, in the order of the inputs."""
    steps: tuple[Step, ...] = decontamination_steps(config.decontaminate)
    task = Clean(workspace.folder, config.max_characters, steps, config.dedup, redaction_steps(config.pii))
    done = sum(task.folder(unit).exists() for unit in units)
    if done:
        say(f"{done} of {len(units)} parts of the inputs were cleaned before")
    return list(runner.map(task, units, "clean documents"))


def write_split(file: Path, index: Index, decisions: Decisions, cuts: Cuts | None, split: int) -> None:
    """Write the lines of the documents that go to one split."""
    with file.open("wb") as sink:
        for folder, place in index.slices():
            with (folder / DOCUMENTS).open("rb") as source:
                for number, line in enumerate(source, place.start):
                    if decisions.split[number] != split:
                        continue
                    if cuts is not None and number in cuts:
                        document = document_of(line)
                        sink.write(line_of(replace(document, text=cuts.of(number, document.text))))
                    else:
                        sink.write(line)
