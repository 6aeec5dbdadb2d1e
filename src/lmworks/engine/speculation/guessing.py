"""One engine's speculative decoding: who is guessed for, what became of the guesses. Knows no logits."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from lmworks.engine.config import EngineConfig, SpeculativeConfig
from lmworks.engine.scheduling.sequence import Sequence
from lmworks.engine.speculation.drafters import NgramProposer, Proposer, allowed
from lmworks.models.transformer import Transformer
from lmworks.tokenization import Tokenizer


class Speculation:
    """Asks a proposer before each step, and counts.

    Args:
        config: how to guess.
        engine_config: limits of the engine.
        model: that is served.
        tokenizer: its.
        num_blocks: of its cache; a draft model's has as many.

    Raises:
        ConfigError: the draft model has other tokens.
        CheckpointError: the draft model cannot be read.
    """

    def __init__(
        self,
        config: SpeculativeConfig,
        engine_config: EngineConfig,
        model: Transformer,
        tokenizer: Tokenizer | None,
        num_blocks: int,
    ) -> None:
        self._count = config.num_speculative_tokens
        self.proposer: Proposer
        if config.model is None:
            self.proposer = NgramProposer(config)
        else:
            from lmworks.engine.speculation.draft_model import DraftModelProposer, load_draft_model

            draft = load_draft_model(config.model, model, tokenizer, engine_config)
            self.proposer = DraftModelProposer(draft, engine_config, num_blocks)
        self.num_drafts = self.num_draft_tokens = 0
        self.accepted = [0] * self._count
        """Tokens that were guessed right, by their place in the draft."""

    def counts(self) -> dict[str, Any]:
        """The fields of `EngineStats` about guesses."""
        return {
            "spec_decode_num_drafts_total": self.num_drafts,
            "spec_decode_num_draft_tokens_total": self.num_draft_tokens,
            "spec_decode_num_accepted_tokens_total": sum(self.accepted),
            "spec_decode_num_accepted_tokens_per_pos": tuple(self.accepted),
        }

    def draft(self, running: Iterable[Sequence]) -> None:
        """Guess for the sequences that decode, no further than they may go."""
        wanted = []
        for sequence in running:
            sequence.draft_token_ids.clear()
            generated = sequence.num_output_tokens
            if generated and sequence.num_uncomputed_tokens == 1:
                # At the end stands a token that is not guessed.
                count = min(self._count, sequence.max_tokens - generated - 1)
                if count > 0:
                    wanted.append((sequence, count))
        if wanted:
            for (sequence, _), drafts in zip(wanted, self.proposer.propose(wanted), strict=True):
                sequence.draft_token_ids += allowed(sequence, drafts)

    def verify(self, sequence: Sequence, place: int, token_id: int) -> bool:
        """Whether the token sampled at a place of the draft is the one that was guessed; the draft ends if not."""
        drafts = sequence.draft_token_ids
        if place == 0:
            self.num_drafts += 1
            self.num_draft_tokens += len(drafts)
            sequence.num_draft_tokens += len(drafts)
        right = place < len(drafts) and drafts[place] == token_id
        if right:
            self.accepted[place] += 1
            sequence.num_accepted_tokens += 1
        return right
