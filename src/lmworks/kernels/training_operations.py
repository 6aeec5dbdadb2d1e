"""The native operations of training as torch operations, so that `torch.compile` and tracing see what they are.

`lmworks::causal_attention`, `rms_norm`, `silu_gated`, `rotate`, their gradients and `cross_entropy_`, in bfloat16 on
CPU (`native/training`). Their users hold the gradients together in `torch.autograd.Function`s. Knows no model.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lmworks.kernels.native.training import call

_OPERATIONS = torch.library.Library("lmworks", "FRAGMENT")


def _rows(x: Tensor) -> Tensor:
    """[N, H, D] whose tokens may lie apart, but not what is inside of one."""
    return x if x.stride(2) == 1 and x.stride(1) == x.shape[2] else x.contiguous()


_OPERATIONS.define(
    "causal_attention(Tensor query, Tensor key, Tensor value, Tensor cu_seqlens, float scale) -> (Tensor, Tensor)"
)


@torch.library.impl(_OPERATIONS, "causal_attention", "CPU")
def _causal_attention(query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    query, key, value = _rows(query), _rows(key), _rows(value)
    tokens, heads, dim = query.shape
    out = query.new_empty(query.shape)
    log_sums = query.new_empty(heads, tokens, dtype=torch.float32)
    call(
        "lm_causal_attention", query, query.stride(0), key, key.stride(0), value, value.stride(0), bounds,
        len(bounds) - 1, heads, key.shape[1], dim, scale, out, log_sums,
    )  # fmt: skip
    return out, log_sums


@torch.library.register_fake("lmworks::causal_attention")  # type: ignore[untyped-decorator]
def _fake_causal_attention(
    query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    out = query.new_empty(query.shape)
    return out, query.new_empty(query.shape[1], query.shape[0], dtype=torch.float32)


_OPERATIONS.define(
    "causal_attention_backward(Tensor grad, Tensor query, Tensor key, Tensor value, Tensor out, Tensor log_sums, "
    "Tensor cu_seqlens, float scale) -> (Tensor, Tensor, Tensor)"
)


@torch.library.impl(_OPERATIONS, "causal_attention_backward", "CPU")
def _causal_attention_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, log_sums: Tensor, bounds: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    grad, query, key, value = _rows(grad), _rows(query), _rows(key), _rows(value)
    d_query, d_key, d_value = (t.new_empty(t.shape) for t in (query, key, value))
    call(
        "lm_causal_attention_backward", grad, grad.stride(0), query, query.stride(0), key, key.stride(0), value,
        value.stride(0), out, log_sums, bounds, len(bounds) - 1, query.shape[1], key.shape[1], query.shape[2], scale,
        d_query, d_key, d_value,
    )  # fmt: skip
    return d_query, d_key, d_value


@torch.library.register_fake("lmworks::causal_attention_backward")  # type: ignore[untyped-decorator]
def _fake_causal_attention_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, log_sums: Tensor, bounds: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    return query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape)


_OPERATIONS.define("rms_norm(Tensor x, Tensor weight, float eps) -> (Tensor, Tensor)")


@torch.library.impl(_OPERATIONS, "rms_norm", "CPU")
def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    x, width = x.contiguous(), x.shape[-1]
    rows = x.numel() // width
    out, inverse = torch.empty_like(x), x.new_empty(rows, dtype=torch.float32)
    call("lm_rms_norm", x, weight.contiguous(), rows, width, eps, out, inverse)
    return out, inverse


@torch.library.register_fake("lmworks::rms_norm")  # type: ignore[untyped-decorator]
def _fake_rms_norm(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.numel() // x.shape[-1], dtype=torch.float32)


_OPERATIONS.define("rms_norm_backward(Tensor grad, Tensor x, Tensor weight, Tensor inverse) -> (Tensor, Tensor)")


@torch.library.impl(_OPERATIONS, "rms_norm_backward", "CPU")
def _rms_norm_backward(grad: Tensor, x: Tensor, weight: Tensor, inverse: Tensor) -> tuple[Tensor, Tensor]:
    grad, x, width = grad.contiguous(), x.contiguous(), x.shape[-1]
    d_x, d_weight = torch.empty_like(x), x.new_empty(width, dtype=torch.float32)
    call("lm_rms_norm_backward", grad, x, weight.contiguous(), inverse, len(inverse), width, d_x, d_weight)
    return d_x, d_weight.to(weight.dtype)


@torch.library.register_fake("lmworks::rms_norm_backward")  # type: ignore[untyped-decorator]
def _fake_rms_norm_backward(grad: Tensor, x: Tensor, weight: Tensor, inverse: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), weight.new_empty(weight.shape)


_OPERATIONS.define("silu_gated(Tensor gate, Tensor up) -> Tensor")


@torch.library.impl(_OPERATIONS, "silu_gated", "CPU")
def _silu_gated(gate: Tensor, up: Tensor) -> Tensor:
    gate, up = gate.contiguous(), up.contiguous()
    out = torch.empty_like(gate)
    call("lm_silu_gated", gate, up, gate.numel(), out)
    return out


@torch.library.register_fake("lmworks::silu_gated")  # type: ignore[untyped-decorator]
def _fake_silu_gated(gate: Tensor, up: Tensor) -> Tensor:
    return gate.new_empty(gate.shape)


_OPERATIONS.define("silu_gated_backward(Tensor grad, Tensor gate, Tensor up) -> (Tensor, Tensor)")


@torch.library.impl(_OPERATIONS, "silu_gated_backward", "CPU")
def _silu_gated_backward(grad: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    grad, gate, up = grad.contiguous(), gate.contiguous(), up.contiguous()
    d_gate, d_up = torch.empty_like(gate), torch.empty_like(up)
    call("lm_silu_gated_backward", grad, gate, up, gate.numel(), d_gate, d_up)
    return d_gate, d_up


@torch.library.register_fake("lmworks::silu_gated_backward")  # type: ignore[untyped-decorator]
def _fake_silu_gated_backward(grad: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    return gate.new_empty(gate.shape), up.new_empty(up.shape)


_OPERATIONS.define("rotate(Tensor x, Tensor cos, Tensor sin, float direction) -> Tensor")


@torch.library.impl(_OPERATIONS, "rotate", "CPU")
def _rotate(x: Tensor, cos: Tensor, sin: Tensor, direction: float) -> Tensor:
    x, cos, sin = _rows(x), cos.contiguous(), sin.contiguous()
    out = x.new_empty(x.shape)
    call("lm_rotate", x, x.stride(0), cos, sin, *x.shape, cos.shape[-1], direction, out)
    return out


@torch.library.register_fake("lmworks::rotate")  # type: ignore[untyped-decorator]
def _fake_rotate(x: Tensor, cos: Tensor, sin: Tensor, direction: float) -> Tensor:
    return x.new_empty(x.shape)


_OPERATIONS.define(
    "cross_entropy_(Tensor(a!) logits, Tensor targets, Tensor scales, float z_loss, float label_smoothing, "
    "bool gradient) -> Tensor"
)


@torch.library.impl(_OPERATIONS, "cross_entropy_", "CPU")
def _cross_entropy(
    logits: Tensor, targets: Tensor, scales: Tensor, z_loss: float, label_smoothing: float, gradient: bool
) -> Tensor:
    losses = torch.empty_like(scales)
    call("lm_cross_entropy", logits, targets, scales, *logits.shape, z_loss, label_smoothing, gradient, losses)
    return losses


@torch.library.register_fake("lmworks::cross_entropy_")  # type: ignore[untyped-decorator]
def _fake_cross_entropy(
    logits: Tensor, targets: Tensor, scales: Tensor, z_loss: float, label_smoothing: float, gradient: bool
) -> Tensor:
    return scales.new_empty(scales.shape)
