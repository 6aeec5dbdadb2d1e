"""The ways to make a new instruction of given ones, as a table: what is asked, and how the answer is read.

| method | from | publication |
|---|---|---|
| `self_instruct` | examples of the pool | Wang et al. 2023, arXiv:2212.10560 |
| `evol_instruct` | one instruction, made harder or rarer | Xu et al. 2023, arXiv:2304.12244 |
| `back_translation` | a text, to which an instruction is found | Li et al. 2023, arXiv:2308.06259 |
| `paraphrase` | one instruction in other words | – |
| `eda` | one instruction with a few words changed, without a generator | Wei & Zou 2019, arXiv:1901.11196 |
| `rejection_sampling` | the instruction itself; new are its answers | Yuan et al. 2023, arXiv:2308.01825 |

Chance comes from outside, so that an attempt is a pure function of the pool and the attempt's number. Knows no file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, Literal

from lmworks.data.rows.values import RowFault
from lmworks.data.synthesis.eda import EdaConfig, augment, operations
from lmworks.data.synthesis.novelty import words

MethodName = Literal["self_instruct", "evol_instruct", "back_translation", "paraphrase", "eda", "rejection_sampling"]
SHOTS, GENERATED_SHOTS = 8, 2
"""Examples shown by self-instruct, and how many of them at most are generated ones."""
_MOST_WORDS = 150
_SHORT_ANSWER = 80
"""Words below which an apology is a refusal."""
_REFUSAL = re.compile(
    r"\W*(?:(?:i'm |i am )?(?:sorry|unable)\b|i can(?:not|'t|’t)\b|as an ai\b"
    r"|很?(?:抱歉|对不起|對不起)|作为(?:一个)?(?:AI|人工智能))",
    re.IGNORECASE,
)
_APOLOGY = re.compile(r"\bsorry\b|抱歉|对不起|對不起", re.IGNORECASE)
_MORE_THAN_TEXT = re.compile(
    r"\b(?:images?|pictures?|photos?|graphs?|videos?|audio|flowcharts?|diagrams?)\b|图片|图像|照片|视频|音频",
    re.IGNORECASE,
)
"""Words of tasks that Self-Instruct leaves out (section 2.2)."""
_EVOLUTIONS = {
    "add_constraint": "Add one more constraint or requirement to it.",
    "deepen": "Ask for more depth and breadth on its subject.",
    "concretize": "Put specific concepts in the place of general ones.",
    "more_reasoning": "Change it so that answering takes several steps of reasoning.",
    "breadth": "Write a new request of the same domain about something rarer, of similar length and difficulty.",
}


@dataclass(frozen=True)
class Seed:
    """A row that new ones are made of."""

    id: str
    instruction: str
    """Empty of a plain text."""
    response: str
    """Empty where none is known. Of a plain text, the text."""
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Draft:
    """One attempt before anything is generated."""

    operation: str
    parents: tuple[Seed, ...]
    request: str = ""
    """What the generator is asked; empty where `instruction` needs none."""
    instruction: str = ""


@dataclass(frozen=True)
class Method:
    """One row of the table."""

    draft: Callable[[Sequence[Seed], Sequence[Seed], int, Random, EdaConfig], Draft]
    """From seeds, rows made so far, the attempt's number and chance."""
    keeps_response: bool
    """Whether a parent's response, where it has one, answers the new instruction too."""
    makes_instruction: bool = True
    alike: float = 0.7
    """ROUGE-L from which on a new instruction says nothing new, unless the user says otherwise."""
    in_turn: bool = True
    """Whether attempts go over the seeds one after the other; else each draws some by chance."""


def read_instruction(draft: Draft, text: str) -> str:
    """The instruction in what the generator answered.

    Raises:
        RowFault: it is none: empty, too long or short, the parent's own, a refusal, or talk about the task.
    """
    found = re.sub(r"^\s*(?:\d+[.):]|[-*#]+|(?:new |rewritten )?(?:task|instruction|request|prompt)\s*\d*\s*:)\s*", "",
                   text.strip(), flags=re.IGNORECASE)  # fmt: skip
    if (listed := re.search(r"\n\s*2[.):]\s", found)) and re.match(r"\s*1[.):]\s", text):
        found = found[: listed.start()]  # asked for one, some models give a list
    found = found.strip().removeprefix('"').removesuffix('"').strip()
    count = len(words(found))
    if not 3 <= count <= _MOST_WORDS:
        raise RowFault("length", f"the instruction has {count} words, not 3 to {_MOST_WORDS}")
    if _REFUSAL.match(found):
        raise RowFault("refusal", "the generator refused")
    if draft.operation == "self_instruct" and (more := _MORE_THAN_TEXT.search(found)):
        raise RowFault("more than text", f"the task is about {more[0]!r}, which a text cannot hold")
    if re.search(r"(given|original|rewritten|new) (prompt|request|instruction)", found.lower()):
        raise RowFault("talk about the task", "the instruction speaks of instructions")
    if any(words(found) == words(parent.instruction) for parent in draft.parents):
        raise RowFault("unchanged", "the instruction is the parent's")
    if draft.operation == "paraphrase":
        lost = set(re.findall(r"\d+", draft.parents[0].instruction)) - set(re.findall(r"\d+", found))
        if lost:
            raise RowFault("lost number", f"the paraphrase lacks {', '.join(sorted(lost))}")
    return found


