"""`AsyncLLM`: one engine, many asyncio streams in front of it. Knows no HTTP and imports no torch by itself.

The engine lives in a thread of this process (`AsyncLLM(...)`), or in a process of its own that is watched and started
again (`AsyncLLM.spawn(...)`). A stream that is closed early, because its client left, aborts its request.
"""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Self

from lmworks.core.errors import LMWorksError, RequestError
from lmworks.core.sampling import SamplingParams
from lmworks.engine.config import EngineConfig
from lmworks.engine.outputs import Delta
from lmworks.engine.process.child_process import EngineProcess, Restarts, State
from lmworks.engine.process.exchange import Abort, Call, Kind, Load, ModelInfo, Result
from lmworks.engine.process.streams import Streams
from lmworks.engine.request import Request
from lmworks.engine.stats import EngineStats

if TYPE_CHECKING:
    from lmworks.engine.process.thread import EngineThread
    from lmworks.engine.prompts import Prompts
    from lmworks.models.transformer import Transformer
    from lmworks.tokenization import Tokenizer


class AsyncLLM:
    """Serves one model to many concurrent requests.

    Args:
        model: a model folder, a GGUF file, or a model in memory, which is put into evaluation mode.
        tokenizer: None takes the one beside the weights.
        config: limits.
        kind: of a model on disk, `generate` or `embed`; None takes what it is.

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
        kind: Kind | None = None,
    ) -> None:
        from lmworks.engine.process.thread import EngineThread

        self._streams, self._ids = Streams(), count()
        self._home: EngineThread | EngineProcess = EngineThread(
            model, tokenizer, config, kind, self._streams.dispatch, self._streams.fail
        )
        self._tokenizer = getattr(self._home.loop.engine, "tokenizer", None)
        self._path = Path(model) if isinstance(model, Path | str) else None
        self._loading = Lock()

    @classmethod
    def spawn(
        cls,
        model: Path | str,
        config: EngineConfig = EngineConfig(),  # noqa: B008 - a frozen value
        kind: Kind | None = None,
        restarts: Restarts = Restarts(),  # noqa: B008 - a frozen value
    ) -> Self:
        """Start an engine in a process of its own and return at once; `wait_until_ready` tells when it serves.

        Args:
            model: a model folder or a GGUF file.
            config: limits.
            kind: `generate` or `embed`; None takes what it is.
            restarts: what happens when the process dies or hangs.
        """
        self = cls.__new__(cls)
        self._streams, self._ids = Streams(), count()
        load = Load(str(Path(model).absolute()), config.to_dict(), kind)
        self._home = EngineProcess(load, self._streams.dispatch, self._streams.fail, restarts)
        self._tokenizer, self._path = None, Path(model)
        self._loading = Lock()
        return self

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer, read when first asked for.

        Raises:
            RequestError: the engine has none.
            TokenizerError: it cannot be read.
        """
        from lmworks.tokenization import load_tokenizer  # not before a process was started, which takes longer

        with self._loading:
            if self._tokenizer is None and self._path is not None:
                self._tokenizer = load_tokenizer(self._path)
        if self._tokenizer is None:
            raise RequestError("this engine has no tokenizer", "Give one, or use token ids")
        return self._tokenizer

    @property
    def prompts(self) -> Prompts:
        """Texts and conversations as tokens; errors as for `tokenizer` and `info`."""
        from lmworks.engine.prompts import Prompts

        return Prompts(self.tokenizer, self.info.has_encoder)

    @property
    def info(self) -> ModelInfo:
        """What is served; also while it is started again.

        Raises:
            EngineUnavailableError: it is still being loaded.
            EngineError: it could not be loaded.
        """
        if self._home.info is None:
            raise self._home.error.again()
        return self._home.info

    @property
    def max_model_len(self) -> int:
        """Prompt plus completion at most; behind an encoder, what the decoder says. Errors as for `info`."""
        return self.info.max_model_len

    @property
    def state(self) -> State:
        """Whether requests are served, and if not, what is the matter."""
        return self._home.state

    @property
    def alive(self) -> bool:
        """Whether requests are served."""
        return self._home.state == "ready"

    @property
    def error(self) -> LMWorksError:
        """What a request is answered with while requests are not served."""
        return self._home.error

    @property
    def pid(self) -> int | None:
        """Of the engine's own process, where it has one and it runs."""
        return self._home.pid

    def wait_until_ready(self, timeout_seconds: float | None = None) -> ModelInfo:
        """Wait, in a thread, until requests are served.

        Raises:
            LMWorksError: the model cannot be loaded, or not in that time.
        """
        if isinstance(self._home, EngineProcess):
            return self._home.wait_until_ready(timeout_seconds)
        return self.info

    async def generate(
        self,
        prompt_token_ids: Sequence[int],
        params: SamplingParams,
        request_id: str | None = None,
        *,
        priority: int = 0,
        cache_salt: str = "",
        adapter: str | None = None,
        timeout_seconds: float | None = None,
    ) -> AsyncGenerator[Delta, None]:
        """Stream a request's deltas until all its completions have ended.

        Closing the stream early aborts the request. A completion that the engine had to give up ends with
        the reason `abort` and the error in its delta.

        Args:
            prompt_token_ids: the prompt, for the encoder where the model has one; the decoder then answers.
            params: decoding parameters.
            request_id: for `abort` and telemetry; None makes one up.
            priority: lower goes first where the scheduling policy is `priority`.
            cache_salt: only requests of one salt share cached prefixes.
            adapter: name of a loaded adapter; None is the base model.
            timeout_seconds: the request is ended when so much time has passed.

        Raises:
            RequestError: the prompt is empty, too long or impossible.
            EngineOverloadedError: too many requests are waiting.
            EngineUnavailableError: the engine is being loaded or started again.
            EngineError: the engine failed or was shut down.
        """
        request_id = request_id if request_id is not None else f"request-{next(self._ids)}"
        request = Request(request_id, tuple(prompt_token_ids), params, priority, cache_salt, adapter, timeout_seconds)
        stream = self._streams.request(request_id, params.n)
        remaining = params.n
        try:
            try:
                self._home.send(request)
            except BaseException:
                self._streams.forget(stream)
                remaining = 0
                raise
            while remaining:
                item = await stream.queue.get()
                if isinstance(item, LMWorksError):
                    remaining = 0
                    raise item
                assert isinstance(item, Delta)
                remaining -= item.finish_reason is not None
                yield item
        finally:
            if remaining:
                self.abort(request_id)

    def abort(self, request_id: str) -> None:
        """End a request; its stream gets deltas with the reason `abort`.

        Unknown ids are ignored. Any thread may call.
        """
        with suppress(LMWorksError):  # an engine that is gone has nothing to end
            self._home.send(Abort(request_id))

    async def call(self, name: str, /, **arguments: Any) -> Any:
        """Have the engine carry out one of its operations between two steps; see `operations.OPERATIONS`.

        Raises:
            RequestError: the engine has no such operation, or refuses the arguments.
            EngineError: the operation failed, or the engine is not there.
        """
        stream = self._streams.call()
        assert isinstance(stream.key, int)
        try:
            self._home.send(Call(stream.key, name, arguments))
        except BaseException:
            self._streams.forget(stream)
            raise
        item = await stream.queue.get()
        if isinstance(item, LMWorksError):
            raise item
        assert isinstance(item, Result)
        if item.error is not None:
            raise item.error
        return item.value

    async def embed(self, texts: Sequence[str | Sequence[int]]) -> list[list[float]]:
        """One unit-length vector per text, or per text's token ids without special tokens, in order.

        Raises:
            RequestError: the model generates, or a text has no tokens; and as in `call`.
        """
        plain = [text for text in texts if isinstance(text, str)]
        encoded = iter(await asyncio.to_thread(self.tokenizer.encode_batch, plain) if plain else ())
        documents = [next(encoded) if isinstance(text, str) else list(text) for text in texts]
        told = await self.call("embed", documents=documents)
        return [array("f", vector).tolist() for vector in told["vectors"]]

    def stats(self) -> EngineStats:
        """What had been done and was held after the latest step."""
        return self._streams.stats

    def shutdown(self) -> None:
        """End the engine; streams that are still open get an `EngineError`. Calling it again does nothing."""
        self._home.close()
