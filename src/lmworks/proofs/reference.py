"""The reference library's side of a comparison: a tiny model with random weights, its outputs, its gradients."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lmworks.core.errors import require
from lmworks.proofs.cases.case import Case

Document = tuple[Tensor, Tensor | None]
"""Token ids [T] of what the stack reads last, and [S] of the source, for an encoder-decoder; or pixels [C, H, W]."""
OUTPUTS = {
    "logits": "logits", "prediction_logits": "prediction_logits", "seq_relationship_logits": "seq_relationship_logits",
    "sop_logits": "seq_relationship_logits", "start_logits": "start_logits", "end_logits": "end_logits",
    "last_hidden_state": "last_hidden_state", "image_embeds": "embeds", "text_embeds": "embeds",
}  # fmt: skip
"""What is compared, where the reference's output has it, and its name here: ALBERT has one of its own."""


def transformers() -> Any:
    """The library, quiet and offline."""
    require("transformers", "test")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    library: Any = import_module("transformers")
    library.utils.logging.disable_progress_bar()
    library.utils.logging.set_verbosity_error()
    return library


def build(case: Case, seed: int) -> Any:
    """The case's model with weights far from any initialization and outputs near one."""
    library = transformers()
    config = library.AutoConfig.for_model(case.family, **case.config)
    config.architectures = [case.architecture]
    torch.manual_seed(seed)
    model = getattr(library, case.architecture)._from_config(config, attn_implementation="eager").eval()
    generator = torch.Generator().manual_seed(seed + 1)
    for name, tensor in {**dict(model.named_parameters()), **dict(model.named_buffers())}.items():
        # Buffers called so are weights too, of routers and of BART's logits; GPT-1's of [1, 1, T, T] are masks.
        if tensor.is_floating_point() and (tensor.requires_grad or (name.endswith("bias") and tensor.ndim <= 2)):
            _randomize(tensor.data, generator)
    model.tie_weights()
    if case.own_head:
        head = model.get_output_embeddings()
        head.weight = torch.nn.Parameter(head.weight.detach().flip(0))
    return model


def _randomize(tensor: Tensor, generator: torch.Generator) -> None:
    """Matrices preserve the size of what they multiply; norms stay near one, biases near zero."""
    noise = torch.randn(tensor.shape, generator=generator)
    if tensor.ndim >= 2:
        tensor.copy_(noise / tensor.shape[-1] ** 0.5)
    else:
        tensor.copy_((1.0 if bool((tensor == 1).all()) else 0.0) + 0.2 * noise)


def load(folder: Path, architecture: str) -> Any:
    """The reference's model from a folder of ours."""
    return (
        getattr(transformers(), architecture)
        .from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
        .eval()
    )


def outputs(model: Any, documents: Sequence[Document], types: Sequence[Tensor | None]) -> dict[str, list[Tensor]]:
    """Each document alone, unpadded; every kind of output by name."""
    collected: dict[str, list[Tensor]] = {}
    for (ids, source), segment in zip(documents, types, strict=True):
        if ids.is_floating_point():
            inputs: dict[str, Any] = {"pixel_values": ids[None], "interpolate_pos_encoding": True}
        elif source is None:
            inputs = {"input_ids": ids[None]}
        else:
            inputs = {"input_ids": source[None], "decoder_input_ids": ids[None]}
        if segment is not None:
            inputs["token_type_ids"] = segment[None]
        result = model(**inputs)
        for name, ours in OUTPUTS.items():
            if getattr(result, name, None) is not None:
                collected.setdefault(ours, []).append(result[name][0])
    return collected


def greedy(model: Any, document: Document, new_tokens: int) -> tuple[int, ...]:
    """The reference's greedy continuation of a prompt, or its decoder's answer to a source."""
    prompt, source = document
    ids = (prompt if source is None else source)[None]
    whole = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=new_tokens, do_sample=False, num_beams=1
    )[0]
    return tuple(whole[len(prompt) if source is None else 1 :].tolist())


def gradients_as_weights(model: Any, loss: Tensor) -> None:
    """Back-propagate, then put every gradient in its parameter's place, so that saving the model saves gradients."""
    torch.autograd.backward(loss)
    for parameter in model.parameters():
        gradient = parameter.grad
        parameter.data = torch.zeros_like(parameter) if gradient is None else gradient.detach().clone()
    for buffer in model.buffers():
        if buffer.is_floating_point():
            buffer.zero_()
