"""`AsyncLLM`: the engine in one background thread, many asyncio streams in front of it. Knows no HTTP.

The thread alone touches the engine. Callers send it commands through a queue and get deltas back on their own
event loops. A stream that is closed early, because its client left, aborts its request.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from queue import SimpleQueue

from lmworks.core.errors import EngineError, LMWorksError, RequestError
from lmworks.core.sampling import SamplingParams
from lmworks.engine.config import EngineConfig
from lmworks.engine.llm_engine import LLMEngine
from lmworks.engine.loading import load
from lmworks.engine.outputs import Delta
from lmworks.engine.prompts import Prompts
from lmworks.engine.request import Request
from lmworks.engine.stats import EngineStats
from lmworks.models.transformer import Transformer
from lmworks.tokenization import Tokenizer

log = logging.getLogger(__name__)


@dataclass(eq=False)
class _Stream:
    """Where one request's deltas go."""

    request_id: str
    remaining: int
    """Completions that have not ended."""
    loop: asyncio.AbstractEventLoop
    queue: asyncio.Queue[Delta | LMWorksError]

    def put(self, item: Delta | LMWorksError) -> None:
        """Hand over from the engine's thread. A loop that is closed has nobody listening."""
        with suppress(RuntimeError):
            self.loop.call_soon_threadsafe(self.queue.put_nowait, item)


class AsyncLLM:
    """Serves one model to many concurrent requests.

    Args:
        model: a model folder, a GGUF file, or a model in memory, which is put into evaluation mode.
        tokenizer: None takes the one beside the weights.
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
        self._engine = LLMEngine(*load(model, tokenizer, config), config)
        self._engine.model.eval()
        self._ids = count()
        self._commands: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._streams: dict[str, _Stream] = {}
        """Touched by the engine's thread only."""
        self._end: LMWorksError | None = None
        """Why nothing more is served: a failure, or the shutdown."""
        self._ending = threading.Lock()
        """Makes sure that no command is sent after the last one was carried out."""
        self._stats = self._engine.stats()
        self._thread = threading.Thread(target=self._serve, name="lmworks-engine", daemon=True)
        self._thread.start()

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer.

        Raises:
            RequestError: the engine has none.
        """
        if self._engine.tokenizer is None:
            raise RequestError("this engine has no tokenizer", "Give one, or use token ids")
        return self._engine.tokenizer

    @property
    def prompts(self) -> Prompts:
        """Texts and conversations as tokens; errors as for `tokenizer`."""
        return Prompts(self.tokenizer, self._engine.has_encoder)

    @property
    def max_model_len(self) -> int:
        """Prompt plus completion at most; behind an encoder, what the decoder says."""
        return self._engine.max_model_len

    @property
    def alive(self) -> bool:
        """Whether requests are served."""
        return self._end is None

    async def generate(
        self, prompt_token_ids: Sequence[int], params: SamplingParams, request_id: str | None = None
    ) -> AsyncGenerator[Delta, None]:
        """Stream a request's deltas until all its completions have ended.

        Closing the stream early aborts the request. A completion that the engine had to give up ends with
        the reason `abort` and the error in its delta.

        Args:
            prompt_token_ids: the prompt, for the encoder where the model has one; the decoder then answers.
            params: decoding parameters.
            request_id: for `abort` and telemetry; None makes one up.

        Raises:
            RequestError: the prompt is empty, too long or impossible.
            EngineOverloadedError: too many requests are waiting.
            EngineError: the engine failed or was shut down.
        """
        request_id = request_id if request_id is not None else f"request-{next(self._ids)}"
        prompt = tuple(prompt_token_ids)
        self._engine.validate(prompt, params)
        stream = _Stream(request_id, params.n, asyncio.get_running_loop(), asyncio.Queue())
        if not self._send(lambda: self._add(stream, prompt, params)):
            assert self._end is not None
            raise self._end
        remaining = params.n
        try:
            while remaining:
                item = await stream.queue.get()
                if isinstance(item, LMWorksError):
                    remaining = 0
                    raise item
                remaining -= item.finish_reason is not None
                yield item
        finally:
            if remaining:
                self._send(lambda: self._leave(stream))

    def abort(self, request_id: str) -> None:
        """End a request; its stream gets deltas with the reason `abort`.

        Unknown ids are ignored. Any thread may call.
        """
        self._send(lambda: self._publish(self._engine.abort(request_id)))

    def stats(self) -> EngineStats:
        """What had been done and was held after the latest step."""
        return self._stats

    def shutdown(self) -> None:
        """Stop the thread; streams that are still open get an `EngineError`. Calling it again does nothing."""
        self._send(None)
        self._thread.join()

    def _serve(self) -> None:
        """The thread: carry out commands, step, publish, until told to stop or the engine fails."""
        end = EngineError("the engine was shut down", "Start it again")
        try:
            while self._obey():
                self._publish(self._engine.step())
                self._stats = self._engine.stats()
        except Exception as error:
            log.exception("the engine failed")
            end = EngineError(f"the engine failed: {error!r}", "See the log, then start it again")
        with self._ending:
            self._end = end
        while not self._commands.empty():
            command = self._commands.get()
            if command is not None:
                command()
        for stream in list(self._streams.values()):
            stream.put(end)
            self._engine.abort(stream.request_id)
        self._streams.clear()
        self._stats = self._engine.stats()

    def _obey(self) -> bool:
        """Carry out waiting commands, sleeping while there is nothing else to do; False means stop."""
        while not self._commands.empty() or not self._engine.has_unfinished:
            command = self._commands.get()
            if command is None:
                return False
            command()
            self._stats = self._engine.stats()
        return True

    def _send(self, command: Callable[[], None] | None) -> bool:
        """Have the thread carry out a command, None meaning stop; False when it no longer runs."""
        with self._ending:
            if self._end is None:
                self._commands.put(command)
            return self._end is None

    def _add(self, stream: _Stream, prompt: tuple[int, ...], params: SamplingParams) -> None:
        if self._end is not None:
            stream.put(self._end)
            return
        try:
            self._engine.add_request(Request(stream.request_id, prompt, params))
        except LMWorksError as error:
            stream.put(error)
        else:
            self._streams[stream.request_id] = stream

    def _leave(self, stream: _Stream) -> None:
        """The consumer is gone: end its request, unless it has ended, or the id is another's by now."""
        if self._streams.get(stream.request_id) is stream:
            del self._streams[stream.request_id]
            self._engine.abort(stream.request_id)

    def _publish(self, deltas: Sequence[Delta]) -> None:
        for delta in deltas:
            stream = self._streams.get(delta.request_id)
            if stream is not None:
                stream.remaining -= delta.finish_reason is not None
                if not stream.remaining:
                    del self._streams[stream.request_id]
                stream.put(delta)
