"""One Transformer block, its norms placed as the configuration says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor, nn

from lmworks.nn.attention_context import AttentionContext
from lmworks.nn.moe import MixtureOfExperts
from lmworks.nn.positions import NO_SIGNAL, PositionSignal
from lmworks.nn.residual import Residual


class Block(nn.Module):
    """Self-attention, cross-attention where there is an encoder, feed-forward net; each joins the residual stream.

    A branch's norm is `input_layernorm`, `cross_attention_layernorm` or `post_attention_layernorm`; `placement`
    says where it acts. The norms on outputs exist in the sandwich alone.

    Args:
        placement: see `models.config.Placement`.
        position_code: index of the stack's position code that this block applies, None for none.
        self_attn: mixes tokens.
        mlp: [N, E] -> [N, E].
        cross_attn: to the encoder's output.
        norms: by name, those that the placement needs.
        residual: makes the junction of one branch.
    """

    def __init__(
        self, placement: str, position_code: int | None, self_attn: nn.Module, mlp: nn.Module,
        cross_attn: nn.Module | None, norms: dict[str, nn.Module], residual: Callable[[], Residual],
    ) -> None:  # fmt: skip
        super().__init__()
        self.placement, self.position_code = placement, position_code
        self.input_layernorm = norms["input_layernorm"]
        self.self_attn = self_attn
        self.self_attn_output_layernorm = norms.get("self_attn_output_layernorm")
        self.self_attn_residual = residual()
        self.cross_attention_layernorm = norms.get("cross_attention_layernorm")
        self.cross_attn = cross_attn
        self.cross_attn_residual = residual() if cross_attn is not None else None
        self.post_attention_layernorm = norms.get("post_attention_layernorm")
        self.mlp = mlp
        self.mlp_output_layernorm = norms.get("mlp_output_layernorm")
        self.mlp_residual = residual()

    def forward(
        self, x: Tensor, signals: Sequence[PositionSignal], context: AttentionContext, memory: Tensor | None = None
    ) -> Tensor:
        """[N, E] -> [N, E].

        Args:
            x: [N, E].
            signals: of the stack's position codes.
            context: how attention reaches keys and values.
            memory: [M, E] output of the encoder that is new in this step.
        """
        signal = NO_SIGNAL if self.position_code is None else signals[self.position_code]
        if self.placement.startswith("parallel"):
            normed = self.input_layernorm(x)
            beside = normed if self.post_attention_layernorm is None else self.post_attention_layernorm(x)
            attended = self.self_attn_residual(x, self.self_attn(normed, signal, context))
            return self.mlp_residual(attended, self.mlp(beside))
        x = self._branch(
            x, lambda h: self.self_attn(h, signal, context), self.input_layernorm, self.self_attn_output_layernorm,
            self.self_attn_residual,
        )  # fmt: skip
        if self.cross_attn is not None:
            cross = self.cross_attn
            x = self._branch(
                x, lambda h: cross(h, NO_SIGNAL, context, memory), self.cross_attention_layernorm, None,
                self.cross_attn_residual,
            )  # fmt: skip
        feed = partial(self.mlp, cu_seqlens=context.cu_seqlens) if isinstance(self.mlp, MixtureOfExperts) else self.mlp
        return self._branch(x, feed, self.post_attention_layernorm, self.mlp_output_layernorm, self.mlp_residual)

    def _branch(
        self, x: Tensor, branch: Callable[[Tensor], Tensor], norm: nn.Module | None, output_norm: nn.Module | None,
        residual: nn.Module | None,
    ) -> Tensor:  # fmt: skip
        assert norm is not None, "only a parallel block may share its norm"
        assert residual is not None, "every branch has a junction"
        output = branch(norm(x) if self.placement in ("pre", "sandwich") else x)
        if self.placement == "reordered":
            output = norm(output)
        elif output_norm is not None:
            output = output_norm(output)
        joined = residual(x, output)
        return norm(joined) if self.placement == "post" else joined
