"""A picture of a scaling law: runs on the curves of their sizes, and the best size for each budget."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lmworks.core.errors import disk_errors, require
from lmworks.train.scaling_laws import FLOPS_PER_PARAMETER_TOKEN, ScalingFit


def plot_scaling_law(fit: ScalingFit, image: Path) -> None:
    """Draw loss over compute: a curve for each size, the runs that were measured, and the frontier.

    Args:
        fit: of a ladder.
        image: the PNG to write.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    require("matplotlib", "plot")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    FigureCanvasAgg(figure)  # draws to memory; no window system is touched
    axes = figure.add_subplot(xlabel="training FLOPs", ylabel="loss", xscale="log", yscale="log")
    sizes = sorted({run.parameters for run in fit.runs})
    for rank, size in enumerate(sizes):
        of_size = [run for run in fit.runs if run.parameters == size]
        color = (rank / max(1, len(sizes) - 1), 0.3, 0.6)
        tokens = np.geomspace(min(r.tokens for r in of_size) / 2, max(r.tokens for r in of_size) * 4, 50)
        losses = [fit.law.loss(size, float(count)) for count in tokens]
        axes.plot(
            FLOPS_PER_PARAMETER_TOKEN * size * tokens,
            losses,
            color=color,
            linewidth=0.8,
            label=f"{size:.3g} parameters",
        )
        axes.plot([r.flops for r in of_size], [r.loss for r in of_size], "o", color=color, markersize=3)
    compute = np.geomspace(min(r.flops for r in fit.runs), max(r.flops for r in fit.runs) * 10, 50)
    best = [fit.law.optimum(float(flops)).loss for flops in compute]
    axes.plot(compute, best, "k--", linewidth=1.0, label="compute-optimal")
    axes.grid(visible=True, alpha=0.3, which="both")
    axes.legend(frameon=False, fontsize=7)
    with disk_errors(image):
        figure.savefig(image, dpi=120)
