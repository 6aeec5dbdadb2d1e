"""`LLM`: a model for scripts and evaluation, called with many prompts at once. Knows no thread and no HTTP."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from itertools import count
from pathlib import Path
from typing import Any

from torch import Tensor

from lmworks.core.errors import ConfigError, RequestError
from lmworks.core.generation import CompletionOutput, LogLikelihood, RequestOutput
from lmworks.core.messages import Message
from lmworks.core.progress import bar
from lmworks.core.sampling import BeamSearchParams, SamplingParams
from lmworks.engine.config import EngineConfig
from lmworks.engine.decoding.beam_search import Beam, BeamSearch, NextTokens
from lmworks.engine.decoding.best_of import best_of, generated_params
from lmworks.engine.llm_engine import LLMEngine
from lmworks.engine.loglikelihood import loglikelihood
from lmworks.engine.offline import collect, run_requests
from lmworks.engine.outputs import Delta
from lmworks.engine.pooling.pooling_llm import PoolingLLM, evaluation_mode
from lmworks.engine.prompts import Prompts
from lmworks.engine.request import Request
from lmworks.engine.servable import served_decoder
from lmworks.engine.stats import EngineStats
from lmworks.engine.weights.loading import load
from lmworks.models.hub import read_config
from lmworks.models.transformer import Transformer
from lmworks.tokenization import StreamingDetokenizer, Tokenizer, load_tokenizer

Prompt = str | Sequence[int] | Mapping[str, Any]
"""A text, token ids, or vLLM's `{"prompt": text}` and `{"prompt_token_ids": ids}`."""


