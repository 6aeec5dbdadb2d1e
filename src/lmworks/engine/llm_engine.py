"""The engine itself: requests in, deltas out, one step at a time. Not thread-safe and knows no thread.

A step asks the scheduler for tokens, runs the model once, samples, and looks at what may be shown.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from time import monotonic

from torch import Tensor

from lmworks.core.errors import EngineError, RequestError, RequestTooLongError
from lmworks.core.generation import FinishReason, TokenLogprob
from lmworks.core.sampling import SamplingParams
from lmworks.core.telemetry import emit
from lmworks.engine import sequence as seq
from lmworks.engine.block_manager import BlockManager
from lmworks.engine.config import EngineConfig
from lmworks.engine.kv_cache import KVCache, cache_size
from lmworks.engine.logits_processors import logits_rules
from lmworks.engine.model_runner import ModelRunner
from lmworks.engine.outputs import Delta
from lmworks.engine.request import Request
from lmworks.engine.sampler import sample
from lmworks.engine.scheduler import Chunk, Scheduler
from lmworks.engine.servable import decoder_prompt, shares_prefixes, turning_points
from lmworks.engine.stats import EngineStats
from lmworks.engine.stop import StopChecker
from lmworks.engine.weights import update_weights
from lmworks.models.transformer import Transformer
from lmworks.tokenization import Tokenizer


class LLMEngine:
    """Continuous batching of one model.

    Args:
        model: a decoder, with an encoder or without; its weights are shared, not copied.
        tokenizer: None serves token ids only.
        config: limits.

    Raises:
        ConfigError: the model generates nothing, or the limits do not fit it or each other.
    """

    def __init__(self, model: Transformer, tokenizer: Tokenizer | None, config: EngineConfig) -> None:
        self.model, self.tokenizer, self.config = model, tokenizer, config
        size = cache_size(model.config, config, model.dtype)
        self.max_model_len, self.max_source_len = size.max_model_len, size.max_source_len
        self.cache = KVCache(model.config, size.num_blocks, config.block_size, model.dtype, model.device)
        caching = config.enable_prefix_caching and shares_prefixes(model)
        self.blocks = BlockManager(size.num_blocks, config.block_size, caching)
        self.scheduler = Scheduler(config, self.blocks)
        self.runner = ModelRunner(model, self.cache, config.attention, config.decode_threads)
        ends = model.config.eos_token_ids + (tokenizer.eos_token_ids if tokenizer is not None else ())
        self._eos_token_ids = frozenset(ends)
        self._turning_points = turning_points(model.config)
        self._seeds = random.Random(config.seed)
        self._live: dict[str, list[seq.Sequence]] = {}
        """Unfinished completions of each request."""
        self._stops: dict[seq.Sequence, StopChecker] = {}
        self._prompt_tokens = self._generation_tokens = 0
        self._finished: Counter[str] = Counter()

    @property
    def has_encoder(self) -> bool:
        """Whether a request's prompt is the encoder's source."""
        return self.model.encoder is not None

    @property
    def eos_token_ids(self) -> frozenset[int]:
        """End-of-sequence tokens of model and tokenizer."""
        return self._eos_token_ids

    @property
    def has_unfinished(self) -> bool:
        """Whether a step would do something."""
        return bool(self._live)

    def validate(self, prompt_token_ids: Sequence[int], params: SamplingParams) -> None:
        """Refuse a request that cannot be served. Reads nothing that changes, so any thread may call it.

        Raises:
            RequestTooLongError: the prompt leaves no room for a token.
            RequestError: the prompt is empty, or a token id or stop string is impossible.
        """
        length, vocabulary = len(prompt_token_ids), self.model.config.vocab_size
        if not length:
            raise RequestError("the prompt has no tokens", "Give at least one token")
        if self.has_encoder and length > self.max_source_len:
            raise RequestTooLongError(
                f"the source has {length} tokens and the encoder takes {self.max_source_len}",
                f"Shorten it to {self.max_source_len} tokens",
            )
        if not self.has_encoder and length >= self.max_model_len:
            raise RequestTooLongError(
                f"the prompt has {length} tokens and the context holds {self.max_model_len}, "
                "of which at least one is for the completion",
                f"Shorten the prompt to {self.max_model_len - 1} tokens",
            )
        if (bad := next((i for i in prompt_token_ids if not 0 <= i < vocabulary), None)) is not None:
            raise RequestError(
                f"token id {bad} in prompt is outside the vocabulary of {vocabulary}", "Use ids of this model"
            )
        logits_rules(params, self._eos_token_ids, self.tokenizer, vocabulary)
        if "" in params.stop:
            raise RequestError("a stop string is empty", "Leave it out")
        if params.stop and self.tokenizer is None:
            raise RequestError(f"stop strings {params.stop} need a tokenizer", "Use stop_token_ids")

    def add_request(self, request: Request) -> None:
        """Queue a request.

        Raises:
            RequestError: see `validate`; or the id is in use.
            EngineOverloadedError: too many are waiting.
        """
        given, params = request.prompt_token_ids, request.params
        self.validate(given, params)
        if request.request_id in self._live:
            raise RequestError(f"request id {request.request_id!r} is in use", "Give every request its own id")
        prompt, source = (decoder_prompt(self.model.config), given) if self.has_encoder else (given, ())
        room = self.max_model_len - len(prompt)
        seed = params.seed if params.seed is not None else self._seeds.getrandbits(63)
        sequences = [
            seq.Sequence(request, index, prompt, min(params.max_tokens or room, room), seed, source)
            for index in range(params.n)
        ]
        self.scheduler.add(sequences)
        self._live[request.request_id] = sequences
        rules = logits_rules(params, self._eos_token_ids, self.tokenizer, self.model.config.vocab_size)
        for sequence in sequences:
            sequence.logits_rules = None if rules is None else rules.fresh()
            self._stops[sequence] = StopChecker(sequence, self._eos_token_ids, self.tokenizer)

    def step(self) -> list[Delta]:
        """Compute one batch and return what it added, one delta per sequence that got a token."""
        chunks = self.scheduler.schedule()
        if not chunks:
            return []
        ready = [c.sequence for c in chunks if c.num_logits]
        logits = self.runner.run(chunks)
        for chunk in chunks:
            self._prompt_tokens += _prompt_part(chunk)
            self.scheduler.computed(chunk)
        if not ready:
            return []
        broken = (~logits.sum(-1).isfinite()).nonzero().flatten().tolist()  # NaN and infinity survive a sum
        deltas = [self._fail(ready[i]) for i in broken]
        if broken:
            sound = [i for i in range(len(ready)) if i not in broken]
            ready, logits = [ready[i] for i in sound], logits[sound]
        if ready:
            sampled = sample(self._forced(logits, ready), ready)
            for sequence, chosen in zip(ready, sampled, strict=True):
                if isinstance(chosen, RequestError):
                    deltas.append(self._close(sequence, "abort", self._stops[sequence].abort(), error=chosen))
                else:
                    deltas.append(self._extend(sequence, *chosen))
        return deltas

    def abort(self, request_id: str) -> list[Delta]:
        """End a request in whatever state; its last deltas. An unknown id is a request that has ended: nothing."""
        return [self._close(s, "abort", self._stops[s].abort()) for s in list(self._live.get(request_id, ()))]

    def update_weights(self, state: Mapping[str, Tensor]) -> None:
        """Copy new weights into the model. Running requests go on with them; no cached prefix survives.

        Args:
            state: a full state dict of the model; a tied head may be left out.

        Raises:
            CheckpointError: names or shapes differ. Nothing was changed then.
        """
        update_weights(self.model, state)
        self.scheduler.preempt_all()
        self.blocks.reset_prefix_cache()

    def stats(self) -> EngineStats:
        """What has been done and is held now."""
        return EngineStats(
            num_requests_running=len(self.scheduler.running),
            num_requests_waiting=len(self.scheduler.waiting),
            kv_cache_usage=self.blocks.usage,
            prompt_tokens_total=self._prompt_tokens,
            generation_tokens_total=self._generation_tokens,
            preemptions_total=self.scheduler.num_preemptions,
            prefix_cache_queries_total=self.blocks.prefix_queries,
            prefix_cache_hits_total=self.blocks.prefix_hits,
            requests_finished_total=dict(self._finished),
        )

    def check_integrity(self) -> None:
        """Assert that every block, sequence and request is accounted for."""
        self.scheduler.check_integrity()
        held = {s for sequences in self._live.values() for s in sequences}
        assert held == {*self.scheduler.running, *self.scheduler.waiting} == set(self._stops), "a sequence was lost"

    def _forced(self, logits: Tensor, sequences: list[seq.Sequence]) -> Tensor:
        """[R, V] with nothing but the model's forced first token left where a sequence has said nothing."""
        token_id = self.model.config.forced_bos_token_id
        rows = [i for i, s in enumerate(sequences) if s.num_output_tokens == 0] if token_id is not None else []
        if rows:
            logits = logits.clone()
            logits[rows] = -1e9  # finite: log-probabilities are reported as JSON, which has no infinity
            logits[rows, token_id] = 0.0
        return logits

    def _extend(self, sequence: seq.Sequence, token_id: int, logprob: TokenLogprob | None) -> Delta:
        sequence.append(token_id)
        self._generation_tokens += 1
        text, reason = self._stops[sequence].add(token_id)
        logprobs = None if logprob is None else (logprob,)
        if reason is not None:
            return self._close(sequence, reason, text, (token_id,), logprobs)
        if sequence.num_tokens - 1 in self._turning_points:
            self.scheduler.recompute(sequence)
        return self._delta(sequence, text, (token_id,), logprobs)

    def _close(
        self,
        sequence: seq.Sequence,
        reason: FinishReason,
        text: str,
        token_ids: tuple[int, ...] = (),
        logprobs: tuple[TokenLogprob, ...] | None = None,
        error: EngineError | None = None,
    ) -> Delta:
        self.scheduler.finish(sequence, reason)
        self._forget(sequence)
        return self._delta(sequence, text, token_ids, logprobs, error)

    def _fail(self, sequence: seq.Sequence) -> Delta:
        """End one sequence whose logits are not numbers, so that nobody meets its keys and values again."""
        text = self._stops[sequence].abort()
        self.cache.clear(self.scheduler.discard(sequence))
        self._forget(sequence)
        error = EngineError(
            f"the model gave logits that are not finite after {sequence.num_tokens} tokens",
            "Check the weights, or use dtype float32",
        )
        return self._delta(sequence, text, (), None, error)

    def _forget(self, sequence: seq.Sequence) -> None:
        """Drop a finished sequence and tell how it went."""
        del self._stops[sequence]
        siblings = self._live[sequence.request_id]
        siblings.remove(sequence)
        if not siblings:
            del self._live[sequence.request_id]
        self._finished[sequence.finish_reason or ""] += 1
        now = monotonic()
        scheduled, first = sequence.first_scheduled, sequence.first_token
        emit(
            "engine.request_finished",
            request_id=sequence.request_id,
            finish_reason=sequence.finish_reason,
            num_prompt_tokens=sequence.num_request_tokens,
            num_generated_tokens=sequence.num_output_tokens,
            num_cached_tokens=sequence.num_cached_tokens,
            num_preemptions=sequence.num_preemptions,
            queue_seconds=(scheduled if scheduled is not None else now) - sequence.arrived,
            time_to_first_token_seconds=None if first is None else first - sequence.arrived,
            prefill_seconds=None if first is None or scheduled is None else first - scheduled,
            decode_seconds=None if first is None else now - first,
            e2e_seconds=now - sequence.arrived,
        )

    def _delta(
        self,
        sequence: seq.Sequence,
        text: str,
        token_ids: tuple[int, ...],
        logprobs: tuple[TokenLogprob, ...] | None,
        error: EngineError | None = None,
    ) -> Delta:
        return Delta(
            request_id=sequence.request_id,
            index=sequence.index,
            text=text,
            token_ids=token_ids,
            logprobs=logprobs,
            finish_reason=sequence.finish_reason,
            num_prompt_tokens=sequence.num_request_tokens,
            num_generated_tokens=sequence.num_output_tokens,
            num_cached_tokens=sequence.num_cached_tokens,
            error=error,
            stop_reason=sequence.stop_reason,
        )


def _prompt_part(chunk: Chunk) -> int:
    """How many of a chunk's tokens the user gave."""
    if chunk.sequence.source_token_ids:
        return chunk.sequence.num_request_tokens if chunk.encodes else 0
    return max(0, min(chunk.length, chunk.sequence.num_prompt_tokens - chunk.start))
