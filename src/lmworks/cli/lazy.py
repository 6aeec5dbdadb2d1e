"""A click group made from a table of names; a command is imported when it is called, not when it is listed.

Names of two words, such as `data fetch`, form groups of their own. Knows no command.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import click

from lmworks.core.config import nearest
from lmworks.core.registry import resolve


@dataclass(frozen=True)
class Entry:
    """One command: where it is, and its line in the list."""

    reference: str
    """`module:attribute` of a click command, or of a function from the command's full name to one."""
    summary: str


class LazyGroup(click.Group):
    """A group over a table of `Entry` rows.

    Args:
        table: full command name (below this group) to entry.
        groups: first word of two-word names to the group's help.
        prefix: the words already consumed.
        settings: passed on to `click.Group`.
    """

    def __init__(
        self, *, table: Mapping[str, Entry], groups: Mapping[str, str], prefix: str = "", **settings: Any
    ) -> None:
        super().__init__(**settings)
        self._table, self._groups, self._prefix = table, groups, prefix

    def list_commands(self, ctx: click.Context) -> list[str]:
        """First words, in table order."""
        return list(dict.fromkeys(name.partition(" ")[0] for name in self._table))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command, or make the group of all names that begin with `cmd_name`."""
        if cmd_name in self._table:
            found = resolve(self._table[cmd_name].reference)
            command = found if isinstance(found, click.Command) else found(self._prefix + cmd_name)
            assert isinstance(command, click.Command)
            return command
        below = {n.partition(" ")[2]: e for n, e in self._table.items() if n.startswith(f"{cmd_name} ")}
        if not below:
            return None
        return LazyGroup(
            name=cmd_name, table=below, groups={}, prefix=f"{self._prefix}{cmd_name} ", help=self._groups[cmd_name]
        )

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, naming the nearest command when there is no such one."""
        names = self.list_commands(ctx)
        if args and not args[0].startswith("-") and args[0] not in names:
            ctx.fail(f"no command {args[0]!r}{nearest(args[0], names)}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List names and summaries without importing anything."""
        rows = [
            (name, self._table[name].summary if name in self._table else self._groups[name])
            for name in self.list_commands(ctx)
        ]
        with formatter.section("Commands"):
            formatter.write_dl(rows)