class LLM:
    """Generates, scores and embeds; a `core.generation.Generator`, `Scorer` and `Embedder`.

    Args:
        model: a model folder, a GGUF file, or a model in memory, whose weights are then shared and which may be in
            training between calls. One that generates nothing can still embed and score.
        tokenizer: one, or the path of one; None takes the one beside the weights; a model in memory without one works
            on token ids.
        config: limits.
        engine_args: fields of `EngineConfig` by name, over those of `config`.

    Raises:
        CheckpointError: the weights cannot be read.
        TokenizerError: the tokenizer does not fit the weights.
        ConfigError: the limits are unknown, or do not fit the model or each other.
    """

    def __init__(
        self,
        model: Path | str | Transformer,
        tokenizer: Tokenizer | Path | str | None = None,
        config: EngineConfig = EngineConfig(),  # noqa: B008 - a frozen value
        **engine_args: Any,
    ) -> None:
        if engine_args:
            config = EngineConfig.parse({**config.model_dump(exclude_unset=True), **engine_args})
        if isinstance(tokenizer, Path | str):
            tokenizer = load_tokenizer(tokenizer)
        self._ids = count()
        self._engine: LLMEngine | None = None
        self._pooling: PoolingLLM | None = None
        self._silent = _why_silent(model)
        if self._silent is None:
            path = None if isinstance(model, Transformer) else Path(model)
            self._engine = LLMEngine(*load(model, tokenizer, config), config, path)
        elif not isinstance(model, Transformer):
            self._pooling = PoolingLLM.load(Path(model), tokenizer)
        elif tokenizer is not None:
            self._pooling = PoolingLLM(model, tokenizer)
        else:
            raise self._silent

    @property
    def engine(self) -> LLMEngine:
        """What generates.

        Raises:
            ConfigError: the model generates nothing.
        """
        if self._engine is None:
            assert self._silent is not None, "one of the two is set"
            raise self._silent
        return self._engine

    @property
    def pooling(self) -> PoolingLLM:
        """What embeds and scores; errors as in `PoolingLLM`, and as for `tokenizer`."""
        if self._pooling is None or (self._engine is not None and self._pooling.model is not self._engine.model):
            self._pooling = PoolingLLM(self.engine.model, self.tokenizer)
        return self._pooling

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
        tokenizer = self.engine.tokenizer if self._pooling is None else self._pooling.tokenizer
        if tokenizer is None:
            raise RequestError("this engine has no tokenizer", "Give one, or use token ids")
        return tokenizer

    @property
    def prompts(self) -> Prompts:
        """Texts and conversations as tokens; errors as for `tokenizer`."""
        return Prompts(self.tokenizer, self.engine.has_encoder)

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] = SamplingParams(),  # noqa: B008 - a frozen value
        use_tqdm: bool = False,
        *,
        adapter: str | None = None,
    ) -> list[RequestOutput]:
        """Complete prompts, batched as the engine sees fit.

        Args:
            prompts: one text or several prompts, for the encoder where the model has one; the decoder then answers.
            sampling_params: for all prompts, or one for each.
            use_tqdm: show a progress bar.
            adapter: name of a loaded one; None is the base model.

        Returns:
            One output per prompt, in order.

        Raises:
            ModelNotFoundError: no adapter of that name is loaded.
            RequestError: a prompt is empty, too long or impossible; nothing was generated then. Or nothing may come
                next after what was generated, the parameters forbidding it all.
            EngineError: the model failed on a prompt.
        """
        texts, ids = self._tokenized(prompts)
        if isinstance(sampling_params, SamplingParams):
            sampling_params = [sampling_params] * len(ids)
        if len(sampling_params) != len(ids):
            raise RequestError(
                f"{len(sampling_params)} sampling parameters were given for {len(ids)} prompts",
                "Give one for all or one for each",
            )
        asked = [generated_params(params) for params in sampling_params]
        outputs = [
            RequestOutput(parts[0].request_id, text, p, collect(parts, params.n), parts[0].prompt_logprobs)
            for parts, text, p, params in zip(self._run(ids, asked, use_tqdm, adapter), texts, ids, asked, strict=True)
        ]
        return [best_of(output, params) for output, params in zip(outputs, sampling_params, strict=True)]

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] = SamplingParams(),  # noqa: B008 - a frozen value
        use_tqdm: bool = False,
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        adapter: str | None = None,
    ) -> list[RequestOutput]:
        """The assistant's next turn of each conversation, in order; errors as in `generate` and `Prompts.chat`.

        Args:
            messages: one conversation or several.
            sampling_params: for all, or one for each.
            use_tqdm: show a progress bar.
            add_generation_prompt: open the assistant's turn.
            continue_final_message: instead, continue the last message.
            tools: functions that the template may describe.
            chat_template_kwargs: further values for the template.
            adapter: see `generate`.
        """
        conversations = [m for m in messages if not isinstance(m, Message)] or [list(messages)]  # type: ignore[arg-type]
        inputs = {**(chat_template_kwargs or {}), **({} if tools is None else {"tools": list(tools)})}
        prompts = [
            self.prompts.chat(
                conversation,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                inputs=inputs or None,
            )
            for conversation in conversations
        ]
        return self.generate(prompts, sampling_params, use_tqdm, adapter=adapter)

    def beam_search(
        self, prompts: Prompt | Sequence[Prompt], params: BeamSearchParams, use_tqdm: bool = False
    ) -> list[RequestOutput]:
        """The likeliest completions of each prompt, best first; errors as in `generate`.

        Raises:
            RequestError: the model has an encoder.
        """
        if self.engine.has_encoder:
            raise RequestError("beam search behind an encoder is not supported", "Use generate with best_of")
        texts, ids = self._tokenized(prompts)
        for prompt in ids:
            self.engine.validate(prompt, SamplingParams())
        ends = self.engine.eos_token_ids
        searches = [BeamSearch(params, ends, self.max_model_len - len(prompt)) for prompt in ids]
        with bar("Beam search", params.max_tokens) if use_tqdm else nullcontext() as progress:
            while running := [(search, p) for search, p in zip(searches, ids, strict=True) if search.prefixes]:
                asked = [p + prefix for search, p in running for prefix in search.prefixes]
                told = iter(self._run(asked, [running[0][0].sampling_params] * len(asked)))
                for search, _ in running:
                    search.advance([_following(next(told)) for _ in search.prefixes])
                if progress is not None:
                    progress.advance()
        return [
            RequestOutput(f"beam-search-{next(self._ids)}", text, p, tuple(self._completion(p, b) for b in s.beams))
            for text, p, s in zip(texts, ids, searches, strict=True)
        ]

    def embed(self, prompts: Sequence[str]) -> list[list[float]]:
        """One unit-length vector per text; see `PoolingLLM.embed`."""
        return self.pooling.embed([prompts] if isinstance(prompts, str) else prompts)

    def score(self, text_1: str | Sequence[str], text_2: str | Sequence[str]) -> list[float]:
        """How well texts go together; see `PoolingLLM.score`."""
        return self.pooling.score(text_1, text_2)

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
        engine.check_awake()
        limits = engine.max_model_len, engine.config.max_num_batched_tokens, engine.max_source_len
        with evaluation_mode(engine.model):
            return loglikelihood(engine.model, pairs, *limits)

    def update_weights(self, state: Mapping[str, Tensor]) -> None:
        """Copy new weights into the served model; see `LLMEngine.update_weights`."""
        self.engine.update_weights(state)

    def load_lora_adapter(self, name: str, path: Path | str) -> None:
        """Read an adapter folder of PEFT under a name, in place of any that has it; see `Adapters.load`."""
        self.engine.check_awake()
        self.engine.adapters.load(self.engine.model, name, str(path))

    def unload_lora_adapter(self, name: str) -> None:
        """Forget an adapter.

        Raises:
            ModelNotFoundError: there is none of that name.
        """
        self.engine.adapters.unload(name)

    def stats(self) -> EngineStats:
        """What has been done and is held now."""
        return self.engine.stats()

    def _tokenized(self, prompts: Prompt | Sequence[Prompt]) -> tuple[list[str], list[tuple[int, ...]]]:
        """Prompts as texts and as token ids."""
        several = [prompts] if isinstance(prompts, str | Mapping) else prompts
        texts: list[str] = []
        ids: list[tuple[int, ...]] = []
        for prompt in several:
            given = _unwrapped(prompt) if isinstance(prompt, Mapping) else prompt
            assert not isinstance(given, int), "several prompts are a sequence of sequences"
            ids.append(tuple(self.prompts.text(given) if isinstance(given, str) else given))
            tokenizer = self.engine.tokenizer
            if isinstance(given, str):
                texts.append(given)
            else:
                texts.append("" if tokenizer is None else tokenizer.decode(ids[-1], skip_special_tokens=False))
        return texts, ids

    def _run(
        self,
        prompts: Sequence[tuple[int, ...]],
        params: Sequence[SamplingParams],
        use_tqdm: bool = False,
        adapter: str | None = None,
    ) -> list[list[Delta]]:
        requests = [
            Request(f"request-{next(self._ids)}", *pair, adapter=adapter) for pair in zip(prompts, params, strict=True)
        ]
        shown = bar("Prompts", len(requests)) if use_tqdm else nullcontext()
        with evaluation_mode(self.engine.model), shown as progress:
            finished = None if progress is None else progress.advance
            return list(run_requests(self.engine, requests, finished).values())

    def _completion(self, prompt: Sequence[int], beam: Beam) -> CompletionOutput:
        """A beam with its text, which leaves the end-of-sequence token out."""
        assert beam.finish_reason is not None, "only ended beams are results"
        tokenizer, text = self.engine.tokenizer, ""
        if tokenizer is not None:
            shown = beam.token_ids[:-1] if beam.finish_reason == "stop" else beam.token_ids
            detokenizer = StreamingDetokenizer(tokenizer, continues=prompt[-1] not in tokenizer.special_token_ids)
            text = detokenizer.add(shown) + detokenizer.finish()
        return CompletionOutput(text, beam.token_ids, beam.finish_reason, None, beam.cumulative_logprob)


