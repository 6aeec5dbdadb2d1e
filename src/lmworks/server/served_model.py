"""A model as the server sees it: a name, an asynchronous engine, and the artifact behind it.

`Engine` states what the server asks of an engine; `engine.AsyncLLM` and the doubles of the tests satisfy it.
Knows no HTTP.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from lmworks import __version__
from lmworks.core.sampling import SamplingParams
from lmworks.engine.outputs import Delta
from lmworks.engine.process.child_process import State
from lmworks.engine.process.exchange import ModelInfo
from lmworks.engine.stats import FIRST_VERSION, EngineStats

if TYPE_CHECKING:
    from lmworks.engine.prompts import Prompts
    from lmworks.tokenization import Tokenizer


class Engine(Protocol):
    """An engine that answers many requests at once."""

    @property
    def tokenizer(self) -> Tokenizer:
        """Fits the model."""
        ...

    @property
    def prompts(self) -> Prompts:
        """How texts and conversations become what the model is asked."""
        ...

    @property
    def max_model_len(self) -> int:
        """Prompt and answer together, in tokens."""
        ...

    @property
    def state(self) -> State:
        """Whether requests are served, and if not, what is the matter."""
        ...

    @property
    def info(self) -> ModelInfo:
        """What is served; an `EngineUnavailableError` while that is not known."""
        ...

    def generate(
        self,
        prompt_token_ids: Sequence[int],
        params: SamplingParams,
        request_id: str,
        *,
        priority: int = 0,
        cache_salt: str = "",
        adapter: str | None = None,
    ) -> AsyncGenerator[Delta, None]:
        """Deltas of all `n` completions until each has finished; closing it early aborts the request."""
        ...

    def abort(self, request_id: str) -> None:
        """Drop a request and free what it holds; unknown ids are ignored."""
        ...

    async def call(self, name: str, /, **arguments: Any) -> Any:
        """Carry out one of `engine.operations`."""
        ...

    def stats(self) -> EngineStats:
        """A snapshot."""
        ...

    def shutdown(self) -> None:
        """Stop the engine's thread."""
        ...


@dataclass(eq=False)
class ServedModel:
    """One entry of the server's table."""

    name: str
    llm: Engine
    path: Path | None = None
    """The artifact, for tracing; None when the weights came from memory."""
    content_hash: str = ""
    """Of the artifact; filled in while the engine loads, because hashing large files takes time too."""
    created: int = field(default_factory=lambda: int(time.time()))
    """Unix time, seconds."""
    aliases: tuple[str, ...] = ()
    """Other names that requests may use."""
    adapter: str | None = None
    """This entry is an adapter of the engine's model."""
    parent: str | None = None
    """The entry of the model that an adapter belongs to."""

    @property
    def adapters(self) -> list[ServedModel]:
        """The adapters that are loaded, as entries of their own."""
        return [
            replace(self, name=name, path=Path(path), content_hash="", aliases=(), adapter=name, parent=self.name)
            for name, path in self.llm.stats().adapters.items()
        ]

    @property
    def can_chat(self) -> bool:
        """Whether there is a chat template, or an encoder, which is asked what the user said last."""
        return self.llm.tokenizer.chat_template is not None or self.llm.prompts.has_encoder

    @property
    def fingerprint(self) -> str:
        """`system_fingerprint` on the wire: what, beside the request, decides the answer."""
        made = f"lmworks-{__version__}-{self.content_hash[:8]}" if self.content_hash else f"lmworks-{__version__}"
        version = self.llm.stats().weight_version
        return made if version in ("", FIRST_VERSION) else f"{made}-{version}"
