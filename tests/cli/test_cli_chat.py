"""The terminal chat: it remembers, forgets on request, and survives a full context and Ctrl-C."""

from collections.abc import AsyncIterator
from types import SimpleNamespace

import pytest

from lmworks.cli.chat import converse
from lmworks.core.errors import EngineError, RequestTooLongError
from lmworks.core.messages import Message
from lmworks.core.sampling import SamplingParams


class Echo:
    """Answers with how many messages it saw; `stop` raises Ctrl-C in mid-answer; at most `room` messages fit."""

    def __init__(self, room: int = 100, template: str | None = "a template") -> None:
        self.seen: list[list[str]] = []
        self.room = room
        self.tokenizer = SimpleNamespace(chat_template=template)
        self.prompts = SimpleNamespace(
            chat=lambda messages: [m.content for m in messages], text=lambda text: [text], has_encoder=False
        )

    async def generate(self, prompt: list[str], params: SamplingParams) -> AsyncIterator[SimpleNamespace]:
        if len(prompt) > self.room:
            raise RequestTooLongError("too long", "Shorten it")
        self.seen.append(prompt)
        yield SimpleNamespace(text=f"<{len(prompt)}", token_ids=(1,), error=None)
        if prompt[-1] == "stop":
            raise KeyboardInterrupt
        error = EngineError("not finite", "Check the weights") if prompt[-1] == "fail" else None
        yield SimpleNamespace(text=">", token_ids=(2,), error=error)


def talk(monkeypatch: pytest.MonkeyPatch, llm: Echo, *lines: str, system: str | None = None) -> None:
    waiting = iter(lines)

    def read(prompt: str) -> str:
        try:
            return next(waiting)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", read)
    opening = [Message(role="system", content=system)] if system else []
    converse(llm, opening, SamplingParams())  # type: ignore[arg-type]


def test_history_grows_and_resets(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    llm = Echo()
    talk(monkeypatch, llm, "a", "", "b", "/reset", "c", system="be brief")
    assert llm.seen == [["be brief", "a"], ["be brief", "a", "<2>", "b"], ["be brief", "c"]]
    assert capsys.readouterr().out.split() == ["<2>", "<4>", "<2>"]


def test_ctrl_c_stops_the_answer_not_the_talk(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    llm = Echo()
    talk(monkeypatch, llm, "stop", "b")
    assert llm.seen[-1] == ["b"]
    assert "[stopped]" in capsys.readouterr().err


def test_a_failing_model_ends_the_talk(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(EngineError, match="not finite"):
        talk(monkeypatch, Echo(), "fail", "b")
    assert capsys.readouterr().out.endswith("\n"), "the error begins a line"


def test_full_context_forgets_the_oldest_turn(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    llm = Echo(room=4)
    talk(monkeypatch, llm, "a", "b", "c", system="s")
    assert llm.seen[-1] == ["s", "b", "<4>", "c"]
    assert "forgetting the oldest turn" in capsys.readouterr().err


def test_a_message_that_can_never_fit_is_dropped(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    llm = Echo(room=0)
    talk(monkeypatch, llm, "a", "b")
    assert llm.seen == []
    assert capsys.readouterr().err.count("too long. Shorten it.") == 2


def test_without_a_template_every_line_stands_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    llm = Echo(template=None)
    talk(monkeypatch, llm, "a", "/reset", "b", "")
    assert llm.seen == [["a"], ["b"]]
