"""The report of a corpus as one HTML page that needs nothing else: no script, no network.

Lays out what `Findings` counted; knows no document and no step.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined, Template

_MOST_ROWS = 40
"""Of a table; what is left out stands in report.json."""
_BAR_WIDTH, _PLOT_HEIGHT = 44, 140


def render_html(report: Mapping[str, Any]) -> str:
    """The page of a report, as `Findings.to_dict` makes it."""
    counts = report["counts"]
    most = max((b["documents"] for b in report["lengths"]), default=1)
    bars = [
        {**b, "x": n * _BAR_WIDTH, "height": round(_PLOT_HEIGHT * b["documents"] / most, 1)}
        for n, b in enumerate(report["lengths"])
    ]
    duplicates = sum(count for name, count in counts.items() if name.endswith("_duplicates"))
    languages = report["languages"] if report["languages"].keys() - {""} else {}
    return _template().render(
        report=report, bars=bars, bar_width=_BAR_WIDTH, plot_height=_PLOT_HEIGHT, most_rows=_MOST_ROWS,
        duplicates=duplicates, kept=counts["train_documents"] + counts["validation_documents"],
        sources=_most_documents(report["sources"]),
        shares={"Language": _most_documents(languages), "Licence": _most_documents(report["licenses"])},
    )  # fmt: skip


def _most_documents(shares: Mapping[str, Mapping[str, int]]) -> dict[str, Mapping[str, int]]:
    """Names with the most documents first."""
    return dict(sorted(shares.items(), key=lambda pair: (-pair[1]["documents"], pair[0])))


def bound(limit: float | list[float] | None) -> str:
    """Of a rule: one, several where inputs differ, or none."""
    return " or ".join(map(str, limit)) if isinstance(limit, list) else "" if limit is None else str(limit)


def short(number: int) -> str:
    """At most four characters: 950, 1k, 12M."""
    for unit, size in (("G", 1 << 30), ("M", 1 << 20), ("k", 1 << 10)):
        if number >= size:
            return f"{number / size:.0f}{unit}"
    return str(number)


def percent(part: float, whole: float) -> float:
    """Of a whole that may be nothing, with two digits."""
    return round(100 * part / whole, 2) if whole else 0.0


@cache
def _template() -> Template:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "commas": lambda number: f"{number:,}",
        "megabytes": lambda size: f"{size / 1e6:,.2f}",
        "bound": bound,
        "short": short,
        "percent": percent,
    }
    return environment.from_string(files(__package__).joinpath("report.html.jinja").read_text(encoding="utf-8"))
