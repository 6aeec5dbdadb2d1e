"""The step that replaces personal data and secrets, and its part of the report. Knows no reader and no runner."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pydantic import model_validator

from lmworks.core.config import Config, nearest
from lmworks.core.generation import Document
from lmworks.data.privacy.detectors import DETECTORS, Detector, Finding, search
from lmworks.data.privacy.names import read_names
from lmworks.data.privacy.phones import REGIONS, PhoneSearch
from lmworks.data.privacy.replacements import label, masked, read_key, surrogate, token
from lmworks.data.privacy.secrets import SECRETS
from lmworks.data.privacy.vault import Vault
from lmworks.data.steps import Dropped, Step, Tally

PHONE = "PHONE_NUMBER"
KINDS = (*dict.fromkeys(detector.kind for detector in DETECTORS), PHONE)
SECRET_KINDS = frozenset(detector.kind for detector in SECRETS)


class PiiConfig(Config):
    """Which personal data and secrets are looked for, and what is done about them."""

    kinds: tuple[str, ...] = KINDS
    """Of personal data; empty looks for secrets alone."""
    replacement: Literal["token", "surrogate", "vault"] = "token"
    """`token`: `<EMAIL_ADDRESS>`. `surrogate`: a made-up value of the same form, the same one wherever a value stands.
    `vault`: a label that `lmworks data reveal` turns back with the key and the vault, a file beside the corpus."""
    key_file: Path | None = None
    """Secret bytes that choose surrogates and labels and seal the vault."""
    names: Path | None = None
    """File with names of persons, one a line, that are replaced too."""
    regions: tuple[str, ...] = REGIONS
    """Countries whose telephone numbers are found without their country code."""
    secrets: Literal["replace", "drop", "flag", "ignore"] = "replace"
    """What happens to keys, tokens and passwords, or the document that holds one; `flag` only counts and marks it."""

    @model_validator(mode="after")
    def _possible(self) -> PiiConfig:
        for kind in self.kinds:
            if kind not in KINDS:
                raise ValueError(f"unknown kind {kind!r}{nearest(kind, list(KINDS))}")
        if (self.key_file is None) != (self.replacement == "token"):
            raise ValueError(
                f"replacement = {self.replacement!r} with key_file = {self.key_file}: "
                "surrogates and the vault need a key file, tokens have no use for one"
            )
        return self


def detectors_of(config: PiiConfig) -> tuple[Detector, ...]:
    """The rows that a configuration asks for, the surest first.

    Raises:
        MissingExtraError: telephone numbers need phonenumbers.
        ConfigError: a region has no numbering plan.
        DataError: the list of names cannot be read.
    """
    secrets = SECRETS if config.secrets != "ignore" else ()
    phones = (Detector(PHONE, PhoneSearch(config.regions)),) if PHONE in config.kinds else ()
    names = (Detector("PERSON", read_names(config.names)),) if config.names is not None else ()
    return (*secrets, *(row for row in DETECTORS if row.kind in config.kinds), *phones, *names)


class RedactStep:
    """Replace what is found in a document's text, source and facts such as its title and address; its id stays.

    Everything is counted, and some of it shown, masked.

    Args:
        config: what is done about what.
        detectors: of `config`.
        key: of its key file.
    """

    def __init__(self, config: PiiConfig, detectors: tuple[Detector, ...], key: bytes = b"") -> None:
        self.config, self.detectors, self._key = config, detectors, key

    def __call__(self, document: Document, tally: Tally) -> Document | Dropped:
        """See `Step`."""
        parts = {document.text, document.source, *_strings(document.meta)}
        found = {part: finds for part in sorted(parts) if (finds := search(part, self.detectors))}
        if not found:
            return document
        counts: Counter[str] = Counter()
        shown = document.id, "" if document.source in found else document.source
        for part, finds in found.items():
            counts.update(finding.kind for finding in finds)
            for finding in finds:
                _report(finding, part, shown, tally)
        secrets = {kind: count for kind, count in sorted(counts.items()) if kind in SECRET_KINDS}
        if secrets and self.config.secrets == "drop":
            return Dropped("pii/secret", float(sum(secrets.values())))
        instead = {part: self._replaced(part, finds, tally) for part, finds in found.items()}
        text, source = (instead.get(part, part) for part in (document.text, document.source))
        meta = _exchanged(document.meta, instead)
        if secrets and self.config.secrets == "flag":
            meta = {**meta, "secrets": secrets}
        return replace(document, text=text, source=source, meta=meta)

    def _replaced(self, text: str, found: list[Finding], tally: Tally) -> str:
        parts, at = [], 0
        for finding in found:
            value = text[finding.start : finding.end]
            if finding.kind in SECRET_KINDS:
                instead = value if self.config.secrets == "flag" else token(finding.kind)
            else:
                instead = self._instead(finding.kind, value, tally)
            parts += [text[at : finding.start], instead]
            at = finding.end
        return "".join((*parts, text[at:]))

    def _instead(self, kind: str, value: str, tally: Tally) -> str:
        if self.config.replacement == "token":
            return token(kind)
        if self.config.replacement == "surrogate":
            return surrogate(self._key, kind, value)
        named = label(self._key, kind, value)
        tally.count("vault", f"{named} {Vault(self._key).seal(named, value)}")
        return named


def redaction_steps(config: PiiConfig | None) -> tuple[Step, ...]:
    """The step of a configuration, or none.

    Raises:
        MissingExtraError: see `detectors_of`; the vault needs cryptography.
        DataError: the key or the list of names cannot be read.
    """
    if config is None:
        return ()
    key = read_key(config.key_file) if config.key_file is not None else b""
    if config.replacement == "vault":
        Vault(key)
    return (RedactStep(config, detectors_of(config), key),)


def vault_entries(tally: Tally) -> dict[str, str]:
    """What the step sealed: values by label; of two spellings of one value the lesser seal, whoever worked first."""
    entries: dict[str, str] = {}
    for entry in sorted(tally.counts("vault"), reverse=True):
        named, _, sealed = entry.partition(" ")
        entries[named] = sealed
    return entries


def privacy_report(tally: Tally) -> list[Mapping[str, Any]]:
    """For each kind that was found: how often, whether it is a secret, and some finds, masked."""
    counts = tally.counts("pii")
    return [
        {"kind": kind, "found": counts[kind], "secret": kind in SECRET_KINDS, "samples": tally.samples("pii", kind)}
        for kind in sorted(counts)
    ]


def _strings(value: Any) -> Iterator[str]:
    """Every string in a document's facts; keys are names of fields."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from _strings(inner)


def _exchanged(value: Any, instead: Mapping[str, str]) -> Any:
    """The facts with other strings."""
    if isinstance(value, str):
        return instead.get(value, value)
    if isinstance(value, Mapping):
        return {key: _exchanged(inner, instead) for key, inner in value.items()}
    return [_exchanged(inner, instead) for inner in value] if isinstance(value, list | tuple) else value


def _report(finding: Finding, text: str, shown: tuple[str, str], tally: Tally) -> None:
    tally.count("pii", finding.kind)
    document, source = shown
    sample = {"document": document, "source": source, "masked": masked(text[finding.start : finding.end])[:80]}
    tally.sample("pii", finding.kind, f"{document}:{finding.start}", sample)
