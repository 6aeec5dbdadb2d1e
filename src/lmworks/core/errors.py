"""The one tree of errors a user can meet.

Each message names the value, the rule it broke and the remedy. A mistake in our own code is an
`assert`, never one of these. Knows nothing of HTTP: `protocol` maps these classes to status codes.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from pathlib import Path
from typing import Self


class LMWorksError(Exception):
    """Base of every error caused by input, environment or configuration.

    Args:
        problem: what is wrong, naming the offending value and the rule.
        remedy: what the user can do about it; appended as its own sentence.
    """

    def __init__(self, problem: str, remedy: str = "") -> None:
        self.problem = problem.rstrip(". ")
        self.remedy = remedy.rstrip(". ")
        super().__init__(f"{self.problem}. {self.remedy}." if remedy else f"{self.problem}.")

    def again(self) -> Self:
        """The same to raise once more: one object would hold the frames of everybody it was ever raised to."""
        return copy(self)


class ConfigError(LMWorksError):
    """A configuration value is unknown, of the wrong type or impossible."""


class MissingExtraError(LMWorksError):
    """An optional dependency is needed for what was asked."""


class ArtifactError(LMWorksError):
    """An artifact folder is missing, incomplete, or does not match its manifest."""


class ArtifactVersionError(ArtifactError):
    """An artifact was written in the format of another version of this program."""


class CheckpointError(ArtifactError):
    """Weights cannot be read, or do not fit the model they are loaded into."""


class TokenizerError(LMWorksError):
    """A tokenizer or chat template is invalid, or does not fit the model beside it."""


class DataError(LMWorksError):
    """Input documents are empty, unreadable, or leave nothing to train on."""


class DownloadError(LMWorksError):
    """A file could not be brought from a package index, or is not the one that was asked for."""


class TrainingError(LMWorksError):
    """Training cannot start or cannot go on."""


class ModelTooLargeError(TrainingError):
    """What a step keeps would not fit into the memory there is."""


class ParallelError(LMWorksError):
    """A model, a batch or a number of processes cannot be divided as asked, or a rank failed."""


class EngineError(LMWorksError):
    """The inference engine cannot serve what was asked."""


class RequestError(EngineError):
    """One request is invalid; other requests are not affected."""


class RequestTooLongError(RequestError):
    """Prompt plus requested tokens exceed the model's context."""


class ModelNotFoundError(RequestError):
    """No served model has the requested name."""


class EngineOverloadedError(EngineError):
    """The waiting queue is full.

    Args:
        problem: which limit was met.
        remedy: what the client can do.
        retry_after_seconds: when there should be room again.
    """

    def __init__(self, problem: str, remedy: str = "", *, retry_after_seconds: int = 1) -> None:
        super().__init__(problem, remedy)
        self.retry_after_seconds = retry_after_seconds


class DeadlineExceededError(EngineError):
    """A request was not answered within the time that it set."""


class EndpointError(LMWorksError):
    """An endpoint over HTTP did not answer, or with something else than what was asked."""


class EngineUnavailableError(EngineError):
    """The engine is being loaded or started again; the client may retry later."""


class RateLimitError(LMWorksError):
    """One client asks for more than its share.

    Args:
        problem: which limit was met.
        remedy: what the client can do.
        retry_after_seconds: when to come back.
    """

    def __init__(self, problem: str, remedy: str = "", *, retry_after_seconds: int = 1) -> None:
        super().__init__(problem, remedy)
        self.retry_after_seconds = retry_after_seconds


class ServerError(LMWorksError):
    """The HTTP server cannot start: port in use, no model, bad address."""


class EvalError(LMWorksError):
    """An evaluation task or its data is invalid."""


class RecipeError(ConfigError):
    """A recipe file names an unknown stage, an unknown field or a missing input."""


class RunInProgressError(LMWorksError):
    """Another process is running a recipe in the same folder."""


class WorkerError(LMWorksError):
    """A process that did a part of the work ended before it was done."""


class ProbeError(LMWorksError):
    """A server started to be tried once did not come up or did not answer."""


class DiskFullError(LMWorksError):
    """A file could not be written because the device or quota is full."""


_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn 'no space left', 'quota exceeded' and 'file too large' into a `DiskFullError` naming `path`."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise DiskFullError(
                f"writing {path} failed: {error.strerror}",
                "Free some space or choose another output folder; nothing half-written was kept",
            ) from error
        raise


def require(module: str, extra: str) -> None:
    """Raise `MissingExtraError` naming the extra when `module` is not importable."""
    from importlib.util import find_spec

    if find_spec(module.partition(".")[0]) is None:
        raise MissingExtraError(
            f"the package {module!r} is needed here and is not installed",
            f"Install it with: pip install 'lmworks[{extra}]'",
        )
