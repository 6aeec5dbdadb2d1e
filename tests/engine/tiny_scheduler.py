"""A scheduler without a model: what the engine does around it, pretended."""

from __future__ import annotations

from lmworks.core.sampling import SamplingParams
from lmworks.engine.config import EngineConfig
from lmworks.engine.request import Request
from lmworks.engine.scheduling.block_manager import BlockManager
from lmworks.engine.scheduling.scheduler import Chunk, Scheduler
from lmworks.engine.scheduling.sequence import Sequence


def sequence(tokens, max_tokens=8, **request) -> Sequence:
    prompt = tuple(tokens) if not isinstance(tokens, int) else tuple(range(tokens))
    return Sequence(Request("r", prompt, SamplingParams(), **request), 0, prompt, max_tokens)


def scheduler(num_blocks=16, block_size=4, prefix=True, **limits) -> Scheduler:
    config = EngineConfig(**{"max_num_seqs": 4, "max_num_batched_tokens": 16, **limits})
    return Scheduler(config, BlockManager(num_blocks, block_size, prefix))


def step(s: Scheduler, token: int = 7) -> list[tuple[Sequence, int]]:
    """Schedule, pretend to compute, pretend to sample."""
    chunks = s.schedule()
    carry_out(s, chunks, token)
    return [(c.sequence, c.length) for c in chunks]


def carry_out(s: Scheduler, chunks: list[Chunk], token: int) -> None:
    """As the engine does: own tokens are computed, then one is sampled, and more while guesses are right."""
    assert sum(c.length for c in chunks) <= s.config.max_num_batched_tokens
    assert len(s.running) <= s.config.max_num_seqs
    ready = []
    for chunk in chunks:
        x = chunk.sequence
        assert chunk.length == len(chunk.token_ids)
        assert len(x.block_table) * s.block_manager.block_size >= x.num_computed_tokens + chunk.length
        s.computed(x, chunk.length - len(x.draft_token_ids))
        if chunk.num_logits:
            ready += [x, *s.fork(x)]
    for x in ready:
        for guess in [*x.draft_token_ids, None]:
            x.append(token)
            if x.num_output_tokens >= x.max_tokens:
                s.finish(x, "length")
                break
            if guess != token:
                break
            s.computed(x, 1)
    s.check_integrity()


def blocks_written(chunk: Chunk, block_size: int) -> list[int]:
    """Blocks that get keys and values."""
    first, last = chunk.start // block_size, (chunk.start + chunk.length - 1) // block_size
    return chunk.sequence.block_table[first : last + 1]
