"""A picture of compared tokenizers: bytes per token and tokens per word, by text. Knows no tokenizer."""

from __future__ import annotations

from pathlib import Path

from lmworks.core.errors import disk_errors, require
from lmworks.tokenization.compare import Comparison


def plot_comparison(found: Comparison, image: Path) -> None:
    """Draw groups of bars, a group for each set of texts and a bar for each tokenizer.

    Args:
        found: of at least one tokenizer on one set of texts.
        image: the file to write; its ending names the format.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    require("matplotlib", "plot")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.6), layout="constrained")
    FigureCanvasAgg(figure)  # draws to memory; no window system is touched
    names = list(next(iter(found.texts.values())))
    width = 0.8 / len(found.texts)
    for place, (field, better) in enumerate((("bytes_per_token", "more"), ("tokens_per_word", "less"))):
        axes = figure.add_subplot(1, 2, place + 1, ylabel=f"{field.replace('_', ' ')} ({better} is better)")
        for number, (tokenizer, figures) in enumerate(found.texts.items()):
            left = [i + width * (number + 0.5) - 0.4 for i in range(len(names))]
            axes.bar(left, [getattr(figures[name], field) for name in names], width, label=tokenizer)
        axes.set_xticks(range(len(names)), names)
        axes.spines[["top", "right"]].set_visible(False)
        if place == 0:
            axes.legend(frameon=False, fontsize="small")
    with disk_errors(image):
        figure.savefig(image, dpi=150)
