"""A picture of compared tokenizers: a panel for each measure, a group of bars for each text. Knows no tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lmworks.core.errors import ConfigError, disk_errors, require
from lmworks.tokenization.compare import Comparison

_PANELS = (
    ("bytes_per_token", "bytes per token", "more is better"),
    ("tokens_per_character", "tokens per character", "less is better"),
    ("tokens_per_word", "tokens per word", "less is better"),
)


def check_image(image: Path) -> None:
    """Refuse a file that cannot be drawn, before anything is measured.

    Raises:
        MissingExtraError: matplotlib is not installed.
        ConfigError: the ending names no format.
    """
    require("matplotlib", "plot")
    from matplotlib.backend_bases import FigureCanvasBase

    known = FigureCanvasBase.get_supported_filetypes()
    if image.suffix.removeprefix(".") not in known:
        raise ConfigError(f"{image} names no format of a picture", f"End it with one of {', '.join(sorted(known))}")


def plot_comparison(found: Comparison, image: Path) -> None:
    """Draw three panels; what has no words is left out of the one that counts them.

    Args:
        found: of at least one tokenizer on one set of texts.
        image: the file to write; its ending names the format.

    Raises:
        MissingExtraError: matplotlib is not installed.
        ConfigError: the ending names no format.
    """
    check_image(image)
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = list(next(iter(found.texts.values())))
    labels = _short(list(found.texts))
    width = 0.8 / len(labels)
    colors = matplotlib.colormaps["tab20" if len(labels) > 10 else "tab10"]
    figure = Figure(figsize=(max(9, 3 + 0.35 * len(names) * len(labels)), 3.8), layout="constrained")
    FigureCanvasAgg(figure)  # draws to memory; no window system is touched
    for place, (field, title, better) in enumerate(_PANELS):
        axes = figure.add_subplot(1, 3, place + 1)
        axes.set_title(f"{title}\n", fontsize="medium", loc="left")
        axes.text(0, 1.02, better, transform=axes.transAxes, color="0.45", fontsize="small")
        shown = [n for n in names if field != "tokens_per_word" or _has_words(found, n)]
        for number, (label, figures) in enumerate(zip(labels, found.texts.values(), strict=True)):
            left = [i + width * (number + 0.5) - 0.4 for i in range(len(shown))]
            heights = [getattr(figures[name], field) for name in shown]
            axes.bar(left, heights, width * 0.92, color=colors(number), label=label if place == 0 else None)
        axes.set_xticks(range(len(shown)), shown)
        axes.tick_params(axis="x", length=0)
        axes.grid(axis="y", color="0.9", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right", "left"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=min(4, len(labels)), frameon=False, fontsize="small")
    with disk_errors(image):
        figure.savefig(image, dpi=150)


def _has_words(found: Comparison, name: str) -> bool:
    return next(iter(found.texts.values()))[name].unspaced_share < 0.5


def _short(paths: Sequence[str]) -> list[str]:
    """The ends of paths, as long as it takes to tell them apart."""
    parts = [Path(path).parts for path in paths]
    for depth in range(1, max(map(len, parts))):
        ends = ["/".join(part[-depth:]) for part in parts]
        if len(set(ends)) == len(ends):
            return ends
    return list(paths)
