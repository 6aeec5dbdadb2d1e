"""Task `format`: does the model answer held-out prompts in the form it was taught: say something, end its turn?"""

from __future__ import annotations

from collections.abc import Mapping

from lmworks.core.sampling import SamplingParams
from lmworks.evals.choosing import choose
from lmworks.evals.task import Inputs, Prompt, Sample, Task

MARKERS = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
"""Text of template markers: in an answer they mean that the model wrote the form instead of filling it."""


def build(inputs: Inputs, limit: int, seed: int) -> list[Prompt]:
    """Up to `limit` held-out conversations up to the first assistant turn, which is the reference."""
    prompts = []
    for conversation in inputs.conversations:
        turn = next((i for i, message in enumerate(conversation) if message.role == "assistant"), 0)
        if turn:
            prompts.append(Prompt(tuple(conversation[:turn]), (conversation[turn].content,)))
    return choose(prompts, limit, seed)


def grade(prompt: Prompt, sample: Sample) -> Mapping[str, float]:
    """1 for an answer that is not empty, holds no template marker, and ended by itself and not at the length limit."""
    said = bool(sample.answer.strip()) and not any(marker in sample.answer for marker in MARKERS)
    return {"answered": float(said and sample.finish_reason == "stop")}


TASK = Task(
    name="format",
    about="Share of held-out prompts answered in the trained form: not empty, no stray markers, turn ended by itself.",
    kind="generate_until",
    needs="held-out conversations: `conversations: FILE`, or a tuned model folder that holds held_out.jsonl",
    build=build,
    limit=24,
    grade=grade,
    # Drawn as in use: small models repeat themselves without end when the likeliest token always wins.
    sampling=SamplingParams(temperature=0.7, top_p=0.95, seed=0, max_tokens=256),
)
