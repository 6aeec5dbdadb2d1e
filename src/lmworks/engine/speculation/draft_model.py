"""Guesses by a smaller model with a paged cache of its own. Why they change no answer is told in `speculative`."""

from __future__ import annotations

from collections.abc import Sequence as Rows
from dataclasses import dataclass, replace

from lmworks.core.errors import ConfigError, RequestError
from lmworks.engine.config import EngineConfig
from lmworks.engine.decoding.sampler import sample
from lmworks.engine.execution.cuda_graphs import graph_settings
from lmworks.engine.execution.kv_cache import KVCache
from lmworks.engine.execution.model_runner import ModelRunner
from lmworks.engine.scheduling.block_manager import BlockManager
from lmworks.engine.scheduling.scheduler import Chunk
from lmworks.engine.scheduling.sequence import Sequence
from lmworks.engine.servable import context_length, shares_prefixes
from lmworks.engine.weights.loading import load
from lmworks.models.transformer import Transformer
from lmworks.tokenization import Tokenizer


@dataclass(eq=False)
class _Shadow:
    """A sequence as the draft model sees it: the served one's tokens, and guesses after them."""

    sequence: Sequence
    num_confirmed: int = 0
    """Tokens that the served sequence has, too."""
    num_kept: int = 0
    """Computed tokens that were shown to the prefix cache; never a guess."""


class DraftModelProposer:
    """Decodes ahead with a model of the same vocabulary, all sequences together.

    A shadow follows each sequence. Its keys and values stay as far as the guesses were right and are computed again
    behind that; a prompt is caught up with in chunks. Without room in its cache a sequence is not guessed for.

    Args:
        model: small, in evaluation mode.
        config: limits of the engine.
        num_blocks: of its cache.
    """

    def __init__(self, model: Transformer, config: EngineConfig, num_blocks: int) -> None:
        cache = KVCache(model.config, num_blocks, config.block_size, model.dtype, model.device)
        self._blocks = BlockManager(
            num_blocks, config.block_size, config.enable_prefix_caching and shares_prefixes(model)
        )
        self._max_model_len, self._max_tokens = context_length(model.config), config.max_num_batched_tokens
        self._runner = ModelRunner(
            model, cache, config.attention, config.decode_threads, self._max_model_len, graph_settings(config)
        )
        self._shadows: dict[Sequence, _Shadow] = {}

    def propose(self, wanted: Rows[tuple[Sequence, int]]) -> list[list[int]]:
        """See `speculative.Proposer`."""
        chunks = self._catch_up(wanted)
        rest = {self._shadows[s].sequence: count for s, count in wanted if s in self._shadows}
        accepted = dict.fromkeys(rest, 0)
        while chunks:
            logits = self._runner.run(chunks)
            ready = []
            for chunk in chunks:
                chunk.sequence.num_computed_tokens += chunk.length
                if chunk.num_logits:
                    ready.append(chunk.sequence)
            chunks = []
            for shadow, chosen in zip(ready, sample(logits, ready) if ready else (), strict=True):
                if isinstance(chosen, RequestError):
                    continue
                shadow.token_ids.append(chosen[0])
                rest[shadow] -= 1
                if shadow.constraint is not None:
                    accepted[shadow] += shadow.constraint.accept(chosen[0])
                if rest[shadow]:
                    chunks.append(Chunk(shadow, 1, 1))
        for shadow, count in accepted.items():
            if shadow.constraint is not None:
                shadow.constraint.rollback(count)
        return [self._shadows[s].sequence.token_ids[s.num_tokens :] if s in self._shadows else [] for s, _ in wanted]

    def forget(self, sequence: Sequence) -> None:
        """See `speculative.Proposer`."""
        shadow = self._shadows.pop(sequence, None)
        if shadow is not None:
            self._blocks.free(shadow.sequence)

    def sleep(self) -> None:
        """Drop the cache; the weights stay."""
        for sequence in list(self._shadows):
            self.forget(sequence)
        self._blocks.forget_prefixes()
        self._set_cache(0)

    def wake_up(self) -> None:
        """See `speculative.Proposer`."""
        self._set_cache(self._blocks.num_blocks)

    def _set_cache(self, num_blocks: int) -> None:
        model = self._runner.model
        self._runner.attach(KVCache(model.config, num_blocks, self._blocks.block_size, model.dtype, model.device))

    def check_integrity(self) -> None:
        """Assert that the shadows hold exactly the blocks in use."""
        self._blocks.check_integrity([shadow.sequence for shadow in self._shadows.values()])

    def _catch_up(self, wanted: Rows[tuple[Sequence, int]]) -> list[Chunk]:
        """What the draft model has not seen of the sequences, as much as one step may compute."""
        budget, chunks = self._max_tokens, []
        asking = {s for s, _ in wanted}
        for sequence, count in wanted:
            if sequence.num_tokens + count > self._max_model_len or not self._follow(sequence, count, asking):
                self.forget(sequence)
                continue
            shadow = self._shadows[sequence].sequence
            uncomputed = shadow.num_uncomputed_tokens
            if length := min(uncomputed, budget):
                chunks.append(Chunk(shadow, length, int(length == uncomputed)))
                budget -= length
        return chunks

    def _follow(self, sequence: Sequence, count: int, asking: set[Sequence]) -> bool:
        """Bring a shadow to the tokens of its sequence, with room for guesses; False where there is none."""
        shadow = self._shadows.get(sequence)
        if shadow is None:
            shadow = self._shadows[sequence] = _Shadow(_shadow_of(sequence))
        own, tokens, at = shadow.sequence, sequence.token_ids, shadow.num_confirmed
        while at < min(len(own.token_ids), len(tokens)) and own.token_ids[at] == tokens[at]:
            at += 1
        own.token_ids[at:] = tokens[at:]
        own.num_computed_tokens = min(own.num_computed_tokens, at)
        shadow.num_confirmed = len(tokens)
        while not (own.block_table or self._blocks.admit(own)) or not self._blocks.grow(own, count):
            idle = next((s for s in self._shadows if s not in asking), None)
            if idle is None:
                return False
            self.forget(idle)
        self._blocks.keep_computed(own, own.num_computed_tokens - shadow.num_kept)
        shadow.num_kept = own.num_computed_tokens
        return True


