"""A file of requests answered without a server: `run_batch(config, input, output)`. Knows no HTTP.

Input and output are those of `/v1/batches`, with any endpoint in each line; results come in the order of the input.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from lmworks.core.errors import DataError, disk_errors
from lmworks.core.progress import bar
from lmworks.protocol.errors import InvalidRequestError
from lmworks.protocol.files import BatchLine, read_batch_line
from lmworks.server.admission import Turnstile
from lmworks.server.batch_lines import run_lines
from lmworks.server.caller import Caller
from lmworks.server.config import ServeConfig
from lmworks.server.serve import spawned, wait_until_ready
from lmworks.server.state import ServerState


def run_batch(config: ServeConfig, source: Path, target: Path) -> int:
    """Answer every line of a JSONL file.

    Args:
        config: the models that lines may name.
        source: `{"custom_id", "method": "POST", "url", "body"}` a line.
        target: `{"id", "custom_id", "response", "error"}` a line.

    Returns:
        How many lines failed; their errors are in the output.

    Raises:
        DataError: a line cannot be read; nothing was run then.
        LMWorksError: a model cannot be loaded, or the output not be written.
    """
    lines = read_lines(source)
    with spawned(config) as models:
        wait_until_ready(models)
        state = ServerState.of(models, config, Turnstile(config))
        try:
            results = asyncio.run(_run(state, lines))
        finally:
            state.close()
    with disk_errors(target):
        target.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in results), encoding="utf-8")
    return sum(result["response"]["status_code"] != 200 for result in results)


def read_lines(source: Path) -> list[BatchLine]:
    """The requests of a file.

    Raises:
        DataError: the file is not there, or a line cannot be read.
    """
    try:
        raws = source.read_bytes().splitlines()
    except OSError as error:
        raise DataError(f"cannot read {source}: {error.strerror}", "Give a JSONL file") from None
    lines = []
    for number, raw in enumerate(raws, 1):
        if raw.strip():
            try:
                lines.append(read_batch_line(raw, None))
            except InvalidRequestError as error:
                raise DataError(f"{source}, line {number}: {error.problem}", error.remedy) from None
    return lines


async def _run(state: ServerState, lines: list[BatchLine]) -> list[dict[str, Any]]:
    results: dict[int, dict[str, Any]] = {}
    with bar("Requests", len(lines)) as progress:

        def record(line: BatchLine, result: dict[str, Any], _: bool) -> None:
            results[id(line)] = result
            progress.advance()

        await run_lines(state, lines, Caller(), record)
    return [results[id(line)] for line in lines]
