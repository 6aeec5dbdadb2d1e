"""The frame of the benchmarks: who runs when, what a row says, and what a client of a server counts."""

import asyncio
import json
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
ROW = {"case", "ours", "unit", "peer", "theirs", "ratio", "spread", "limit_share"}

ECHO = """
import json, sys
print("loading")
print("{}", flush=True)
for line in sys.stdin:
    case = json.loads(line)
    with open(sys.argv[1], "a") as log:
        log.write(f"{sys.argv[2]} {case['case']} {case['turn']}\\n")
    print(json.dumps({"seconds": 1.0}), flush=True)
"""


@pytest.fixture(autouse=True)
def path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def test_every_case_meets_every_contestant_in_turn(tmp_path: Path) -> None:
    from interleaved import Contestant, in_turn, running

    log = tmp_path / "log"
    contestants = [Contestant(name, [sys.executable, "-c", ECHO, str(log), name]) for name in ("a", "b")]
    cases = [{"case": "x"}, {"case": "y", "contestants": ["b"]}]
    with running(contestants):
        answers = in_turn(contestants, cases, 2)
    turns = [f"{who} {turn}" for turn in range(3) for who in ("a x", "b x", "b y")]
    assert log.read_text().splitlines() == turns
    assert {key: len(found) for key, found in answers.items()} == {("a", "x"): 2, ("b", "x"): 2, ("b", "y"): 2}


def test_a_contestant_that_ends_says_why() -> None:
    from interleaved import Contestant, running

    broken = Contestant("broken", [sys.executable, "-c", "raise SystemExit('no such model')"])
    with pytest.raises(RuntimeError, match="broken ended with status 1: no such model"), running([broken]):
        pass


@pytest.mark.parametrize(("less_is_better", "peer", "ratio"), [(False, "fast", 0.5), (True, "slow", 2.0)])
def test_a_row_compares_with_the_best_peer(less_is_better: bool, peer: str, ratio: float) -> None:
    from interleaved import row

    theirs = {"slow": [4.0, 5.0, 6.0], "fast": [20.0]}
    told = row("x", [9.0, 10.0, 11.0], "unit", theirs, 0.5, less_is_better=less_is_better)
    assert told.keys() == ROW | {"peers"}
    assert (told["ours"], told["peer"], told["ratio"]) == (10.0, peer, ratio)
    assert told["spread"] == 0.2


def test_the_last_line_is_the_report(capsys: pytest.CaptureFixture[str]) -> None:
    from interleaved import finish, row

    finish("name", [row("alone", [1.0], "unit", {}, None), row("x", [1.0], "unit", {"peer": [2.0]}, 0.5)], save=False)
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report.keys() == {"benchmark", "commit", "hardware", "rows"}
    assert all(row.keys() >= ROW for row in report["rows"])
    assert report["rows"][0]["peer"] is None


@pytest.mark.parametrize("file", sorted((BENCHMARKS / "results").glob("*.json")), ids=lambda file: file.stem)
def test_kept_results_have_the_documented_shape(file: Path) -> None:
    report = json.loads(file.read_text(encoding="utf-8"))
    assert report.keys() >= {"benchmark", "commit", "hardware", "rows"}
    assert report["rows"]
    assert all(row.keys() >= ROW for row in report["rows"])


EVENT = b'data: {"choices": [{"text": "a"}]}\n\n'
USAGE = b'data: {"choices": [], "usage": {"completion_tokens": 2}}\n\n'
WHOLE = EVENT + EVENT + USAGE + b"data: [DONE]\n\n"


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator[int]:
    """Answers one request with the status and body of the test's parameter, in chunks of seven bytes."""
    status, body = request.param
    listener = socket.create_server(("127.0.0.1", 0))

    def answer() -> None:
        connection, _ = listener.accept()
        with connection:
            heard = b""
            while b'"include_usage": true}}' not in heard:
                heard += connection.recv(65536)
            connection.sendall(b"HTTP/1.1 %d X\r\nTransfer-Encoding: chunked\r\n\r\n" % status)
            for at in range(0, len(body), 7):
                piece = body[at : at + 7]
                connection.sendall(b"%x\r\n%b\r\n" % (len(piece), piece))
            connection.sendall(b"0\r\n\r\n")

    thread = threading.Thread(target=answer)
    thread.start()
    yield listener.getsockname()[1]
    thread.join()
    listener.close()


@pytest.mark.parametrize(
    ("server", "fault"),
    [((200, WHOLE), None), ((200, EVENT), "0 tokens, broken off"), ((503, b""), "status"), ((200, b""), "broken off")],
    indirect=["server"],
)
def test_a_client_counts_tokens_and_faults(server: int, fault: str | None) -> None:
    from load_client import load, told

    case: dict[str, Any] = {
        "case": "x", "turn": 1, "port": server, "model": "m", "streams": 1, "requests": 1, "rate": 0,
        "prompt": 3, "shared": 2, "tokens": 2,
    }  # fmt: skip
    result = told(asyncio.run(load(case)))
    if fault is None:
        assert result["faults"] == []
        assert result["tokens_per_second"] > 0
        assert result["ttft_p50"] > 0
    else:
        assert len(result["faults"]) == 1
        assert fault in result["faults"][0]
