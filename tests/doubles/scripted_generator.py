"""A generator that answers by rule, counts and logs its calls, and fails or dies where told; and rows to begin with."""

import json
import os
import signal
from random import Random

from lmworks.core.generation import CompletionOutput, RequestOutput
from lmworks.data.synthesis.synthesize import OUTCOMES, SynthesizeConfig

NOUNS = [
    "rivers",
    "bridges",
    "poems",
    "planets",
    "engines",
    "spices",
    "painters",
    "storms",
    "numbers",
    "insects",
    "harbors",
    "violins",
]
VERBS = [
    "Describe",
    "Compare",
    "Translate",
    "Count",
    "Draw",
    "Explain",
    "Rank",
    "Defend",
    "Imagine",
    "Summarize",
    "Question",
    "Classify",
]


class Logged:
    """Answers as `Scripted` does; writes down what was asked, and dies by SIGKILL in the middle of a call."""

    def __init__(self, log, last=None):
        self.inner, self.log, self.last = Scripted(), log, last

    def chat(self, conversations, sampling_params):
        with self.log.open("ab", buffering=0) as stream:
            for conversation in conversations:
                stream.write(json.dumps([conversation[-1].content, sampling_params.seed]).encode() + b"\n")
        outputs = self.inner.chat(conversations, sampling_params)
        if self.last is not None and len(self.log.read_bytes().splitlines()) >= self.last:
            os.kill(os.getpid(), signal.SIGKILL)
        return outputs


class Scripted:
    """Answers as a pure function of request, seed and number; counts calls; fails where told."""

    def __init__(self, fails=(), stop_after=None, script=None):
        self.calls, self.fails, self.stop_after, self.script = 0, fails, stop_after, script

    def chat(self, conversations, sampling_params):
        self.calls += 1
        if self.stop_after is not None and self.calls > self.stop_after:
            raise KeyboardInterrupt
        outputs = []
        for conversation in conversations:
            request = conversation[-1].content
            if any(word in request for word in self.fails):
                raise TimeoutError(f"no answer to {request[:9]!r}")
            texts = [self.answer(request, sampling_params.seed, n) for n in range(sampling_params.n)]
            outputs.append(RequestOutput("r", request, (), tuple(CompletionOutput(text, (), "stop") for text in texts)))
        return outputs

    def generate(self, prompts, sampling_params):
        raise AssertionError("conversations are asked")

    def answer(self, request, seed, n):
        if self.script is not None:
            return self.script(request, n)
        random = Random(f"{request}{seed}{n}")
        if "nothing else" in request:
            return f"1. {random.choice(VERBS)} {random.choice(NOUNS)} for {random.choice(NOUNS)} {random.random()}"
        return f"An answer {n} to: {request}"


def write(file, *rows):
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return file


def seeds(folder, count=8, **more):
    rows = [{"prompt": f"{verb} the {NOUNS[n]} now", "id": f"s{n}", **more} for n, verb in enumerate(VERBS[:count])]
    return write(folder / "seeds.jsonl", *rows)


def config(folder, method, **more):
    more.setdefault("inputs", (folder / "seeds.jsonl",))
    return SynthesizeConfig(method=method, output=folder / "out", **more)


def rows(folder):
    return [json.loads(line) for line in (folder / "out/conversations.jsonl").read_text().splitlines()]


def outcomes(folder):
    return [json.loads(line) for line in (folder / "out" / OUTCOMES).read_text().splitlines()]
