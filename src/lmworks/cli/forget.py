"""`lmworks data forget` and `lmworks data reveal`: what is to be done with personal data later. Knows no stage."""

from __future__ import annotations

from pathlib import Path

import click

from lmworks.core.errors import ArtifactError


@click.command()
@click.argument("document", metavar="DOCUMENT_ID")
@click.option(
    "--root", type=click.Path(path_type=Path), default=Path(), show_default="the working folder",
    help="Folder below which artifacts are looked for.",
)  # fmt: skip
@click.option("--apply", "apply_it", is_flag=True, help="Remove it from sources, corpora, rows and tokens.")
def forget(document: str, root: Path, apply_it: bool) -> None:
    """Show every artifact that holds a document and every model that was trained on it.

    DOCUMENT_ID is the `id` of a row of a corpus. With --apply it is removed from sources, corpora, synthesized rows and
    tokens, converted ones too, of which new versions replace the old; models are listed, to be retrained.
    """
    from lmworks.data.privacy.erasure import erase
    from lmworks.data.privacy.exposure import find_exposure

    exposure = find_exposure(document, root)
    for problem in exposure.unreadable:
        click.echo(f"not looked into: {problem}", err=True)
    if not exposure:
        raise ArtifactError(
            f"no artifact below {root.resolve()} holds a document {document!r} or was made of it",
            "Give the id of a row, and the folder of the artifacts with --root",
        )
    for holding in exposure.holdings:
        rows = ", ".join(f"{len(rows)} in {split}" for split, rows in holding.places.items() if rows)
        manifest = holding.manifest
        if rows:
            click.echo(f"holds it: {manifest.path} ({manifest.kind}: {rows})")
        elif not holding.sources:
            click.echo(f"shows it in its report: {manifest.path} ({manifest.kind})")
    for file in exposure.loose:
        click.echo(f"stands in: {file} (made by no stage: remove it there yourself)")
    for manifest in exposure.trained:
        click.echo(f"trained on it, retrain: {manifest.path} ({manifest.kind} of {manifest.created})")
    for manifest in exposure.derived:
        click.echo(f"made from what held it: {manifest.path} ({manifest.kind})")
    for twin in exposure.twins:
        click.echo(f"a duplicate of it: {twin} (another document: forget it too if it holds the same)")
    for origin in exposure.origins:
        click.echo(f"came from: {origin} (remove it there too, or preparing anew brings it back)")
    if apply_it:
        for manifest in erase(exposure):
            click.echo(f"removed from: {manifest.path} (now {manifest.content_hash[:12]})")
    elif exposure.holdings:
        click.echo("Nothing was changed; --apply removes it.")


@click.command()
@click.argument("vault", type=click.Path(path_type=Path))
@click.argument("text", type=click.Path(path_type=Path, allow_dash=True), default="-")
@click.option("--key-file", type=click.Path(path_type=Path), required=True, help="The key the corpus was made with.")
def reveal(vault: Path, text: Path, key_file: Path) -> None:
    """Turn the labels in a text back into what they stand for.

    VAULT is the .vault.jsonl file beside a corpus; TEXT is a file, or standard input.
    """
    from lmworks.data.privacy.replacements import read_key
    from lmworks.data.privacy.vault import Vault, read_vault

    opened, entries = Vault(read_key(key_file)), read_vault(vault)
    with click.open_file(str(text), encoding="utf-8") as lines:
        for line in lines:
            click.echo(opened.reveal(line, entries), nl=False)
