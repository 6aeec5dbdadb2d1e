"""From a path to an engine that a loop can drive, of the kind that the model is. Knows no thread and no process."""

from __future__ import annotations

import logging
from pathlib import Path

from lmworks.core.errors import LMWorksError
from lmworks.engine.config import EngineConfig
from lmworks.engine.execution.packed_linear import PackedLinear
from lmworks.engine.execution.roofline import Roofline
from lmworks.engine.llm_engine import LLMEngine
from lmworks.engine.pooling.embedding_engine import EmbeddingEngine
from lmworks.engine.process.exchange import Kind, Load, ModelInfo
from lmworks.engine.process.loop import SteppedEngine
from lmworks.engine.process.operations import names
from lmworks.engine.weights import versions
from lmworks.engine.weights.loading import load
from lmworks.kernels.machine import read_bandwidth
from lmworks.models.config import ModelConfig
from lmworks.models.head_slots import CausalLMHead
from lmworks.models.hub import read_config
from lmworks.models.transformer import Transformer

PROBE_BYTES = 128 * 2**20
"""Read to learn how fast memory is: more than caches hold, and done in a moment."""
log = logging.getLogger(__name__)

MODULES_FILE = "modules.json"
"""What makes a folder one of sentence-transformers."""


def open_engine(
    path: Path, config: EngineConfig, kind: Kind | None
) -> tuple[SteppedEngine, ModelInfo, Roofline | None]:
    """Load a model and put the engine of its kind around it.

    Args:
        path: a model folder, a sentence-transformers folder or a GGUF file.
        config: limits.
        kind: None takes what the model is.

    Raises:
        LMWorksError: the model cannot be loaded, or not as that kind.
    """
    if (kind or kind_of(path)) == "embed":
        embedding = EmbeddingEngine.load(path, config)
        return embedding, embedding.info, None
    engine = LLMEngine(*load(path, None, config), config, path)
    engine.model.eval()
    return engine, info_of(engine), roofline_of(engine)


def restore(engine: SteppedEngine, load: Load) -> None:
    """Bring a newly opened engine to the weights and adapters that the one before it had.

    What cannot be read any more is left out: the log says so, and the engine tells which weights it serves.
    """
    if not isinstance(engine, LLMEngine):
        return
    path, version = load.weights
    try:
        if version not in ("", engine.versions.served.version):
            versions.load(engine, path, version).result()
            versions.activate(engine)
            engine.versions.other = None
    except LMWorksError as error:
        log.error("the weights %s of %s are not served again: %s", version, path, error)
    for name, folder in load.adapters.items():
        try:
            engine.adapters.load(engine.model, name, folder)
        except LMWorksError as error:
            log.error("the adapter %s is not loaded again: %s", name, error)


def kind_of(path: Path) -> Kind:
    """What the model of a folder or file is for: vectors, unless it can generate and is not saved as an embedder."""
    if (path / MODULES_FILE).is_file():
        return "embed"
    return "generate" if generates(read_config(path)) else "embed"


def generates(config: ModelConfig) -> bool:
    """Whether the model has a decoder with the head of a language model."""
    return config.decoder is not None and config.decoder.causal and isinstance(config.head, CausalLMHead)


def info_of(engine: LLMEngine) -> ModelInfo:
    """What is served."""
    return ModelInfo(
        kind="generate",
        max_model_len=engine.max_model_len,
        vocab_size=engine.model.config.vocab_size,
        has_encoder=engine.has_encoder,
        block_size=engine.config.block_size,
        num_kv_blocks=engine.blocks.num_blocks,
        operations=names("generate"),
        max_loras=engine.config.max_loras,
    )


def roofline_of(engine: LLMEngine) -> Roofline | None:
    """A measure of the engine's steps against this machine's memory; None where that is not the CPU's."""
    model = engine.model
    if model.device.type != "cpu":
        return None
    cache = sum(layer.nbytes for layer in engine.cache.layers)
    return Roofline(bytes_per_step(model), cache, lambda: read_bandwidth(PROBE_BYTES))


def bytes_per_step(model: Transformer) -> int:
    """Bytes of weights that decoding reads in a step, in the form they are served in; of experts, all of them."""
    packed = [module.weight.packed for module in model.modules() if isinstance(module, PackedLinear)]
    tensors = {tensor.data_ptr(): tensor.nbytes for tensor in (*model.parameters(), *model.buffers(), *packed)}
    if isinstance(model.lm_head, PackedLinear) or not model.tied:
        for tensor in (*model.embed_tokens.parameters(), *model.embed_tokens.buffers()):
            tensors.pop(tensor.data_ptr(), None)  # a row of it is looked up, nothing multiplied
    return sum(tensors.values())
