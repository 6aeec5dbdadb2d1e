"""A double of the asynchronous engine."""

import asyncio

from lmworks.core.generation import TokenLogprob
from lmworks.engine.outputs import Delta
from lmworks.engine.process.exchange import ModelInfo
from lmworks.engine.prompts import Prompts
from lmworks.engine.stats import EngineStats
from lmworks.tokenization import Tokenizer

REPLY = "Bonjour! Paris is **the** capital. Voilà 😀"


class ScriptedEngine:
    """Says `reply` token by token; keeps what it was asked and what it still holds."""

    def __init__(self, tokenizer: Tokenizer, reply: str = REPLY, max_model_len: int = 200) -> None:
        self.tokenizer, self.reply, self.max_model_len = tokenizer, reply, max_model_len
        self.prompts = Prompts(tokenizer, has_encoder=False)
        self.alive = True
        self.pause = 0.0
        self.first_pause = 0.0
        self.error: Exception | None = None
        self.error_after = 0
        self.asked: list[tuple[list[int], object]] = []
        self.options: list[dict[str, object]] = []
        self.ids: list[str] = []
        self.adapters: dict[str, str] = {}
        self.running: set[str] = set()
        self.aborted: list[str] = []
        self.generated = 0
        self.called: list[tuple[str, dict[str, object]]] = []
        self.answer: object = None

    async def generate(self, prompt_token_ids, params, request_id, **options):
        self.asked.append((list(prompt_token_ids), params))
        self.options.append(options)
        self.ids.append(request_id)
        ids = self.tokenizer.encode(self.reply)
        limit = params.max_tokens or self.max_model_len - len(prompt_token_ids)
        reason = "stop" if len(ids) <= limit else "length"
        self.running.add(request_id)
        try:
            if self.first_pause:
                await asyncio.sleep(self.first_pause)
            for count, token in enumerate(ids[:limit]):
                if self.error is not None and count >= self.error_after:
                    raise self.error
                await asyncio.sleep(self.pause)
                done = self.tokenizer.token_bytes  # text follows the bytes, as a streaming detokenizer's does
                before = b"".join(done(t) for t in ids[:count]).decode(errors="ignore")
                after = b"".join(done(t) for t in ids[: count + 1]).decode(errors="ignore")
                logprob = None
                if params.logprobs is not None:
                    top = ((token, -0.5), (0, float("-inf")))[: params.logprobs]
                    logprob = (TokenLogprob(token, -0.5, top),)
                last = count + 1 == min(limit, len(ids))
                self.generated += 1
                for index in range(params.n):
                    yield Delta(
                        request_id, index, after[len(before) :], (token,), logprob, reason if last else None,
                        len(prompt_token_ids), count + 1,
                    )  # fmt: skip
        finally:
            self.running.discard(request_id)

    @property
    def state(self):
        return "ready" if self.alive else "failed"

    @property
    def info(self):
        return ModelInfo("generate", self.max_model_len, self.tokenizer.vocab_size, block_size=16, num_kv_blocks=64)

    async def call(self, name, /, **arguments):
        self.called.append((name, arguments))
        if self.error is not None:
            raise self.error
        return self.answer

    def abort(self, request_id):
        self.aborted.append(request_id)

    def stats(self):
        return EngineStats(
            num_requests_running=len(self.running), kv_cache_usage=0.25, generation_tokens_total=self.generated,
            requests_finished_total={"stop": 3}, adapters=self.adapters,
        )  # fmt: skip

    def shutdown(self):
        pass
