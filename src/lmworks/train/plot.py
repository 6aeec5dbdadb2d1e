"""A picture of a run: training loss and validation bits per byte over tokens. Knows only the metrics file."""

from __future__ import annotations

from pathlib import Path

from lmworks.core.errors import disk_errors, require
from lmworks.train.metrics import read_metrics


def plot_run(metrics_file: Path, image: Path) -> None:
    """Draw `loss` and, where measured, `validation_bits_per_byte` of a metrics file.

    Args:
        metrics_file: JSON lines as `MetricsLog` writes them.
        image: the PNG to write.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    require("matplotlib", "plot")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    records = read_metrics(metrics_file)
    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)  # draws to memory; no window system is touched
    axes = figure.add_subplot(xlabel="tokens seen", ylabel="nats per token")
    learned = [r for r in records if "loss" in r]  # a skipped step may have none
    axes.plot([r["tokens"] for r in learned], [r["loss"] for r in learned], linewidth=0.8, label="training loss")
    axes.grid(visible=True, alpha=0.3)
    measured = [r for r in records if "validation_bits_per_byte" in r]
    lines = axes.get_lines()
    if measured:
        right = axes.twinx()
        right.set_ylabel("bits per byte")
        values = [r["validation_bits_per_byte"] for r in measured]
        right.plot([r["tokens"] for r in measured], values, "o-", color="tab:orange", label="validation")
        lines = [*lines, *right.get_lines()]
    axes.legend(lines, [str(line.get_label()) for line in lines], frameon=False)
    with disk_errors(image):
        figure.savefig(image, dpi=120)
