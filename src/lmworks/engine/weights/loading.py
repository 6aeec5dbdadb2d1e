"""From a path to a model and its tokenizer, ready to serve. Knows no request."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from pathlib import Path

import torch

from lmworks.core.errors import ConfigError
from lmworks.engine.config import EngineConfig, Quantization
from lmworks.engine.execution.packed_linear import GRIDS, pack_linears, quantize_linears
from lmworks.engine.servable import served_decoder
from lmworks.engine.weights.kept_on_disk import kept_weights
from lmworks.engine.weights.layer_offload import LayerOffload
from lmworks.kernels.native.library import library
from lmworks.models.hub import load_pretrained, read_config
from lmworks.models.transformer import Transformer
from lmworks.nn.quantized import QuantizedLinear
from lmworks.tokenization import Tokenizer, check_compatible, load_tokenizer

log = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

MANY_PARAMETERS = 50_000_000
"""From here on reading the weights is what decoding costs, and bfloat16 halves it; below, conversions cost more."""


def load(
    model: Path | str | Transformer, tokenizer: Tokenizer | None, config: EngineConfig
) -> tuple[Transformer, Tokenizer | None]:
    """Load what is a path, and check that weights and tokenizer belong together.

    A model in memory is served as it is; only where the configuration asks for another dtype, names a device it is not
    on, or names a quantization (`none` included) is it copied, and the copy packed.

    Raises:
        ConfigError: the model generates nothing, or there is no GPU.
        CheckpointError: the weights cannot be read.
        TokenizerError: the tokenizer cannot be read or does not fit the weights.
    """
    dtype = DTYPES.get(config.dtype)
    if not isinstance(model, Transformer):
        path = Path(model)
        served_decoder(read_config(path))  # before a tokenizer is missed that a model of images lacks
        with ThreadPoolExecutor(1) as beside:  # weights are read while the vocabulary is
            loaded = None if tokenizer is not None else beside.submit(load_tokenizer, path)
            try:
                model = load_weights(path, config, dtype)
            finally:
                tokenizer = tokenizer if loaded is None else loaded.result()
    else:
        device = model.device if config.device == "auto" else serving_device(config)
        if dtype not in (None, model.dtype) or device.type != model.device.type or config.quantization != "auto":
            model = prepared(deepcopy(model).to(device, dtype or model.dtype), config.quantization)
    if tokenizer is not None:
        check_compatible(tokenizer, model.config.vocab_size)
    return model, tokenizer


def serving_device(config: EngineConfig) -> torch.device:
    """Where models from disk are served.

    Raises:
        ConfigError: a GPU is asked for, and PyTorch sees none.
    """
    found = torch.cuda.is_available()
    if config.device == "cuda" and not found:
        raise ConfigError("device 'cuda' was asked for, but PyTorch sees no GPU", "Set device to auto or cpu")
    return (
        torch.device("cuda", torch.cuda.current_device()) if found and config.device != "cpu" else torch.device("cpu")
    )


def load_weights(
    path: Path, config: EngineConfig, dtype: torch.dtype | None, device: torch.device | None = None
) -> Transformer:
    """Load a model without its tokenizer, in the form in which it decodes fastest.

    Args:
        path: a model folder or a GGUF file.
        config: how to round weights, and whether to keep them.
        dtype: of what is floating point; None takes the fastest.
        device: None is `serving_device`.

    Raises:
        CheckpointError: the weights cannot be read.
        ConfigError: there is no GPU.
    """
    place = device or serving_device(config)
    quantization, native = config.quantization, place.type == "cpu" and library() is not None
    kept = True if native or place.type == "cuda" else None

    if config.cpu_offload_gb:
        if place.type == "cuda":
            return _partly_aside(path, config, dtype, place)
        log.warning("cpu_offload_gb has no effect on a CPU")

    def make() -> Transformer:
        model = load_pretrained(path, dtype=dtype, device=place, keep_quantized=kept)
        if dtype is None:
            model = model.to(fastest_dtype(model, quantization))
        return prepared(model, quantization)

    if config.weights_on_disk == "never" or not native:
        return make()
    return kept_weights(path, quantization, dtype, config.weights_on_disk, make)


def _partly_aside(path: Path, config: EngineConfig, dtype: torch.dtype | None, device: torch.device) -> Transformer:
    """A model on an accelerator with layers in the CPU's memory."""
    model = load_pretrained(path, dtype=dtype or torch.bfloat16, keep_quantized=True).eval()
    if config.quantization in GRIDS:
        quantize_linears(model, config.quantization)
    assert model.decoder is not None, "only models with a decoder are served"
    offload = LayerOffload(list(model.decoder.layers), device, int(config.cpu_offload_gb * 2**30))
    log.info("%d layers, %.2f GiB, stay in the CPU's memory", offload.num_layers, offload.num_bytes / 2**30)
    return model.to(device)


def prepared(model: Transformer, quantization: Quantization) -> Transformer:
    """The model in evaluation mode with its linear maps packed, in place."""
    model.eval()
    if model.device.type == "cpu" and library() is not None:
        pack_linears(model, quantization)
    elif quantization in GRIDS:
        quantize_linears(model, quantization)
    return model


def fastest_dtype(model: Transformer, quantization: Quantization = "none") -> torch.dtype:
    """What decodes fastest where the model is: bfloat16 on a GPU; on a CPU, it depends."""
    if model.device.type == "cuda":
        return torch.bfloat16
    large = sum(p.numel() for p in model.parameters()) >= MANY_PARAMETERS
    quantized = quantization in GRIDS or any(isinstance(m, QuantizedLinear) for m in model.modules())
    fast = library() is not None or torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if (large or quantized) and fast else torch.float32
