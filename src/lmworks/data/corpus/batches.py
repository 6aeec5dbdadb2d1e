"""Cleaning as a function of rows, for engines that bring their own workers: Spark, Beam, Dask, a queue of jobs.

It does what `data prepare` does to a document before duplicates are looked for, with the same configuration and to the
same outcome. Knows none of these engines.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from typing import Any

from lmworks.core.generation import Document
from lmworks.data.corpus.clean import checks_of, cleaned
from lmworks.data.corpus.prepare import PrepareConfig
from lmworks.data.decontamination.step import decontamination_steps
from lmworks.data.identity import row_id
from lmworks.data.privacy.redact import redaction_steps
from lmworks.data.steps import Step, Tally

COLUMNS = ("id", "text", "source", "license", "meta")
"""Of the rows that come out, all of them texts; `meta` is JSON."""


class CleanRows:
    """Cleans rows one by one; it can be pickled, and every worker makes its steps when the first row comes.

    Args:
        config: of `data prepare`; its inputs, its output and what comes after cleaning are not looked at. An input's
            own settings are those of the whole configuration here.
    """

    def __init__(self, config: PrepareConfig) -> None:
        self.config = config

    def __call__(self, rows: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, str]]:
        """Rows of `COLUMNS` for the documents that stay.

        Args:
            rows: with a text in the field that the configuration names, and where they have them `id`, `source`,
                `license` and `meta` (a mapping or JSON). A row without text, or without one that can be written as
                UTF-8, gives nothing.

        Raises:
            DataError: a word list or an evaluation set cannot be read.
            ArtifactError: a quality filter is not there or not whole.
        """
        tally, config = Tally(), self.config
        for row in rows:
            document = self._document(row)
            if document is not None:
                for kept in cleaned(document, config.preset, self._steps, config.max_characters, tally):
                    meta = json.dumps(kept.meta, ensure_ascii=False) if kept.meta else ""
                    yield dict(zip(COLUMNS, (kept.id, kept.text, kept.source, kept.license, meta), strict=True))

    def _document(self, row: Mapping[str, Any]) -> Document | None:
        text, meta = row.get(self.config.text_field), row.get("meta") or {}
        if not isinstance(text, str) or not text.strip() or any("\ud800" <= letter <= "\udfff" for letter in text):
            return None
        return Document(
            str(row.get("id") or row_id(text)), text, str(row.get("source") or ""),
            str(row.get("license") or self.config.license), json.loads(meta) if isinstance(meta, str) else dict(meta),
        )  # fmt: skip

    @cached_property
    def _steps(self) -> tuple[Step, ...]:
        config = self.config
        return (
            *redaction_steps(config.pii), *checks_of(config.treatment), *decontamination_steps(config.decontaminate)
        )  # fmt: skip

    def __getstate__(self) -> dict[str, Any]:
        return {"config": self.config}
