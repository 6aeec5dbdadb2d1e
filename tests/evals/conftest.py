"""Scripted models whose probabilities and answers are known exactly, and a small corpus on disk."""

import json
import math

import pytest

from lmworks.core.errors import RequestError, RequestTooLongError
from lmworks.core.generation import CompletionOutput, LogLikelihood, RequestOutput
from lmworks.core.messages import Message

SUBJECTS = ["river", "mountain", "opera", "painter", "bridge", "castle", "novel", "comet", "island", "language"]
PLACES = ["Spain", "Norway", "Chile", "Kenya", "Japan", "Canada", "Egypt", "Poland", "Peru", "Nepal"]


def article(i):
    subject, place = SUBJECTS[i % 10], PLACES[i // 10 % 10]
    return (
        f"Number {i} is a {subject} in {place} known for its age. It was first described in {1500 + 7 * i} by a "
        f"traveler whose diary of {3 * i + 2} pages tells how the {subject} looked at dawn, and what {i + 90} people "
        f"of {place} said of it. Later writers numbered it {i * i + 11} in their lists, and the {subject} has kept "
        f"that number in {place}."
    )


@pytest.fixture
def corpus(tmp_path):
    """A corpus folder: 40 training and 12 validation articles, of which the last stands in the training text too."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    for split, numbers in (("train", range(40)), ("validation", [*range(50, 61), 7])):
        rows = [{"id": f"{n}", "text": article(n), "source": "made", "license": "CC0-1.0"} for n in numbers]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def conversations(tmp_path):
    """A file of held-out conversations."""
    file = tmp_path / "conversations.jsonl"
    rows = [
        {
            "id": f"{i}",
            "messages": [{"role": "user", "content": f"What is {i}?"}, {"role": "assistant", "content": f"It is {i}."}],
        }
        for i in range(5)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture
def questions(tmp_path):
    """A folder of yes/no questions, two of which are training questions."""
    folder = tmp_path / "questions"
    folder.mkdir()
    rows = [
        {"question": f"is {i} even", "passage": f"About the number {i}.", "label": i % 2 == 0, "split": split}
        for i, split in enumerate(["validation"] * 6 + ["train"] * 2)
    ]
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


YES = CompletionOutput("yes", (1,), "stop")


class ByteModel:
    """Every byte after a vowel costs one bit and every other byte three; answers are scripted by prompt."""

    def __init__(self, answers=None, default=YES, bits=(1, 3)):
        self.answers, self.default, self.bits = answers or {}, default, bits
        self.calls, self.params = [], []

    def loglikelihood(self, pairs):
        self.calls.append(len(pairs))
        return [LogLikelihood(-math.log(2) * self.cost(c, text), len(text.encode()), False) for c, text in pairs]

    def cost(self, context, text):
        before = (context or "\0").encode()[-1:] + text.encode()
        return sum(self.bits[0] if byte in b"aeiou" else self.bits[1] for byte in before[:-1])

    def generate(self, prompts, sampling_params):
        self.params.append(sampling_params)
        return [self._output(str(i), prompt) for i, prompt in enumerate(prompts)]

    def chat(self, conversations, sampling_params):
        self.params.append(sampling_params)
        assert all(isinstance(m, Message) for c in conversations for m in c)
        return [self._output(str(i), c[-1].content) for i, c in enumerate(conversations)]

    def _output(self, request_id, prompt):
        if "TOO LONG" in prompt:
            raise RequestTooLongError("the prompt is too long", "Shorten it")
        if "REFUSE" in prompt:
            raise RequestError("the prompt is refused", "Ask something else")
        return RequestOutput(request_id, prompt, (), (self.answers.get(prompt, self.default),))


@pytest.fixture
def byte_model():
    """The class, to be scripted by the test."""
    return ByteModel
