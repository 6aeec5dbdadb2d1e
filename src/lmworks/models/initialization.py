"""Random weights to begin training from."""

from __future__ import annotations

import math

import torch
from torch import nn

from lmworks.models.transformer import Transformer

INTO_RESIDUAL = ("o_proj.weight", "down_proj.weight", "experts.down_proj")
"""Ends of the names of projections back into the residual stream."""
T_FIXUP_SCALED = ("v_proj.weight", "o_proj.weight", "up_proj.weight", "gate_proj.weight", "down_proj.weight")


def initialize(model: Transformer, seed: int | None = None) -> None:
    """Normal weights, biases at zero, norms and gates where they begin by themselves.

    `initialization` of the configuration decides about projections into the residual stream: "depth_scaled"
    divides their deviation by √(2·layers) (GPT-2), "normal" does not, "t_fixup" takes T-Fixup's rule instead.

    Args:
        model: off the meta device.
        seed: makes the weights reproducible; None draws from torch's global generator.
    """
    generator = None if seed is None else torch.Generator(model.device).manual_seed(seed)
    config = model.config
    for module in model.modules():
        reset = getattr(module, "reset_parameters", None)
        if callable(reset) and not isinstance(module, nn.Linear | nn.Embedding | nn.Conv2d):
            reset()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
        elif parameter.ndim >= 2:
            _, layers = config.columns.get(name.partition(".")[0], (config, config.output_stack))
            scaled = config.initialization == "depth_scaled" and name.endswith(INTO_RESIDUAL)
            divisor = math.sqrt(2 * layers.num_hidden_layers) if scaled else 1.0
            nn.init.normal_(parameter, std=config.initializer_range / divisor, generator=generator)
    for name, buffer in model.named_buffers():
        nn.init.zeros_(buffer) if not name.endswith("running_var") else nn.init.ones_(buffer)
    if config.initialization == "t_fixup":
        _t_fixup(model, generator)


@torch.no_grad()
def _t_fixup(model: Transformer, generator: torch.Generator | None) -> None:
    """Xavier matrices, then those that an update multiplies are shrunk by depth (Huang et al., ICML 2020).

    With N layers of the decoder the factor is (9N)^-1/4, of the encoder 0.67 N^-1/4; embeddings are drawn with
    deviation E^-1/2 and shrunk like the decoder's (the encoder's of a model without decoder).
    """
    config = model.config
    factors = {
        "decoder.": (9 * config.decoder.num_hidden_layers) ** -0.25 if config.decoder else 1.0,
        "encoder.": 0.67 * config.encoder.num_hidden_layers**-0.25 if config.encoder else 1.0,
        "vision.": 0.67 * config.vision.stack.num_hidden_layers**-0.25 if config.vision else 1.0,
    }
    for name, parameter in model.named_parameters():
        factor = next((f for prefix, f in factors.items() if name.startswith(prefix)), 1.0)
        if parameter.ndim == 2 and ".layers." in name:
            nn.init.xavier_normal_(parameter, generator=generator)
            if name.endswith(T_FIXUP_SCALED):
                parameter.mul_(factor)
    embedding = factors["decoder."] if config.decoder else factors["encoder."]
    if config.vocab_size:
        nn.init.normal_(model.embed_tokens.weight, std=config.hidden_size**-0.5 * embedding, generator=generator)
