"""Answers generated for prompts and graded one by one. Knows no task and no grade."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from lmworks.core.errors import RequestTooLongError
from lmworks.core.generation import CompletionOutput, Generator
from lmworks.core.messages import Message
from lmworks.core.sampling import SamplingParams
from lmworks.evals.task import Outcome, Prompt, Sample

BATCH = 32
"""Prompts per call: as many as an engine runs at once by default."""

Grade = Callable[[Prompt, Sample], Mapping[str, float]]


def generate_until(
    generator: Generator,
    prompts: Sequence[Prompt],
    grade: Grade,
    sampling_params: SamplingParams,
    advance: Callable[[float], None],
) -> Outcome:
    """Generate one answer per prompt and grade it.

    Args:
        generator: the model; conversations go to its `chat`, texts to its `generate`.
        prompts: at least one, all texts or all conversations. One that leaves no room in the model's context is
            answered with nothing.
        grade: an answer's figures by metric, the same metrics for every answer.
        sampling_params: decoding parameters, stop strings and length included.
        advance: told how many prompts were done.
    """
    samples: list[Sample] = []
    graded: list[Mapping[str, float]] = []
    for start in range(0, len(prompts), BATCH):
        batch = prompts[start : start + BATCH]
        for prompt, completion in zip(batch, _complete(generator, batch, sampling_params), strict=True):
            sample = Sample(_shown(prompt.text), completion.text, completion.finish_reason, prompt.references)
            samples.append(sample)
            graded.append(grade(prompt, sample))
        advance(len(batch))
    figures = {metric: tuple(float(g[metric]) for g in graded) for metric in graded[0]}
    return Outcome(figures, samples=tuple(samples))


def _complete(
    generator: Generator, prompts: Sequence[Prompt], sampling_params: SamplingParams
) -> list[CompletionOutput]:
    """The first completion of each prompt."""
    texts = [p.text for p in prompts if isinstance(p.text, str)]
    conversations = [p.text for p in prompts if not isinstance(p.text, str)]
    assert not (texts and conversations), "a task's prompts are all texts or all conversations"
    try:
        outputs = (
            generator.generate(texts, sampling_params) if texts else generator.chat(conversations, sampling_params)
        )
    except RequestTooLongError:
        if len(prompts) > 1:  # one too long refuses them all, so find out which
            return [completion for prompt in prompts for completion in _complete(generator, [prompt], sampling_params)]
        return [CompletionOutput("", (), "length")]
    return [output.outputs[0] for output in outputs]


def _shown(prompt: str | tuple[Message, ...]) -> str:
    """The prompt for a reader: a text as it is, of a conversation the last turn."""
    return prompt if isinstance(prompt, str) else prompt[-1].content
