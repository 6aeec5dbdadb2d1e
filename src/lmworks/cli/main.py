"""The command table and the way every command ends: exit status and message.

0 done; 1 an unexpected error (with its traceback) or a bound that does not hold; 2 a mistake of the user's, in
one line; 130 stopped by Ctrl-C. Commands are imported when called, so `--help` is instant.
"""

from __future__ import annotations

import os
import sys
import traceback
from typing import NoReturn

import click

import lmworks
from lmworks.cli.lazy import Entry, LazyGroup
from lmworks.core.errors import LMWorksError
from lmworks.pipeline.stages import STAGES

COMMANDS: dict[str, Entry] = {
    **{name: Entry("lmworks.cli.stage:stage_command", stage.summary) for name, stage in STAGES.items()},
    "data forget": Entry("lmworks.cli.forget:forget", "Show what holds a document or was trained on it; remove it."),
    "data reveal": Entry("lmworks.cli.forget:reveal", "Turn a vault's labels back into what they stand for."),
    "data validate": Entry("lmworks.cli.rows:validate", "Look for faults in rows for tuning, each with its line."),
    "data convert": Entry("lmworks.cli.rows:convert", "Write rows for tuning in another layout, type or kind of file."),
    "data convert-tokens": Entry("lmworks.cli.tokens:convert", "Write token files in another form: .ds, .bin, shards."),
    "data balance": Entry("lmworks.cli.rows:balance", "Take rows for tuning in wanted shares of tasks or languages."),
    "data label": Entry("lmworks.cli.label:label", "Open a page on which people compare answers."),
    "data agreement": Entry("lmworks.cli.label:agreement", "Measure how far annotators agree; write preferences."),
    "run": Entry("lmworks.cli.run:run", "Run a recipe: every stage in order, skipping what has not changed."),
    "trace": Entry("lmworks.cli.trace:trace", "Show what an artifact or an answer was made from."),
    "generate": Entry("lmworks.cli.generate:generate", "Continue a prompt with a model folder or GGUF file."),
    "chat": Entry("lmworks.cli.chat:chat", "Talk to a model folder or GGUF file in the terminal."),
    "prove": Entry("lmworks.cli.prove:prove", "Measure this package's promises on this machine."),
    "schema": Entry("lmworks.cli.schema:schema", "Print a JSON Schema: of recipes or of one stage's fields."),
    "model describe": Entry("lmworks.cli.model:describe", "Describe a model: layers, parameters, operations, memory."),
    "model list": Entry("lmworks.cli.model:list_presets", "List published models that are known by name."),
    "scaling run": Entry("lmworks.cli.scaling:run", "Train small versions of a planned run."),
    "scaling fit": Entry("lmworks.cli.scaling:fit", "Fit a scaling law to runs and plan a larger one."),
    "launch torchrun": Entry("lmworks.cli.launch:launch_command", "Start a training step on one or several hosts."),
    "launch slurm": Entry("lmworks.cli.launch:launch_command", "Write a Slurm script for a training step."),
    "launch kubernetes": Entry("lmworks.cli.launch:launch_command", "Write a manifest for a training step."),
    "replay": Entry("lmworks.cli.replay:replay", "Make one step of a pretraining run again and look at it."),
    "plan train": Entry("lmworks.cli.plan_training:train", "Foresee memory and communication of a training step."),
    "tokenizer compare": Entry("lmworks.cli.tokenizer:compare", "Measure tokenizers on the same texts."),
    "tokenizer extend": Entry("lmworks.cli.tokenizer:extend", "Give a tokenizer, and its model, more tokens."),
    "export checkpoint": Entry("lmworks.cli.export:checkpoint", "Write a checkpoint of a run as a model folder."),
    "export gguf": Entry("lmworks.cli.export:gguf", "Write a model and its tokenizer as one file for llama.cpp."),
}
GROUPS = {
    "data": "Bring, clean and tokenize text.",
    "tokenizer": "Train, compare and extend tokenizers.",
    "tune": "Adapt a trained model.",
    "model": "Look at a model.",
    "export": "Write a model in another format.",
    "launch": "Train on other machines.",
    "plan": "Foresee what a step needs.",
    "scaling": "Foresee what a larger model would reach.",
}

cli = LazyGroup(
    name="lmworks",
    table=COMMANDS,
    groups=GROUPS,
    help="The whole life of a language model: data, tokenizer, pretraining, tuning, compression, evaluation, "
    "serving.\n\nBegin with: lmworks run recipes/life.yaml",
)
cli = click.version_option(lmworks.__version__, prog_name="lmworks")(cli)


def main() -> NoReturn:
    """Entry point of the `lmworks` command."""
    # Threads that wait may spin for some microseconds, then must sleep: endless spinning, OpenMP's default, made
    # training four times slower as soon as another process ran. Read when torch is imported, which is after this line.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    try:
        ended = cli.main(standalone_mode=False)  # the status of a command that called `Exit`
        status = ended if isinstance(ended, int) else 0
    except click.ClickException as error:
        error.show()
        status = error.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.echo("Stopped by Ctrl-C.", err=True)
        status = 130
    except LMWorksError as error:
        click.secho(" ".join(f"Error: {error}".split()), fg="red", err=True)
        for note in getattr(error, "__notes__", ()):
            click.echo(note, err=True)
        status = 2
    except BrokenPipeError:  # the reader, such as `head`, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 0
    except Exception:  # noqa: BLE001 - the last handler: whatever it is, show it and fail
        traceback.print_exc()
        status = 1
    sys.exit(status)
