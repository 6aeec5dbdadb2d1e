"""Batches of one server: kept in the folder of files, run a few at a time, resumed after a restart.

A batch's results grow line by line in `<id>.output` and `<id>.errors`; a restarted server leaves out the lines that are
there. Knows no route.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmworks.protocol.errors import InvalidRequestError
from lmworks.protocol.files import (
    MAX_LINES,
    BatchCounts,
    BatchError,
    BatchErrors,
    BatchLine,
    BatchObject,
    BatchRequest,
    BatchStatus,
    read_batch_line,
)
from lmworks.server.caller import Caller
from lmworks.server.file_store import FileStore, read_all, write_json

if TYPE_CHECKING:
    from lmworks.server.state import ServerState

logger = logging.getLogger(__name__)

WINDOW_SECONDS = 24 * 3600
MAX_BATCHES = 1000
MAX_RUNNING = 2
SHOWN_ERRORS = 100
LOW_PRIORITY = 1000
"""Of a batch's requests: whoever waits for an answer goes first."""
ENDED: frozenset[BatchStatus] = frozenset({"completed", "failed", "expired", "cancelled"})


class BatchStore:
    """All batches. One event loop's own."""

    def __init__(self, files: FileStore) -> None:
        self._files = files
        self._batches: dict[str, tuple[str, BatchObject]] = {}
        """Id to owner and batch, the oldest first."""
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._turns = asyncio.Semaphore(MAX_RUNNING)
        if files.is_lasting:
            found = [(values.pop("owner"), BatchObject(**values)) for values in read_all(files.folder, "batch_*.json")]
            self._batches = {batch.id: (owner, batch) for owner, batch in sorted(found, key=lambda f: f[1].created_at)}

    def create(self, state: ServerState, asked: BatchRequest, owner: str) -> BatchObject:
        """Begin a batch.

        Raises:
            InvalidRequestError: there are too many (429).
        """
        if len(self._batches) >= MAX_BATCHES:
            raise InvalidRequestError(f"There are {MAX_BATCHES} batches already", "Try again later", status=429)
        now = int(time.time())
        batch = BatchObject(
            id=f"batch_{uuid.uuid4().hex}",
            endpoint=asked.endpoint,
            input_file_id=asked.input_file_id,
            completion_window=asked.completion_window or "24h",
            status="validating",
            created_at=now,
            expires_at=now + WINDOW_SECONDS,
            metadata=asked.metadata,
        )
        self._batches[batch.id] = (owner, batch)
        self._save(batch, owner)
        self._start(state, batch, owner)
        return batch

    def get(self, batch_id: str, owner: str) -> BatchObject:
        """A client's own batch.

        Raises:
            InvalidRequestError: there is none (404).
        """
        found = self._batches.get(batch_id)
        if found is None or found[0] != owner:
            raise InvalidRequestError(f"No such batch: {batch_id[:80]!r}", param="batch_id", status=404)
        return found[1]

    def list(self, owner: str) -> list[BatchObject]:
        """A client's batches, the latest first."""
        return [batch for whose, batch in reversed(self._batches.values()) if whose == owner]

    def cancel(self, batch_id: str, owner: str) -> BatchObject:
        """Leave the rest undone, unless the batch has ended; errors as in `get`."""
        batch = self.get(batch_id, owner)
        if batch.status not in ENDED:
            batch.status, batch.cancelling_at = "cancelling", int(time.time())
            self._tasks[batch_id].cancel()
        return batch

    def resume(self, state: ServerState) -> None:
        """Go on with what an earlier server left."""
        for owner, batch in self._batches.values():
            if batch.status not in ENDED:
                self._start(state, batch, owner)

    async def stop(self) -> None:
        """Leave everything as it is, to be resumed."""
        tasks = list(self._tasks.values())
        self._tasks.clear()  # whose task is gone was not cancelled by its client
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _start(self, state: ServerState, batch: BatchObject, owner: str) -> None:
        self._tasks[batch.id] = asyncio.create_task(self._run(state, batch, owner))

    async def _run(self, state: ServerState, batch: BatchObject, owner: str) -> None:
        try:
            async with self._turns:
                await self._run_lines(state, batch, owner)
        except asyncio.CancelledError:
            if batch.id in self._tasks:
                self._end(batch, owner, "cancelled")
        except Exception as error:
            logger.exception("batch %s failed", batch.id)
            batch.errors = BatchErrors(data=[BatchError(code="server_error", message=str(error))])
            self._end(batch, owner, "failed")
        finally:
            self._tasks.pop(batch.id, None)

    async def _run_lines(self, state: ServerState, batch: BatchObject, owner: str) -> None:
        from lmworks.server.batch_lines import run_lines  # its endpoints need the state, which holds this store

        lines, errors = await asyncio.to_thread(_read, self._files.path(batch.input_file_id), batch.endpoint)
        if errors:
            batch.errors = BatchErrors(data=errors)
            self._end(batch, owner, "failed")
            return
        done = {name: self._results(batch, name) for name in ("output", "errors")}
        batch.status, batch.in_progress_at = "in_progress", batch.in_progress_at or int(time.time())
        finished = {name: _custom_ids(path) for name, path in done.items()}
        counts = BatchCounts(total=len(lines), completed=len(finished["output"]), failed=len(finished["errors"]))
        batch.request_counts = counts
        self._save(batch, owner)
        with done["output"].open("a", encoding="utf-8") as output, done["errors"].open("a", encoding="utf-8") as failed:

            def record(_: BatchLine, result: dict[str, Any], succeeded: bool) -> None:
                target = output if succeeded else failed
                target.write(json.dumps(result, ensure_ascii=False) + "\n")
                target.flush()
                counts.completed += succeeded
                counts.failed += not succeeded

            known = finished["output"] | finished["errors"]
            todo = (line for line in lines if line.custom_id not in known)
            await run_lines(state, todo, Caller(owner, LOW_PRIORITY), record)
        batch.status, batch.finalizing_at = "finalizing", int(time.time())
        self._end(batch, owner, "completed")

    def _end(self, batch: BatchObject, owner: str, status: BatchStatus) -> None:
        """Turn results into files and write the batch's end down."""
        for name, field in (("output", "output_file_id"), ("errors", "error_file_id")):
            path = self._results(batch, name)
            if path.is_file() and path.stat().st_size:
                stored = self._files.add(path, owner, f"{batch.id}_{name}.jsonl", "batch_output")
                setattr(batch, field, stored.id)
            path.unlink(missing_ok=True)
        batch.status = status
        setattr(batch, f"{status}_at", int(time.time()))
        self._save(batch, owner)

    def _results(self, batch: BatchObject, name: str) -> Path:
        return self._files.folder / f"{batch.id}.{name}"

    def _save(self, batch: BatchObject, owner: str) -> None:
        write_json(self._files.folder / f"{batch.id}.json", {"owner": owner, **batch.model_dump()})


