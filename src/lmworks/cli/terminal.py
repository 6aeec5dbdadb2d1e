"""Standard output for tables and trees: as wide as the terminal, never cut when piped. Knows no command."""

from __future__ import annotations

from rich.console import Console


def stdout() -> Console:
    """A console on standard output."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 1000
    return console
