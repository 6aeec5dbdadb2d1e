"""Store linear weights in eight or four bits, with a scale per output row or group, and measure what that costs.

Rounding to nearest needs no calibration data; per-row scales keep the error of int8 weights small, and four bits need
small groups. Embeddings, norms and the head stay floating point: the head decides between near ties, and often is the
embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from lmworks.compress.quality import Sample, Snapshot, compare, read_sample, snapshot
from lmworks.core.code_version import code_version
from lmworks.core.config import Config
from lmworks.core.errors import ConfigError
from lmworks.core.lineage import Manifest, clock, write_artifact
from lmworks.core.progress import bar, say
from lmworks.models.families import family_named
from lmworks.models.hub import load_pretrained, save_pretrained
from lmworks.models.hub.quantization import HEAD, ignored, linear_names
from lmworks.models.hub.safetensors_io import weight_files
from lmworks.models.hub.tensor_source import own_state
from lmworks.models.transformer import Transformer
from lmworks.nn.quantized import QuantizedLinear
from lmworks.tokenization import check_compatible, load_tokenizer


class QuantizeConfig(Config):
    """Quantize a model's linear maps to int8 or int4 weights."""

    model: Path
    """Model folder or GGUF file, not quantized yet."""
    output: Path
    """Where the quantized model folder is written."""
    corpus: Path | None = None
    """Corpus whose validation texts measure the quality; None measures logits on random tokens only."""
    ignore: tuple[str, ...] = ("lm_head",)
    """Linear maps left as they are: names as in the weight file, or `re:` patterns. The head always is."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Type of all that stays floating point, and of the activations when the model runs."""
    sample_bytes: Annotated[int, Field(gt=0)] = 65_536
    """How much validation text to measure on."""
    bits: Literal[8, 4] = 8
    """Of a weight."""
    group_size: Annotated[int, Field(ge=0)] | None = None
    """Weights of a row that share a scale; 0 is the whole row. None is 0 at 8 bits and 32 at 4."""

    @property
    def group(self) -> int:
        """`group_size`, chosen where it is left open."""
        return self.group_size if self.group_size is not None else 0 if self.bits == 8 else 32


def quantize(config: QuantizeConfig) -> Manifest:
    """Write a model folder that `load_pretrained`, vLLM and transformers with compressed-tensors read.

    The written folder is loaded back and compared with the original; the differences are in the metrics.

    Raises:
        ConfigError: the model is quantized already, its family's layers cannot be stored so, an entry of
            `ignore` names nothing, or `group_size` does not divide the columns of a linear map.
        CheckpointError: the model cannot be loaded.
        TokenizerError: it has no tokenizer, or one that does not fit.
        DataError: the corpus has no validation texts.
    """
    started = clock()
    tokenizer = load_tokenizer(config.model)
    model = load_pretrained(config.model)
    check_compatible(tokenizer, model.config.vocab_size)
    names = quantizable(model, config.ignore)
    sample = read_sample(config.corpus, tokenizer, config.sample_bytes, model.config)
    before = snapshot(model, sample)
    dtype = getattr(torch, config.dtype)
    quantize_linears(model, names, dtype, bits=config.bits, group_size=config.group)
    parents = {"model": config.model} | ({"corpus": config.corpus} if config.corpus else {})
    with write_artifact(
        config.output, "model", config=config.to_dict(), parents=parents,
        code_version=code_version(__name__), started=started,
    ) as writer:  # fmt: skip
        save_pretrained(model, writer.folder, dtype=dtype)
        tokenizer.save(writer.folder)
        del model
        written = load_pretrained(writer.folder)
        writer.metrics |= _metrics(config, written, sample, before, writer.folder)
        say(_summary(writer.metrics))
    assert writer.manifest is not None
    return writer.manifest


def quantizable(model: Transformer, ignore: Sequence[str] = ()) -> tuple[str, ...]:
    """Names (ours) of the linear maps to quantize: all but the head and what `ignore` names (theirs).

    Raises:
        ConfigError: the model is quantized already, cannot be stored so, or an entry names nothing.
    """
    if any(isinstance(m, QuantizedLinear) for m in model.modules()):
        raise ConfigError("the model is quantized already", "Give the model it was made from")
    rules = family_named(model.config.family).rules(model.config, own_state(model))
    names = linear_names(model, rules)
    for entry in ignore:
        if entry != HEAD and not any(ignored(theirs, (entry,)) for theirs in names.values()):
            raise ConfigError(
                f"ignore: {entry!r} names no linear map", f"Names are like {next(iter(names.values()))!r}"
            )
    chosen = tuple(ours for ours, theirs in names.items() if ours != HEAD and not ignored(theirs, ignore))
    if not chosen:
        raise ConfigError(f"ignore = {list(ignore)} leaves nothing to quantize", "Name fewer linear maps")
    return chosen


def quantize_linears(
    model: Transformer, names: Sequence[str], dtype: torch.dtype, *, bits: int = 8, group_size: int = 0
) -> None:
    """Replace the named linear maps by quantized ones, in place, one at a time.

    Args:
        model: changed in place.
        names: of its linear maps.
        dtype: of the scales.
        bits: 8 or 4.
        group_size: columns that share a scale; 0 is the whole row.

    Raises:
        ConfigError: `group_size` does not divide the columns of one; nothing is changed then.
    """
    for name in names:
        columns = model.get_parameter(f"{name}.weight").shape[1]
        if group_size and columns % group_size:
            raise ConfigError(
                f"group_size = {group_size} does not divide the {columns} columns of {name}",
                "Choose one that divides all, 0 for whole rows, or name the linear map in ignore",
            )
    with bar("quantize", total=len(names)) as progress:
        for name in names:
            linear = model.get_submodule(name)
            assert isinstance(linear, nn.Linear)
            made = QuantizedLinear.from_linear(linear, dtype, bits=bits, group_size=group_size)
            model.set_submodule(name, made)
            progress.advance()


def _metrics(
    config: QuantizeConfig, written: Transformer, sample: Sample, before: Snapshot, folder: Path
) -> dict[str, float]:
    source = config.model
    files = [source] if source.is_file() else sorted(source.glob("*.gguf")) or weight_files(source)
    sizes = {
        "weight_bytes_before": sum(f.stat().st_size for f in files),
        "weight_bytes_after": sum(f.stat().st_size for f in weight_files(folder)),
        "quantized_bytes": sum(
            _bytes(m.weight, m.weight_scale) for m in written.modules() if isinstance(m, QuantizedLinear)
        ),
        "floating_point_bytes": sum(_bytes(p) for p in written.parameters()),
    }
    return sizes | compare(before, snapshot(written, sample))


def _bytes(*tensors: Tensor) -> int:
    return sum(t.nbytes for t in tensors)


def _summary(metrics: dict[str, float]) -> str:
    size = f"{metrics['weight_bytes_before'] / 1e3:,.0f} kB became {metrics['weight_bytes_after'] / 1e3:,.0f} kB"
    if "bits_per_byte_before" in metrics:
        bits = f"bits per byte {metrics['bits_per_byte_before']:.4f} became {metrics['bits_per_byte']:.4f}, "
    else:
        bits = ""
    return f"{size}; {bits}largest logit error {metrics['logit_error_max']:.3f}"
