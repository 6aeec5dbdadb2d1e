"""The engine itself: requests in, deltas out, one step at a time. Not thread-safe and knows no thread.

A step asks the scheduler for tokens, runs the model once, samples, and looks at what may be shown.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from time import monotonic

from torch import Tensor

from lmworks.core.errors import DeadlineExceededError, EngineError, EngineUnavailableError, RequestError
from lmworks.core.generation import FinishReason, TokenLogprob
from lmworks.core.sampling import SamplingParams, StructuredOutputs
from lmworks.engine.config import EngineConfig
from lmworks.engine.decoding.deltas import delta_of
from lmworks.engine.decoding.finish_report import report_finished
from lmworks.engine.decoding.logits_processors import forced_first_token, logits_rules
from lmworks.engine.decoding.sampler import prompt_logprobs, sample
from lmworks.engine.decoding.stop import StopChecker
from lmworks.engine.execution.cuda_graphs import graph_settings
from lmworks.engine.execution.device_memory import cache_memory
from lmworks.engine.execution.kv_cache import KVCache, cache_dtype, cache_size
from lmworks.engine.execution.model_runner import ModelRunner, at_most_threads
from lmworks.engine.grammar.compiler import ConstraintFactory, GrammarCompiler
from lmworks.engine.grammar.pending import PendingConstraints
from lmworks.engine.outputs import Delta
from lmworks.engine.request import Request
from lmworks.engine.request_checks import check_params, check_prompt
from lmworks.engine.scheduling import sequence as seq
from lmworks.engine.scheduling.block_manager import BlockManager
from lmworks.engine.scheduling.deadlines import Deadlines
from lmworks.engine.scheduling.scheduler import Chunk, Scheduler
from lmworks.engine.scheduling.sequence import Status
from lmworks.engine.servable import decoder_prompt, shares_prefixes, turning_points
from lmworks.engine.speculation.guessing import Speculation
from lmworks.engine.stats import EngineStats
from lmworks.engine.weights.adapters import Adapters, names_of
from lmworks.engine.weights.update import update_weights
from lmworks.engine.weights.versions import WeightVersions
from lmworks.kernels.row_argmax import row_argmax
from lmworks.models.transformer import Transformer
from lmworks.tokenization import Tokenizer


class LLMEngine:
    """Continuous batching of one model.

    Args:
        model: a decoder, with an encoder or without; its weights are shared, not copied.
        tokenizer: None serves token ids only.
        config: limits.
        path: the model was read from; None where it came from memory.

    Raises:
        ConfigError: the model generates nothing, the limits do not fit it or each other, or the draft model has
            other tokens.
        CheckpointError: the draft model cannot be read.
    """

    def __init__(
        self, model: Transformer, tokenizer: Tokenizer | None, config: EngineConfig, path: Path | None = None
    ) -> None:
        self.model, self.tokenizer, self.config = model, tokenizer, config
        self.dtype, self.device, self.cache_dtype = model.dtype, model.device, cache_dtype(model, config)
        size = self._size = cache_size(model.config, config, self.cache_dtype, cache_memory(model, config))
        self.max_model_len, self.max_source_len = size.max_model_len, size.max_source_len
        self.cache = KVCache(model.config, size.num_blocks, config.block_size, self.cache_dtype, model.device)
        caching = config.enable_prefix_caching and shares_prefixes(model)
        self.blocks = BlockManager(size.num_blocks, config.block_size, caching)
        self.scheduler = Scheduler(config, self.blocks)
        self.runner = ModelRunner(
            model, self.cache, config.attention, config.decode_threads, size.max_model_len, graph_settings(config)
        )
        ends = model.config.eos_token_ids + (tokenizer.eos_token_ids if tokenizer is not None else ())
        self.eos_token_ids = frozenset(ends)
        """End-of-sequence tokens of model and tokenizer."""
        self.adapters, self.versions = Adapters(config), WeightVersions(self.runner, path)
        self.sleep_level = 0
        """See `sleep`; 0 is awake."""
        self._turning_points = turning_points(model.config)
        self._seeds = random.Random(config.seed)
        self._live: dict[str, list[seq.Sequence]] = {}
        """Unfinished completions of each request."""
        self._stops: dict[seq.Sequence, StopChecker] = {}
        self._deadlines, self._constraints = Deadlines(), PendingConstraints()
        self._grammars: GrammarCompiler | None = None
        self.speculation: Speculation | None = None
        if config.speculative_config is not None:
            self.speculation = Speculation(config.speculative_config, config, model, tokenizer, size.num_blocks)
        self.idle = False
        """Whether the last step had nothing to compute, although requests are unfinished: they wait for a grammar."""
        self._prompt_tokens = self._generation_tokens = 0
        self._finished: Counter[str] = Counter()

    @property
    def has_encoder(self) -> bool:
        """Whether a request's prompt is the encoder's source."""
        return self.model.encoder is not None

    @property
    def has_unfinished(self) -> bool:
        """Whether a step would do something."""
        return bool(self._live) and not self.sleep_level

    @property
    def num_tokens(self) -> int:
        """Tokens computed so far, of prompts and of answers."""
        return self._prompt_tokens + self._generation_tokens

    @property
    def offloads(self) -> bool:
        """Whether layers lie in the CPU's memory and compute elsewhere."""
        return self.config.cpu_offload_gb > 0 and self.device.type != "cpu"

    def check_awake(self) -> None:
        """Raise an `EngineUnavailableError` while the engine sleeps."""
        if self.sleep_level:
            raise EngineUnavailableError("the engine sleeps", "Wake it up, or try again later")

    def validate(self, prompt_token_ids: Sequence[int], params: SamplingParams) -> None:
        """Refuse a request that cannot be served. Reads nothing that changes, so any thread may call it.

        Raises:
            RequestTooLongError: the prompt leaves no room for a token.
            RequestError: the prompt is empty, or something asked for is impossible.
        """
        vocabulary = self.model.config.vocab_size
        check_prompt(prompt_token_ids, vocabulary, self._size)
        check_params(params, self.eos_token_ids, self.tokenizer, vocabulary, self.has_encoder)

    def add_request(self, request: Request) -> None:
        """Queue a request.

        Raises:
            RequestError: see `validate`; or the id is in use.
            ModelNotFoundError: no adapter of that name is loaded.
            EngineOverloadedError: too many are waiting.
            EngineUnavailableError: the engine sleeps.
        """
        self.check_awake()
        given, params = request.prompt_token_ids, request.params
        self.validate(given, params)
        if request.request_id in self._live:
            raise RequestError(f"request id {request.request_id!r} is in use", "Give every request its own id")
        adapter = None if request.adapter is None else self.adapters.named(request.adapter)
        prompt, source = (decoder_prompt(self.model.config), given) if self.has_encoder else (given, ())
        room = self.max_model_len - len(prompt)
        seed = params.seed if params.seed is not None else self._seeds.getrandbits(63)
        sequences = [
            seq.Sequence(request, index, prompt, min(params.max_tokens or room, room), seed, source)
            for index in range(params.n)
        ]
        compiled = None
        if params.structured_outputs is not None:
            compiled = self._compile(params.structured_outputs, prompt, source)
        self.scheduler.add(sequences)
        self._live[request.request_id] = sequences
        rules = logits_rules(params, self.eos_token_ids, self.tokenizer, self.model.config.vocab_size)
        for sequence in sequences:
            sequence.adapter = adapter
            sequence.logits_rules = None if rules is None else rules.fresh()
            sequence.prompt_logprobs = sequences[0].prompt_logprobs
            self._stops[sequence] = StopChecker(sequence, self.eos_token_ids, self.tokenizer)
        if compiled is not None:
            self._constraints.add(sequences, compiled)
        if request.timeout_seconds is not None:
            self._deadlines.add(request.request_id, sequences[0].arrived + request.timeout_seconds)

    def step(self) -> list[Delta]:
        """Compute one batch and return what it added, one delta per sequence that got tokens or was ended."""
        with at_most_threads(self.runner.torch_threads):
            return self._step()

    def _step(self) -> list[Delta]:
        began = monotonic()
        deltas: list[Delta] = []
        if self._deadlines:
            for request_id in self._deadlines.passed(began):
                deltas += self._end_late(request_id)
        if self._constraints:
            for request_id, error in self._constraints.settle():
                deltas += self.abort(request_id, error)
        if self.speculation is not None:
            self.speculation.draft(self.scheduler.running)
        chunks = self.scheduler.schedule()
        self.idle = not chunks and bool(self._live)
        if not chunks:
            return deltas
        if copies := self.blocks.take_copies():
            self.cache.copy(copies)
        num_tokens = sum(chunk.length for chunk in chunks)
        logits = self.runner.run(chunks)
        deltas += self._collect(chunks, logits)
        self.scheduler.load.step(num_tokens, monotonic() - began)
        return deltas

    def _collect(self, chunks: list[Chunk], logits: Tensor) -> list[Delta]:
        """Enter what a step computed, and sample where a sequence's end was reached.

        Args:
            chunks: of the step.
            logits: [R, V] float32, the rows that the chunks asked for.
        """
        deltas: list[Delta] = []
        rows: list[tuple[seq.Sequence, int]] = []
        end = 0
        best = row_argmax(logits).tolist()
        for chunk in chunks:
            sequence, num_drafts = chunk.sequence, len(chunk.sequence.draft_token_ids)
            begin, end = end, end + chunk.num_logits
            self._prompt_tokens += chunk.num_request_tokens
            if -1 in best[begin:end]:
                deltas.append(self._fail(sequence))
                continue
            if sequence.wants_prompt_logprobs:
                _score_prompt(sequence, logits[begin:end])
            self.scheduler.computed(sequence, chunk.length - num_drafts)
            if sequence.num_uncomputed_tokens == 0:
                rows.append((sequence, end - 1 - num_drafts))
                if sequence.followers:
                    rows += [(follower, rows[-1][1]) for follower in self.scheduler.fork(sequence)]
        return deltas + self._sample(logits, rows)

    def _sample(self, logits: Tensor, rows: list[tuple[seq.Sequence, int]]) -> list[Delta]:
        """One token for each sequence, and another as long as it is the one that was guessed.

        Args:
            logits: [R, V] float32.
            rows: sequences, and where the logits of their next token are; those of the one after a guess follow.
        """
        deltas: dict[seq.Sequence, Delta] = {}
        place = 0
        while rows:
            sequences, picked = [s for s, _ in rows], [row for _, row in rows]
            part = logits if picked == list(range(len(logits))) else logits[picked]
            going = []
            part = forced_first_token(part, sequences, self.model.config.forced_bos_token_id)
            for (sequence, row), chosen in zip(rows, sample(part, sequences), strict=True):
                drafts = sequence.draft_token_ids
                if isinstance(chosen, RequestError):
                    delta = self._close(sequence, "abort", self._stops[sequence].abort(), error=chosen)
                else:
                    delta = self._extend(sequence, *chosen)
                deltas[sequence] = delta if place == 0 else deltas[sequence].then(delta)
                if drafts and self.speculation is not None:
                    right = not isinstance(chosen, RequestError) and self.speculation.verify(sequence, place, chosen[0])
                    if right and sequence.status is Status.RUNNING:
                        self.scheduler.computed(sequence, 1)
                        going.append((sequence, row + 1))
            rows, place = going, place + 1
        return list(deltas.values())

    def abort(self, request_id: str, error: EngineError | None = None) -> list[Delta]:
        """End a request in whatever state; its last deltas. An unknown id is a request that has ended: nothing."""
        live = list(self._live.get(request_id, ()))
        return [self._close(s, "abort", self._stops[s].abort(), error=error) for s in live]

    def update_weights(self, state: Mapping[str, Tensor], path: Path | None = None) -> None:
        """Copy new weights into the model. Running requests go on with them; no cached prefix survives.

        Args:
            state: a full state dict of the model; a tied head may be left out.
            path: where it can be read again, if anywhere.

        Raises:
            CheckpointError: names or shapes differ. Nothing was changed then.
            RequestError: layers are offloaded.
            EngineUnavailableError: the engine sleeps.
        """
        self.check_awake()
        if self.offloads:
            raise RequestError("weights that lie on two devices take on no others in place", "Load them as a version")
        update_weights(self.model, state)
        self.runner.attach(self.cache)
        self.versions.renewed(self.scheduler.renew_weights(), path)

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
            num_tokens_waiting=self.scheduler.waiting.num_tokens,
            requests_rejected_total=dict(self.scheduler.rejections),
            adapters=self.adapters.paths,
            adapters_running=names_of(self.scheduler.running),
            adapters_waiting=names_of(self.scheduler.waiting),
            weight_version=self.versions.served.version,
            weight_path=str(self.versions.served.path or ""),
            sleep_level=self.sleep_level,
            **({} if self.speculation is None else self.speculation.counts()),
        )

    def check_integrity(self) -> None:
        """Assert that every block, sequence and request is accounted for."""
        self.scheduler.check_integrity()
        held = {s for sequences in self._live.values() for s in sequences}
        assert len(self._deadlines) <= len(self._live), "a deadline of a request that has ended"
        assert len(self._constraints) <= len(self._live), "a grammar for a request that has ended"
        assert held == {*self.scheduler.running, *self.scheduler.waiting} == set(self._stops), "a sequence was lost"

    def _compile(
        self, outputs: StructuredOutputs, prompt: tuple[int, ...], source: tuple[int, ...]
    ) -> Future[ConstraintFactory]:
        tokenizer = self.tokenizer
        assert tokenizer is not None, "the request was checked"
        if self._grammars is None:  # it reads the whole vocabulary, so it is made when first needed
            self._grammars = GrammarCompiler(tokenizer, self.model.config.vocab_size, sorted(self.eos_token_ids))
        return self._grammars.compile(outputs, bool(source) or prompt[-1] in tokenizer.special_token_ids)

    def _extend(self, sequence: seq.Sequence, token_id: int, logprob: TokenLogprob | None) -> Delta:
        sequence.append(token_id)
        self._generation_tokens += 1
        stops, constraint = self._stops[sequence], sequence.constraint
        text, reason = stops.add(token_id)
        logprobs = None if logprob is None else (logprob,)
        if constraint is not None:
            if not constraint.accept(token_id) or constraint.fault is not None:
                error = RequestError(
                    f"the grammar could not be followed to its end: {constraint.fault or 'it allows no token'}",
                    "Simplify what is asked for",
                )
                rest = stops.abort() if reason is None else ""
                return self._close(sequence, "abort", text + rest, (token_id,), logprobs, error)
            if reason is None and constraint.finished:
                text, reason = text + stops.abort(), "stop"
        if reason is not None:
            return self._close(sequence, reason, text, (token_id,), logprobs)
        if sequence.num_tokens - 1 in self._turning_points:
            self.scheduler.recompute(sequence)
        return delta_of(sequence, text, (token_id,), logprobs)

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
        return delta_of(sequence, text, token_ids, logprobs, error)

    def _end_late(self, request_id: str) -> list[Delta]:
        """End a request whose time is over."""
        seconds = self._live[request_id][0].request.timeout_seconds
        error = DeadlineExceededError(f"the answer was not complete after {seconds} seconds", "Allow more time")
        return self.abort(request_id, error)

    def _fail(self, sequence: seq.Sequence) -> Delta:
        """End one sequence whose logits are not numbers, so that nobody meets its keys and values again."""
        text = self._stops[sequence].abort()
        self.cache.clear(self.scheduler.discard(sequence))
        self._forget(sequence)
        error = EngineError(
            f"the model gave logits that are not finite after {sequence.num_tokens} tokens",
            "Check the weights, or use dtype float32",
        )
        return delta_of(sequence, text, (), None, error)

    def _forget(self, sequence: seq.Sequence) -> None:
        """Drop a finished sequence and tell how it went."""
        del self._stops[sequence]
        siblings = self._live[sequence.request_id]
        siblings.remove(sequence)
        if not siblings:
            del self._live[sequence.request_id]
            self._deadlines.remove(sequence.request_id)
            self._constraints.remove(sequence.request_id)
        if self.speculation is not None:
            self.speculation.proposer.forget(sequence)
        self._finished[sequence.finish_reason or ""] += 1
        report_finished(sequence)


def _score_prompt(sequence: seq.Sequence, logits: Tensor) -> None:
    """Enter log-probabilities of the prompt's next tokens, of which `logits` [T, V] are the raw ones before each."""
    scores, count = sequence.prompt_logprobs, sequence.params.prompt_logprobs
    assert scores is not None, "they are asked for"
    assert count is not None, "they are asked for"
    targets = sequence.prompt_token_ids[len(scores) : len(scores) + len(logits)]
    scores += prompt_logprobs(logits[: len(targets)], targets, count)
