"""Many clients of an OpenAI server in one process of its own: what they ask, when, and what they wait for.

Answers lines of JSON, so that servers can be asked in turn. It speaks HTTP itself, for on a machine of two cores a
client library would take from the server what it measures. Knows no server.

A case: `port`, `model`, `streams`, `requests`, `prompt` and `tokens` (numbers of tokens), `shared` (of the prompt's
tokens, how many all requests begin with), `rate` (requests a second that arrive by themselves, as a Poisson process;
0: every stream sends its next when its last is answered). Prompts and arrivals follow from its name `case` and its
`turn`, so that no server meets a prompt again.
"""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from interleaved import answer_lines

PATIENCE = 600.0


@dataclass
class Answered:
    """One request as its client saw it."""

    sent: float
    arrivals: list[float] = field(default_factory=list)
    """Of pieces of text."""
    tokens: int = 0
    fault: str | None = None


async def post(port: int, path: str, body: dict[str, Any]) -> AsyncIterator[bytes]:
    """Lines of the body that a server streams in answer.

    Raises:
        RuntimeError: the status is not 200.
    """
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        content = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Connection: close\r\nContent-Length: {len(content)}\r\n\r\n".encode() + content)
        status = (await reader.readline()).split()[1:2]
        while (await reader.readline()).strip():
            pass
        if status != [b"200"]:
            raise RuntimeError(f"status {status}")
        rest = b""
        while size := int((await reader.readline()).strip() or b"0", 16):
            *lines, rest = (rest + await reader.readexactly(size)).split(b"\n")
            await reader.readexactly(2)
            for line in lines:
                yield line.strip()
    finally:
        writer.close()


async def complete(case: dict[str, Any], number: int) -> Answered:
    """Send one request and read its answer to the end."""
    seed, own = f"{case['case']} {case['turn']}", case["prompt"] - case["shared"]
    common, chosen = random.Random(seed), random.Random(f"{seed} {number}")
    prompt = [common.randrange(100, 4000) for _ in range(case["shared"])]
    prompt += [chosen.randrange(100, 4000) for _ in range(own)]
    body = {
        "model": case["model"], "prompt": prompt, "max_tokens": case["tokens"], "temperature": 0, "ignore_eos": True,
        "stream": True, "stream_options": {"include_usage": True},
    }  # fmt: skip
    answered, ended = Answered(time.perf_counter()), False
    try:
        async with asyncio.timeout(PATIENCE):
            async for line in post(case["port"], "/v1/completions", body):
                ended = ended or line == b"data: [DONE]"
                if ended or not line.startswith(b"data: "):
                    continue
                event = json.loads(line[6:])
                if event.get("choices"):
                    answered.arrivals.append(time.perf_counter())
                answered.tokens = max(answered.tokens, (event.get("usage") or {}).get("completion_tokens", 0))
        if not ended or answered.tokens != case["tokens"]:
            answered.fault = f"{answered.tokens} tokens, {'ended' if ended else 'broken off'}"
    except (OSError, EOFError, RuntimeError, ValueError, TimeoutError) as error:
        answered.fault = repr(error)
    return answered


async def load(case: dict[str, Any]) -> list[Answered]:
    """Send all requests of a case."""
    if case["rate"]:
        gaps, pending = random.Random(f"{case['case']} {case['turn']}"), []
        for number in range(case["requests"]):
            pending.append(asyncio.create_task(complete(case, number)))
            await asyncio.sleep(gaps.expovariate(case["rate"]))
        return await asyncio.gather(*pending)
    numbers = iter(range(case["requests"]))

    async def stream() -> list[Answered]:
        return [await complete(case, number) for number in numbers]

    return [answered for each in await asyncio.gather(*(stream() for _ in range(case["streams"]))) for answered in each]


def told(answers: list[Answered]) -> dict[str, Any]:
    """Tokens a second from the first sending to the last arrival, waiting times in milliseconds, and faults."""
    good = [a for a in answers if a.fault is None and a.arrivals]
    faults = [a.fault or "empty" for a in answers if a not in good]
    if not good:
        return {"tokens_per_second": 0.0, "ttft_p50": 0.0, "ttft_p95": 0.0, "itl_p50": 0.0, "faults": faults}
    first = sorted(1e3 * (a.arrivals[0] - a.sent) for a in good)
    # A piece may hold several tokens, so an answer's time between tokens is its mean.
    between = [1e3 * (a.arrivals[-1] - a.arrivals[0]) / max(a.tokens - 1, 1) for a in good]
    seconds = max(a.arrivals[-1] for a in good) - min(a.sent for a in answers)
    return {
        "tokens_per_second": sum(a.tokens for a in good) / seconds, "ttft_p50": statistics.median(first),
        "ttft_p95": first[round(0.95 * (len(first) - 1))], "itl_p50": statistics.median(between), "faults": faults,
    }  # fmt: skip


if __name__ == "__main__":
    answer_lines(lambda case: told(asyncio.run(load(case))))