def _read(path: Path, endpoint: str) -> tuple[list[BatchLine], list[BatchError]]:
    """Every line of the input, and what is wrong with them."""
    lines: list[BatchLine] = []
    errors: list[BatchError] = []
    seen: set[str] = set()
    for number, raw in _numbered(path):
        try:
            if number > MAX_LINES:
                raise InvalidRequestError(f"a batch has {MAX_LINES} lines at most", code="too_many_requests")
            line = read_batch_line(raw, endpoint)
            if line.custom_id in seen:
                problem = f"'custom_id' {line.custom_id[:80]!r} comes twice"
                raise InvalidRequestError(problem, param="custom_id", code="duplicate_custom_id")
        except InvalidRequestError as error:
            errors.append(
                BatchError(code=error.code or "invalid_request", line=number, message=str(error), param=error.param)
            )
            if len(errors) == SHOWN_ERRORS or number > MAX_LINES:
                break
        else:
            seen.add(line.custom_id)
            lines.append(line)
    if not lines and not errors:
        errors.append(BatchError(code="empty_file", message="the file has no lines"))
    return lines, errors


def _numbered(path: Path) -> Iterator[tuple[int, bytes]]:
    with path.open("rb") as source:
        for number, raw in enumerate(source, 1):
            if raw.strip():
                yield number, raw


def _custom_ids(path: Path) -> set[str]:
    """Of the results that are there; a line cut short by a crash is done again."""
    ids = set()
    if path.is_file():
        whole = [raw for _, raw in _numbered(path) if raw.endswith(b"\n")]
        path.write_bytes(b"".join(whole))
        ids = {json.loads(raw)["custom_id"] for raw in whole}
    return ids
