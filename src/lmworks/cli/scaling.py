"""`lmworks scaling run` and `fit`: what a larger model would reach, from a ladder of small ones. Knows no law."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from lmworks.train.scaling_laws import Interval


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--loss", default="loss", show_default=True, help="Field that is fitted.")
@click.option("--flops", "budgets", multiple=True, type=click.FloatRange(min=0, min_open=True), help="Budget to plan.")
@click.option(
    "--hold-out", default=1, show_default=True, type=click.IntRange(min=0), help="Largest runs kept out as a check."
)
@click.option("--resamples", default=200, show_default=True, type=click.IntRange(min=20), help="Of the bootstrap.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0), help="Of the bootstrap.")
@click.option("--plot", "image", type=click.Path(dir_okay=False, path_type=Path), help="PNG to draw.")
@click.option("--json", "as_json", is_flag=True, help="End with one JSON object on the last line.")
def fit(
    runs: tuple[Path, ...],
    loss: str,
    budgets: tuple[float, ...],
    hold_out: int,
    resamples: int,
    seed: int,
    image: Path | None,
    as_json: bool,
) -> None:
    """Fit L(N, D) = E + A/N^alpha + B/D^beta to RUNS.

    RUNS are JSONL files with parameters, tokens and loss on each line, or model folders that `lmworks pretrain`
    wrote. The largest run is predicted from the others, then all are fitted. Intervals hold 95 % of resampled ladders.
    """
    from lmworks.train.scaling_laws import fit_scaling_law, hold_out_largest, read_ladder

    ladder = read_ladder(runs, loss)
    report: dict[str, object] = {"runs": len(ladder)}
    if hold_out:
        kept, held = hold_out_largest(ladder, hold_out)
        without = fit_scaling_law(kept, resamples, seed)
        checks = []
        for run in held:
            predicted = without.predict(run.parameters, run.tokens)
            error = predicted.value / run.loss - 1
            click.echo(
                f"held out: {run.parameters:.3g} parameters, {run.tokens:.3g} tokens: predicted {_shown(predicted)}, "
                f"measured {run.loss:.4g} ({error:+.2%})"
            )
            checks.append({**asdict(run), "predicted": asdict(predicted), "relative_error": error})
        report["held_out"] = checks
    found = fit_scaling_law(ladder, resamples, seed)
    for name, value in (constants := found.constants()).items():
        click.echo(f"{name:<6} {_shown(value)}")
    report["law"] = {name: asdict(value) for name, value in constants.items()}
    best = []
    for flops in budgets:
        optimum = found.optimum(flops)
        size, length, reached = optimum["parameters"], optimum["tokens"], optimum["loss"]
        click.echo(
            f"{flops:.3g} FLOPs: {_shown(size)} parameters, {_shown(length)} tokens "
            f"({length.value / size.value:.3g} a parameter), loss {_shown(reached)}"
        )
        best.append({"flops": flops, **{name: asdict(value) for name, value in optimum.items()}})
    report["optima"] = best
    if image is not None:
        from lmworks.train.scaling_plot import plot_scaling_law

        plot_scaling_law(found, image)
    if as_json:
        click.echo(json.dumps(report))


def _shown(value: Interval) -> str:
    return f"{value.value:.4g} [{value.low:.4g}, {value.high:.4g}]"


@click.command()
@click.argument("planned", type=click.Path(dir_okay=False, path_type=Path), metavar="PLANNED.yaml")
@click.argument("output", type=click.Path(file_okay=False, path_type=Path))
@click.option("--size", "sizes", multiple=True, required=True, metavar="HIDDENxLAYERS", help="Such as 128x4; repeat.")
@click.option("--steps", multiple=True, required=True, type=click.IntRange(min=1), help="Updates; repeat.")
def run(planned: Path, output: Path, sizes: tuple[str, ...], steps: tuple[int, ...]) -> None:
    """Train small versions of the run in PLANNED.yaml, a configuration of `lmworks pretrain`.

    Every size is trained for every number of steps, into model folders in OUTPUT, which `lmworks scaling fit` reads.
    Run again after a stop, it goes on.
    """
    from lmworks.train.ladder import ladder_configs, run_ladder
    from lmworks.train.pretrain import PretrainConfig

    pairs = [_size(text) for text in sizes]
    folders = run_ladder(ladder_configs(PretrainConfig.from_yaml(planned), pairs, steps, output))
    click.echo(f"{len(folders)} runs; fit them with: lmworks scaling fit {output}/* --loss validation_bits_per_byte")


def _size(text: str) -> tuple[int, int]:
    hidden_size, _, layers = text.partition("x")
    if not (hidden_size.isdecimal() and layers.isdecimal()):
        raise click.BadParameter(f"{text!r} is not HIDDENxLAYERS, such as 128x4", param_hint="--size")
    return int(hidden_size), int(layers)
