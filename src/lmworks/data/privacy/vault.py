"""The file that turns labels back into what they stand for, readable with the key alone.

Each line holds a label and its value under AES-SIV (RFC 5297): deterministic, so that the same corpus gives the same
vault whoever works, and bound to its label, so that lines cannot be exchanged. Knows no detector.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

from lmworks.core.errors import DataError, require
from lmworks.core.lineage import sync_folder
from lmworks.data.privacy.replacements import LABEL


def vault_path(corpus: Path) -> Path:
    """Where the vault of a corpus lies: beside it, so that passing the corpus on does not pass the vault on."""
    return corpus.parent / f"{corpus.name}.vault.jsonl"


class Vault:
    """Seals and opens values.

    Args:
        key: at least 16 secret bytes; the cipher's key is derived from it.
    """

    def __init__(self, key: bytes) -> None:
        require("cryptography", "pii")
        from cryptography.hazmat.primitives.ciphers.aead import AESSIV

        self._cipher = AESSIV(hashlib.blake2b(key, person=b"lmworks vault", digest_size=64).digest())

    def seal(self, label: str, value: str) -> str:
        """The value as hex that only the key opens."""
        return self._cipher.encrypt(value.encode("utf-8", "surrogatepass"), [label.encode()]).hex()

    def open(self, label: str, sealed: str) -> str:
        """What was sealed under the label.

        Raises:
            DataError: the key is another one, or the line was changed.
        """
        from cryptography.exceptions import InvalidTag

        try:
            return self._cipher.decrypt(bytes.fromhex(sealed), [label.encode()]).decode("utf-8", "surrogatepass")
        except (InvalidTag, ValueError):
            raise DataError(
                f"the vault's entry {label} does not open", "Give the key with which the corpus was made"
            ) from None

    def reveal(self, text: str, entries: Mapping[str, str]) -> str:
        """The text with every label that the vault holds turned back; unknown ones stay."""
        return LABEL.sub(lambda m: self.open(m[0], entries[m[0]]) if m[0] in entries else m[0], text)


def read_vault(file: Path) -> dict[str, str]:
    """Sealed values by label.

    Raises:
        DataError: it cannot be read.
    """
    try:
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        return {row["label"]: row["sealed"] for row in rows}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"cannot read the vault {file}: {error}", "Give the .vault.jsonl file of the corpus") from None


def write_vault(file: Path, entries: Mapping[str, str]) -> None:
    """Write entries, sorted, into a file that only its owner may read; whole or not at all."""
    staging = file.with_name(f".{file.name}.tmp-{os.getpid()}")
    for stale in file.parent.glob(f".{file.name}.tmp-*"):  # of runs that were killed: one run at a time makes a corpus
        stale.unlink(missing_ok=True)
    with os.fdopen(os.open(staging, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as sink:
        for label, sealed in sorted(entries.items()):
            sink.write(json.dumps({"label": label, "sealed": sealed}) + "\n")
        sink.flush()
        os.fsync(sink.fileno())
    staging.replace(file)
    sync_folder(file.parent)