def _unwrapped(prompt: Mapping[str, Any]) -> str | Sequence[int]:
    """What vLLM's form of a prompt holds."""
    given = [prompt[name] for name in ("prompt_token_ids", "prompt") if prompt.get(name) is not None]
    if not given:
        raise RequestError(
            f"the prompt {dict(prompt)!r} has neither text nor tokens", 'Give "prompt" or "prompt_token_ids"'
        )
    found: str | Sequence[int] = given[0]
    return found


def _following(deltas: Sequence[Delta]) -> NextTokens:
    """The likeliest tokens that a request of one token told."""
    (delta,) = deltas
    assert delta.logprobs is not None, "they are asked for"
    return delta.logprobs[0].top


def _why_silent(model: Path | str | Transformer) -> ConfigError | None:
    """Why a model that embeds or judges texts generates none; None where it does.

    Raises:
        ConfigError: it does neither.
    """
    if not isinstance(model, Transformer) and (Path(model) / "modules.json").is_file():
        return ConfigError(f"{model} is a sentence-transformers model and generates nothing", "Call embed or score")
    config = model.config if isinstance(model, Transformer) else read_config(Path(model))
    try:
        served_decoder(config)
    except ConfigError as error:
        if config.vision is not None or len(config.stacks) != 1:
            raise
        return error
    return None
