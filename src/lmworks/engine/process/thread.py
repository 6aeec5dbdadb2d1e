"""An engine in a thread of this process: for scripts, notebooks, tests and models that are in memory already.

Presents the same face as `process.EngineProcess`; what failed is not started again. Knows no request.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from lmworks.core.errors import EngineError, LMWorksError
from lmworks.engine.config import EngineConfig
from lmworks.engine.llm_engine import LLMEngine
from lmworks.engine.process.child_process import State
from lmworks.engine.process.exchange import Command, Kind, Report, Stop
from lmworks.engine.process.loop import EngineLoop
from lmworks.engine.process.opening import info_of, open_engine
from lmworks.engine.weights.loading import load
from lmworks.models.transformer import Transformer
from lmworks.tokenization import Tokenizer

log = logging.getLogger(__name__)


class EngineThread:
    """Runs one engine's loop.

    Args:
        model: a model folder, a GGUF file, or a model in memory, which is put into evaluation mode.
        tokenizer: None takes the one beside the weights.
        config: limits.
        kind: of a model on disk; None takes what it is. A model in memory generates.
        on_reports: gets the reports of each round, from the thread.
        on_loss: told why nothing more is answered.

    Raises:
        LMWorksError: the model cannot be opened.
    """

    pid: int | None = None
    """It has no process of its own."""

    def __init__(
        self,
        model: Path | str | Transformer,
        tokenizer: Tokenizer | None,
        config: EngineConfig,
        kind: Kind | None,
        on_reports: Callable[[Sequence[Report]], None],
        on_loss: Callable[[LMWorksError], None],
    ) -> None:
        if isinstance(model, Transformer) or tokenizer is not None:
            path = None if isinstance(model, Transformer) else Path(model)
            engine = LLMEngine(*load(model, tokenizer, config), config, path)
            engine.model.eval()
            self.loop = EngineLoop(engine, info_of(engine), on_reports)
        else:
            self.loop = EngineLoop(*open_engine(Path(model), config, kind)[:2], on_reports)
        self.info = self.loop.info
        self.state: State = "ready"
        self.error: LMWorksError = EngineError("the engine was shut down", "Start it again")
        self._on_loss = on_loss
        self._sending = threading.Lock()
        """Makes sure that no command is sent after the last one was carried out."""
        on_reports([self.loop.engine.stats()])
        self.thread = threading.Thread(target=self._run, name="lmworks-engine", daemon=True)
        self.thread.start()

    def send(self, command: Command) -> None:
        """Send a command.

        Raises:
            LMWorksError: the engine has failed or was shut down.
        """
        with self._sending:
            if self.state != "ready":
                raise self.error.again()
            self.loop.send(command)

    def close(self) -> None:
        """Stop the thread. May be repeated."""
        self.loop.send(Stop())
        self.thread.join()

    def _run(self) -> None:
        state: State = "stopped"
        error = self.error
        try:
            self.loop.run()
        except Exception as failure:
            log.exception("the engine failed")
            state = "failed"
            error = EngineError(f"the engine failed: {failure!r}", "See the log, then start it again")
        with self._sending:
            self.state, self.error = state, error
        self._on_loss(error)
        self.loop.wind_up()
