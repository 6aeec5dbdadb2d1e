"""`LLM`: a model for scripts and evaluation, called with many prompts at once. Knows no thread and no HTTP."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from torch import Tensor

from lmworks.core.errors import RequestError
from lmworks.core.generation import CompletionOutput, LogLikelihood, RequestOutput, TokenLogprob
from lmworks.core.messages import Message
from lmworks.core.sampling import SamplingParams
from lmworks.engine.config import EngineConfig
from lmworks.engine.llm_engine import LLMEngine
from lmworks.engine.loading import load
from lmworks.engine.loglikelihood import loglikelihood
from lmworks.engine.outputs import Delta
from lmworks.engine.prompts import Prompts
from lmworks.engine.request import Request
from lmworks.engine.stats import EngineStats
from lmworks.models.transformer import Transformer
from lmworks.tokenization import Tokenizer


class LLM:
    """Generates and scores; a `core.generation.Generator` and `Scorer`.

    Args:
        model: a model folder, a GGUF file, or a model in memory, whose weights are then shared and which may be in
            training between calls.
        tokenizer: None takes the one beside the weights; a model in memory without one works on token ids.
        config: limits.

    Raises:
        CheckpointError: the weights cannot be read.
        TokenizerError: the tokenizer does not fit the weights.
        ConfigError: the limits do not fit the model or each other.
    """

    def __init__(
        self,
        model: Path | str | Transformer,
        tokenizer: Tokenizer | None = None,
        config: EngineConfig = EngineConfig(),  # noqa: B008 - a frozen value
    ) -> None:
        self.engine = LLMEngine(*load(model, tokenizer, config), config)
        self._ids = count()

    @property
    def max_model_len(self) -> int:
        """Prompt plus completion at most; behind an encoder, what the decoder says."""
        return self.engine.max_model_len

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer.

        Raises:
            RequestError: the engine has none.
        """
        if self.engine.tokenizer is None:
            raise RequestError("this engine has no tokenizer", "Give one, or use token ids")
        return self.engine.tokenizer

    @property
    def prompts(self) -> Prompts:
        """Texts and conversations as tokens; errors as for `tokenizer`."""
        return Prompts(self.tokenizer, self.engine.has_encoder)

    def generate(
        self,
        prompts: Sequence[str | Sequence[int]],
        sampling_params: SamplingParams | Sequence[SamplingParams] = SamplingParams(),  # noqa: B008 - a frozen value
    ) -> list[RequestOutput]:
        """Complete prompts, batched as the engine sees fit.

        Args:
            prompts: texts or token ids, for the encoder where the model has one; the decoder then answers.
            sampling_params: for all prompts, or one for each.

        Returns:
            One output per prompt, in order.

        Raises:
            RequestError: a prompt is empty, too long or impossible; nothing was generated then.
            EngineError: the model failed on a prompt.
        """
        texts = [p if isinstance(p, str) else None for p in prompts]
        ids = [tuple(self.prompts.text(p) if isinstance(p, str) else p) for p in prompts]
        if isinstance(sampling_params, SamplingParams):
            sampling_params = [sampling_params] * len(ids)
        if len(sampling_params) != len(ids):
            raise RequestError(
                f"{len(sampling_params)} sampling parameters were given for {len(ids)} prompts",
                "Give one for all or one for each",
            )
        with evaluation_mode(self.engine.model):
            deltas = self._run(ids, sampling_params)
        return [
            RequestOutput(request_id, self._text(p) if text is None else text, p, _collect(parts, params.n))
            for (request_id, parts), text, p, params in zip(deltas.items(), texts, ids, sampling_params, strict=True)
        ]

    def chat(
        self,
        conversations: Sequence[Sequence[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] = SamplingParams(),  # noqa: B008 - a frozen value
    ) -> list[RequestOutput]:
        """The assistant's next turn of each conversation, in order; errors as in `generate` and `Prompts.chat`."""
        return self.generate([self.prompts.chat(c) for c in conversations], sampling_params)

    def loglikelihood(self, pairs: Sequence[tuple[str, str]]) -> list[LogLikelihood]:
        """How likely each continuation is after its context, in nats; an empty context means a document's beginning.

        An encoder, where there is one, reads the context, and the decoder is asked for the continuation.

        Raises:
            RequestError: a continuation is empty.
        """
        return self.loglikelihood_tokens([self.prompts.pair(*pair) for pair in pairs])

    def loglikelihood_tokens(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[LogLikelihood]:
        """`loglikelihood` for token ids; both sides need at least one."""
        engine = self.engine
        limits = engine.max_model_len, engine.config.max_num_batched_tokens, engine.max_source_len
        with evaluation_mode(engine.model):
            return loglikelihood(engine.model, pairs, *limits)

    def update_weights(self, state: Mapping[str, Tensor]) -> None:
        """Copy new weights into the served model; see `LLMEngine.update_weights`."""
        self.engine.update_weights(state)

    def stats(self) -> EngineStats:
        """What has been done and is held now."""
        return self.engine.stats()

    def _run(self, prompts: Sequence[tuple[int, ...]], params: Sequence[SamplingParams]) -> dict[str, list[Delta]]:
        """Step until all are finished, keeping the queue within its limit."""
        engine = self.engine
        for prompt, p in zip(prompts, params, strict=True):
            engine.validate(prompt, p)
        requests = [Request(f"request-{next(self._ids)}", *pair) for pair in zip(prompts, params, strict=True)]
        deltas: dict[str, list[Delta]] = {request.request_id: [] for request in requests}
        todo = iter(requests)
        try:
            request = next(todo, None)
            while request is not None or engine.has_unfinished:
                while request is not None and engine.scheduler.has_room:
                    engine.add_request(request)
                    request = next(todo, None)
                for delta in engine.step():
                    if delta.error is not None:
                        raise delta.error
                    deltas[delta.request_id].append(delta)
        finally:  # an error or Ctrl-C must not leave requests behind
            for request_id in deltas:
                engine.abort(request_id)
        return deltas

    def _text(self, prompt: Sequence[int]) -> str:
        tokenizer = self.engine.tokenizer
        return "" if tokenizer is None else tokenizer.decode(prompt, skip_special_tokens=False)


@contextmanager
def evaluation_mode(model: Transformer) -> Iterator[None]:
    """Without dropout while the block runs: a model that is being trained may be asked in between."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def _collect(deltas: Sequence[Delta], n: int) -> tuple[CompletionOutput, ...]:
    """A request's deltas as its completions."""
    outputs = []
    for index in range(n):
        parts = [d for d in deltas if d.index == index]
        reason = parts[-1].finish_reason
        assert reason is not None
        logprobs: list[TokenLogprob] = [x for d in parts for x in d.logprobs or ()]
        outputs.append(
            CompletionOutput(
                text="".join(d.text for d in parts),
                token_ids=tuple(t for d in parts for t in d.token_ids),
                finish_reason=reason,
                logprobs=tuple(logprobs) if parts[0].logprobs is not None else None,
            )
        )
    return tuple(outputs)