def read_response(text: str) -> None:
    """Look at what the generator answered to an instruction.

    An apology in a short answer says that the request cannot be met, by the rule of Evol-Instruct (section 3.2).

    Raises:
        RowFault: it is no answer: empty, without a word, or a refusal.
    """
    if not text.strip():
        raise RowFault("empty", "the response has no text")
    if not re.search(r"\w", text):
        raise RowFault("no words", "the response has signs alone")
    if len(words(text)) < _SHORT_ANSWER and (_REFUSAL.match(text) or _APOLOGY.search(text)):
        raise RowFault("refusal", "the generator refused")


def _self_instruct(seeds: Sequence[Seed], made: Sequence[Seed], number: int, random: Random, _: EdaConfig) -> Draft:
    generated = random.sample(made, min(GENERATED_SHOTS, len(made)))
    shown = [*random.sample(seeds, min(SHOTS - len(generated), len(seeds))), *generated]
    random.shuffle(shown)
    tasks = "\n".join(f"{n}. {' '.join(seed.instruction.split())}" for n, seed in enumerate(shown, 1))
    request = (
        f"These are tasks that people give to an assistant:\n\n{tasks}\n\nWrite one more task that differs from all of "
        "them in subject and kind, and that can be done with text alone. Give the task and nothing else."
    )
    return Draft("self_instruct", tuple(shown), request)


def _evol(seeds: Sequence[Seed], made: Sequence[Seed], number: int, random: Random, _: EdaConfig) -> Draft:
    parent, operation = seeds[number % len(seeds)], random.choice(list(_EVOLUTIONS))
    request = (
        f"Here is a request to an assistant:\n\n{parent.instruction}\n\nRewrite it. {_EVOLUTIONS[operation]} It must "
        "stay answerable and understandable, and grow by 20 words at most. Give the request and nothing else."
    )
    return Draft(operation, (parent,), request)


def _back_translation(seeds: Sequence[Seed], made: Sequence[Seed], number: int, random: Random, _: EdaConfig) -> Draft:
    parent = seeds[number % len(seeds)]
    request = (
        f"Here is a text:\n\n{parent.response}\n\nWrite the request to an assistant to which this text would be the "
        "best answer, in the language of the text. Give the request and nothing else."
    )
    return Draft("back_translation", (parent,), request)


def _paraphrase(seeds: Sequence[Seed], made: Sequence[Seed], number: int, random: Random, _: EdaConfig) -> Draft:
    parent = seeds[number % len(seeds)]
    request = (
        f"Here is a request to an assistant:\n\n{parent.instruction}\n\nSay the same in other words, in the same "
        "language, with every number and name. Give the request and nothing else."
    )
    return Draft("paraphrase", (parent,), request)


def _eda(seeds: Sequence[Seed], made: Sequence[Seed], number: int, random: Random, config: EdaConfig) -> Draft:
    parent, operation = seeds[number % len(seeds)], random.choice(operations(config))
    return Draft(operation, (parent,), instruction=augment(parent.instruction, operation, random, config))


def _rejection(seeds: Sequence[Seed], made: Sequence[Seed], number: int, random: Random, _: EdaConfig) -> Draft:
    parent = seeds[number % len(seeds)]
    return Draft("rejection_sampling", (parent,), instruction=parent.instruction)


METHODS: dict[MethodName, Method] = {
    "self_instruct": Method(_self_instruct, keeps_response=False, in_turn=False),
    "evol_instruct": Method(_evol, keeps_response=False),
    "back_translation": Method(_back_translation, keeps_response=True),
    "paraphrase": Method(_paraphrase, keeps_response=True),
    "eda": Method(_eda, keeps_response=True, alike=1.0),
    "rejection_sampling": Method(_rejection, keeps_response=False, makes_instruction=False),
}