def _shadow_of(sequence: Sequence) -> Sequence:
    """A running copy that draws with the same numbers, by the same parameters."""
    request = replace(
        sequence.request, params=sequence.params.model_copy(update={"logprobs": None, "prompt_logprobs": None})
    )
    shadow = Sequence(request, sequence.index, sequence.prompt_token_ids, sequence.max_tokens, sequence.seed)
    shadow.constraint = sequence.constraint
    shadow.logits_rules = None if sequence.logits_rules is None else sequence.logits_rules.fresh()
    shadow.token_ids = list(sequence.token_ids)
    shadow.run()
    return shadow


def load_draft_model(path: str, model: Transformer, tokenizer: Tokenizer | None, config: EngineConfig) -> Transformer:
    """Load a draft model, if its tokens are those of the model that it drafts for.

    Raises:
        ConfigError: the vocabularies differ, or one of the models has an encoder.
        CheckpointError: the weights cannot be read.
        TokenizerError: its tokenizer cannot be read or does not fit the weights.
    """
    draft, draft_tokenizer = load(path, None, config)
    if draft.encoder is not None or model.encoder is not None:
        raise ConfigError("a draft model and the model it drafts for must be decoders", "Use the method ngram")
    sizes = draft.config.vocab_size, model.config.vocab_size
    same = sizes[0] == sizes[1]
    if same and draft_tokenizer is not None and tokenizer is not None:
        same = _vocabulary(draft_tokenizer) == _vocabulary(tokenizer)
    if not same:
        raise ConfigError(
            f"the draft model's vocabulary ({sizes[0]} tokens) is not the model's ({sizes[1]} tokens)",
            "Draft with a model of the same family",
        )
    return draft


def _vocabulary(tokenizer: Tokenizer) -> tuple[object, list[tuple[int, str]]]:
    spec = tokenizer.definition.spec
    return spec["model"].get("vocab"), sorted((t["id"], t["content"]) for t in spec.get("added_tokens", ()))
