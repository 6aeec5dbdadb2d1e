"""Where a run's figures are shown besides `metrics.jsonl`: console, TensorBoard, MLflow. Knows no trainer.

A resumed run goes on in the same place, and so does one that rewinds: what it will do again is forgotten or written
over.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Protocol

from pydantic import Field

from lmworks.core.config import Config
from lmworks.core.errors import disk_errors, require
from lmworks.core.progress import say
from lmworks.train.nested import leaves

Record = Mapping[str, Any]


class TrackingConfig(Config):
    """Sinks of the figures of a run; `metrics.jsonl` is always written."""

    console_every: Annotated[int, Field(gt=0)] | None = None
    """Steps between lines on the console; None leaves it to the progress bar."""
    tensorboard: Path | None = None
    """Folder for TensorBoard's event files. Needs `lmworks[track]`."""
    mlflow: str | None = None
    """Tracking URI of MLflow, such as `sqlite:///mlflow.db` or a server's address. Needs `lmworks[track]`."""
    mlflow_experiment: str = "lmworks"
    """Experiment that the run belongs to."""


class Sink(Protocol):
    """Takes the record of every step."""

    def write(self, record: Record) -> None:
        """Show one record."""
        ...

    def back(self, step: int) -> None:
        """Forget, where that is possible, what came after a step."""
        ...


@contextmanager
def open_sinks(config: TrackingConfig, run_folder: Path, step: int, settings: Record) -> Iterator[list[Sink]]:
    """The configured sinks, closed at the end.

    Args:
        config: which.
        run_folder: where the identity of an MLflow run is kept.
        step: updates done; figures of later steps are from a run that was cut off.
        settings: of the run, nested; shown where a sink has a place for them.

    Raises:
        MissingExtraError: TensorBoard or MLflow is not installed.
    """
    sinks: list[Sink] = []
    with ExitStack() as stack:
        if config.console_every is not None:
            sinks.append(ConsoleSink(config.console_every))
        if config.tensorboard is not None:
            board = TensorBoardSink(config.tensorboard, step)
            stack.callback(board.close)
            sinks.append(board)
        if config.mlflow is not None:
            mlflow = MLflowSink(config.mlflow, config.mlflow_experiment, run_folder, settings)
            stack.push(mlflow.finish)
            sinks.append(mlflow)
        yield sinks


class ConsoleSink:
    """One line for a person now and then.

    Args:
        every: steps between lines.
    """

    def __init__(self, every: int) -> None:
        self.every = every

    def write(self, record: Record) -> None:
        """Say the figures, if it is time."""
        if record["step"] % self.every == 0:
            figures = (f"{key} {value:.4g}" for key, value in flat(record).items() if key not in ("step", "tokens"))
            say(f"step {record['step']}: " + ", ".join(figures))

    def back(self, step: int) -> None:
        """What was said stays."""


class TensorBoardSink:
    """Event files for TensorBoard.

    Args:
        folder: for the files.
        step: what earlier runs wrote after it is hidden.
    """

    def __init__(self, folder: Path, step: int) -> None:
        require("tensorboard", "track")
        self._folder = folder
        self._writer = self._open(step)

    def _open(self, step: int) -> Any:
        from torch.utils.tensorboard import SummaryWriter

        with disk_errors(self._folder):
            return SummaryWriter(str(self._folder), purge_step=step + 1)

    def write(self, record: Record) -> None:
        """One scalar per figure."""
        for key, value in flat(record).items():
            if key != "step":
                self._writer.add_scalar(key, value, record["step"])

    def back(self, step: int) -> None:
        """Go on in a new file, which hides what came after the step."""
        self._writer.close()
        self._writer = self._open(step)

    def close(self) -> None:
        """Write what is buffered."""
        self._writer.close()


class MLflowSink:
    """A run of MLflow, the same one after a resume.

    Args:
        uri: where MLflow tracks.
        experiment: the run's group.
        run_folder: keeps the run's identity.
        settings: logged as parameters of a new run.
    """

    def __init__(self, uri: str, experiment: str, run_folder: Path, settings: Record) -> None:
        require("mlflow", "track")
        client = import_module("mlflow.tracking").MlflowClient

        self._client: Any = client(tracking_uri=uri)
        kept = run_folder / "mlflow_run_id"
        if kept.exists():
            self._run = kept.read_text(encoding="utf-8")
            self._client.update_run(self._run, status="RUNNING")
            return
        found = self._client.get_experiment_by_name(experiment)
        identity = self._client.create_experiment(experiment) if found is None else found.experiment_id
        self._run = self._client.create_run(identity, run_name=run_folder.name).info.run_id
        for key, value in leaves(settings, "/").items():
            self._client.log_param(self._run, key, value)
        with disk_errors(kept):
            kept.write_text(self._run, encoding="utf-8")

    def write(self, record: Record) -> None:
        """One metric per figure."""
        for key, value in flat(record).items():
            if key != "step":
                self._client.log_metric(self._run, key, value, step=record["step"])

    def back(self, step: int) -> None:
        """MLflow keeps every value, and shows the newest of a step."""

    def finish(self, kind: type[BaseException] | None, *_: object) -> None:
        """Say how the run ended: killed by a signal, failed or finished."""
        status = "FINISHED" if kind is None else "KILLED" if issubclass(kind, SystemExit) else "FAILED"
        self._client.set_terminated(self._run, status)


def flat(record: Record) -> dict[str, float]:
    """The numbers of a nested record, by keys joined with `/`."""
    return {key: value for key, value in leaves(record, "/").items() if isinstance(value, int | float)}
