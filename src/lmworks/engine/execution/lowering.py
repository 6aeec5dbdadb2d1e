"""From the model's modules to a native program: the same modules, read once, run without Python in between.

Nothing is computed here that the modules do not say. What a program cannot express is named in `NotLowered`, and such
a model runs module by module. Every program is compared with the modules before it is used
(`model_runner.py`). Knows no request.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lmworks.engine.execution.packed_linear import PackedLinear
from lmworks.kernels.gated_activation import ACTIVATIONS as MLP_ACTIVATIONS
from lmworks.kernels.masks import And, Causal, Mask, Window
from lmworks.kernels.program import (
    ACTIVATIONS,
    CACHE_TYPES,
    NORMS,
    InstructionStruct,
    LinearStruct,
    Op,
    Program,
    RotaryTable,
    RuleStruct,
)
from lmworks.models.block import Block
from lmworks.models.head_slots import CausalLMHead
from lmworks.models.transformer import Transformer
from lmworks.nn.attention import Attention
from lmworks.nn.mlp import MLP
from lmworks.nn.norms import RMSNorm, UnitOffsetLayerNorm
from lmworks.nn.positions import (
    AlibiBias,
    LearnedPositionEmbedding,
    RotaryEmbedding,
    SinusoidalPositionEmbedding,
)
from lmworks.nn.residual import Residual

LONGEST_TABLE = 32_768
"""Angles of so many positions are kept; beyond, they are computed every step."""


class NotLowered(Exception):  # not an error: the model runs another way
    """A part of the model that programs do not express."""


class LoweredDecoder:
    """A decoder ready to run.

    Args:
        model: whose linear maps are packed.
        caches: keys and values of each layer.
        max_model_len: positions that occur.

    Raises:
        NotLowered: the model has a part that programs do not express.
    """

    def __init__(self, model: Transformer, caches: Sequence[Tensor], max_model_len: int) -> None:
        lowering = _Lowering(model)
        lowering.lower()
        names = {module: name for name, module in model.named_modules()}
        self.sites = tuple(names[linear] for linear in lowering.sites)
        """Names of the linear maps, in the order in which sets of updates give theirs."""
        self.program = Program(lowering.instructions, lowering.widths, caches, lowering.keep)
        self._codes = [code for code in lowering.codes if isinstance(code, RotaryEmbedding)]
        fixed = not any(code.length_dependent for code in self._codes) and max_model_len <= LONGEST_TABLE
        self.angles_by_step = bool(self._codes) and not fixed
        """Whether `set_angles` must be called before every step."""
        if self._codes and fixed:
            self._set(torch.arange(max_model_len), torch.empty(0), by_row=False)

    def set_angles(self, positions: Tensor, lengths: Tensor) -> None:
        """Compute the angles of a step.

        Args:
            positions: [N].
            lengths: [N] of each token's document, as far as it is known.
        """
        self._set(positions, lengths, by_row=True)

    def _set(self, positions: Tensor, lengths: Tensor, *, by_row: bool) -> None:
        tables = []
        for code in self._codes:
            rotation = code(positions, lambda: lengths, torch.float32).rotation
            cos, sin = rotation.cos[:, 0].contiguous(), rotation.sin[:, 0].contiguous()
            tables.append(RotaryTable(cos, sin, rotation.interleaved, by_row))
        self.program.set_rotaries(tables)


class _Lowering:
    """Collects instructions; buffers are numbered as they are first needed."""

    def __init__(self, model: Transformer) -> None:
        assert model.decoder is not None, "only models with a decoder are served"
        self.model, self.decoder, self.config = model, model.decoder, model.config
        self.instructions: list[InstructionStruct] = []
        self.widths: list[int] = []
        self.keep: list[Tensor] = []
        self.codes: list[nn.Module] = list(self.decoder.position_codes)
        self.sites: dict[PackedLinear, int] = {}
        self._names: dict[tuple[str, int], int] = {}

    def lower(self) -> None:
        """Write the whole program: embeddings, blocks, head."""
        model, decoder = self.model, self.decoder
        if model.encoder is not None:
            raise NotLowered("an encoder")
        size = self.config.hidden_size
        x = self._embed()
        for block in (block for block in decoder.layers for _ in range(decoder.repeat)):
            self._block(block, x)
        last = self._buffer("last", size)
        self._emit(Op.SELECT, x, last, width=size)
        if decoder.norm is not None:
            self._norm(decoder.norm, last, last)
        self._head(last)

    def _embed(self) -> int:
        model, decoder, size = self.model, self.decoder, self.config.hidden_size
        table = model.embed_tokens.weight
        if table.dtype not in (torch.float32, torch.bfloat16):
            raise NotLowered(f"embeddings in {table.dtype}")
        width = table.shape[1]
        e = self._buffer("x", width)
        # Rounded to the activations' type first, as the module does.
        factor = float(torch.tensor(self.config.embed.multiplier, dtype=table.dtype))
        self._emit(
            Op.EMBED, e, e, width=width, number=factor, table=self._address(table.detach()),
            table_type=CACHE_TYPES[table.dtype],
        )  # fmt: skip
        if decoder.embed_positions is not None:
            self._add_table(e, self._position_table(decoder.embed_positions))
        if decoder.embed_types is not None:
            self._add_table(e, decoder.embed_types.weight.detach()[:1].float(), once=True)
        if decoder.embed_norm is not None:
            self._norm(decoder.embed_norm, e, e)
        if decoder.embed_projection is None:
            return e
        x = self._buffer("x projected", size)
        self._linear(decoder.embed_projection, e, x)
        return x

    def _position_table(self, positions: nn.Module) -> Tensor:
        if isinstance(positions, LearnedPositionEmbedding):
            return positions.weight.detach()[positions.offset :].float()
        if isinstance(positions, SinusoidalPositionEmbedding):
            return positions(torch.arange(self.config.max_position_embeddings)).to(self.model.dtype).float()
        raise NotLowered(f"positions by {type(positions).__name__}")

    def _add_table(self, x: int, table: Tensor, *, once: bool = False) -> None:
        address = self._address(table.contiguous())
        self._emit(Op.ADD_TABLE, x, x, width=table.shape[1], count=int(once), table=address)

    def _block(self, block: nn.Module, x: int) -> None:
        assert isinstance(block, Block), "a stack's layers are blocks"
        if block.cross_attn is not None:
            raise NotLowered("cross-attention")
        size = self.config.hidden_size
        normed = self._buffer("normed", size)
        if block.placement.startswith("parallel"):
            self._norm(block.input_layernorm, x, normed)
            beside = normed
            if block.post_attention_layernorm is not None:
                beside = self._buffer("beside", size)
                self._norm(block.post_attention_layernorm, x, beside)
            self._attention(block, normed, x, block.self_attn_residual)
            self._mlp(block.mlp, beside, x, block.mlp_residual)
            return
        for branch, norm, output_norm, residual in (
            ("attention", block.input_layernorm, block.self_attn_output_layernorm, block.self_attn_residual),
            ("mlp", block.post_attention_layernorm, block.mlp_output_layernorm, block.mlp_residual),
        ):
            assert norm is not None, "only a parallel block may share its norm"
            before = block.placement in ("pre", "sandwich")
            after = norm if block.placement == "reordered" else output_norm
            if before:
                self._norm(norm, x, normed)
            source = normed if before else x
            # Joined at once where nothing stands between the branch and the stream.
            target = x if after is None else self._buffer("branch", size)
            joined = residual if after is None else None
            if branch == "attention":
                self._attention(block, source, target, joined)
            else:
                self._mlp(block.mlp, source, target, joined)
            if after is not None:
                self._norm(after, target, target)
                self._emit(Op.ADD, target, x, width=size, **self._junction(residual))
            if block.placement == "post":
                self._norm(norm, x, x)

    def _attention(self, block: Block, source: int, target: int, residual: nn.Module | None) -> None:
        attention = block.self_attn
        if type(attention) is not Attention or attention.cross:
            raise NotLowered(f"{type(attention).__name__} layers")
        d = attention.head_dim
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        widths = [_packed(p).weight.out_features for p in projections]
        heads, kv_heads = widths[0] // d, widths[1] // d
        code = None if block.position_code is None else self.codes[block.position_code]
        turning = [c for c in self.codes if isinstance(c, RotaryEmbedding)]
        rule = self._rule(attention, code)
        qkv = self._buffer("qkv", sum(widths))
        self._linears(projections, (0, widths[0], widths[0] + widths[1]), source, qkv)
        shape = {"layer": attention.layer, "heads": heads, "kv_heads": kv_heads, "head_dim": d, "rule": rule}
        norms: dict[str, int | float] = {}
        if attention.q_norm is not None and attention.k_norm is not None:
            kind, eps, weight, bias = self._norm_values(attention.q_norm)
            key = self._norm_values(attention.k_norm)
            if bias is not None or key[3] is not None or weight is None or key[2] is None:
                raise NotLowered("norms of queries and keys without weights or with biases")
            norms = {
                "norm": kind, "eps": eps, "query_norm": self._address(weight), "key_norm": self._address(key[2]),
                "norm_all": int(not attention.norm_heads),
            }  # fmt: skip
        rotary = turning.index(code) if isinstance(code, RotaryEmbedding) else -1
        self._emit(Op.ROTATE_STORE, qkv, qkv, rotary=rotary, **shape, **norms)
        attended = self._buffer("attended", heads * d)
        self._emit(Op.ATTEND, qkv, attended, **shape)
        self._join(attention.o_proj, attended, target, residual)

    def _rule(self, attention: Attention, code: nn.Module | None) -> RuleStruct:
        slopes = None
        if isinstance(code, AlibiBias):
            slopes = self._address(code.slopes.float())
        elif code is not None and not isinstance(code, RotaryEmbedding):
            raise NotLowered(f"scores with {type(code).__name__}")
        sinks = None if attention.sinks is None else self._address(attention.sinks.detach().float())
        return RuleStruct(attention.scale, attention.softcap or 0.0, _window(attention.mask), sinks, slopes)

    def _mlp(self, mlp: nn.Module, source: int, target: int, residual: nn.Module | None) -> None:
        if type(mlp) is not MLP:
            raise NotLowered(f"{type(mlp).__name__} layers")
        activation = ACTIVATIONS.index(next(n for n, f in MLP_ACTIVATIONS.items() if f is mlp.activation))
        inner = self._buffer("inner", _packed(mlp.up_proj).weight.out_features)
        if mlp.gate_proj is not None:
            self._linears((mlp.gate_proj, mlp.up_proj), (0, 0), source, inner, op=Op.GATED, activation=activation)
        else:
            self._linears((mlp.up_proj,), (0,), source, inner, activation=activation)
        self._join(mlp.down_proj, inner, target, residual)

    def _head(self, hidden: int) -> None:
        head = self.config.head
        assert isinstance(head, CausalLMHead), "only language models are served"
        if head.logit_multiplier != 1.0:
            self._emit(Op.SCALE, hidden, hidden, width=self.config.hidden_size, number=head.logit_multiplier)
        logits = self._buffer("logits", _packed(self.model.lm_head).weight.out_features)
        self._linear(self.model.lm_head, hidden, logits)
        cap = self.model.logit_softcap
        if cap is not None:
            self._emit(Op.SOFTCAP, logits, logits, width=self.widths[logits], number=cap)

    def _norm(self, norm: nn.Module, source: int, target: int) -> None:
        kind, eps, *values = self._norm_values(norm)
        weight, bias = (None if value is None else self._address(value) for value in values)
        width = self.widths[source]
        self._emit(Op.NORM, source, target, width=width, norm=kind, eps=eps, weight=weight, bias=bias)

    def _norm_values(self, norm: nn.Module) -> tuple[int, float, Tensor | None, Tensor | None]:
        """Kind, eps, weight and bias, float32."""
        if isinstance(norm, RMSNorm):
            weight = None if norm.weight is None else norm.weight.detach().float() + (1.0 if norm.unit_offset else 0.0)
            return NORMS.index("rms"), norm.eps, weight, None
        if isinstance(norm, nn.LayerNorm):
            weight = None if norm.weight is None else norm.weight.detach().float()
            if isinstance(norm, UnitOffsetLayerNorm) and weight is not None:
                weight = weight + 1.0
            bias = None if norm.bias is None else norm.bias.detach().float()
            if weight is None and bias is not None:
                weight = torch.ones_like(bias)
            return NORMS.index("layer"), norm.eps, weight, bias
        raise NotLowered(f"{type(norm).__name__}")

    def _join(self, linear: nn.Module, source: int, target: int, residual: nn.Module | None) -> None:
        if residual is None:
            self._linear(linear, source, target)
        else:
            self._linears((linear,), (0,), source, target, op=Op.LINEAR_ADD, **self._junction(residual))

    def _junction(self, residual: nn.Module | None) -> dict[str, Any]:
        assert isinstance(residual, Residual), "every branch has a junction"
        if residual.gate is None:
            return {"number": residual.multiplier}
        gate = residual.gate.detach().float().expand(self.config.hidden_size).contiguous()
        return {"number": residual.multiplier, "vector": self._address(gate)}

    def _linear(self, linear: nn.Module, source: int, target: int) -> None:
        self._linears((linear,), (0,), source, target)

    def _linears(
        self, linears: Sequence[nn.Module], offsets: Sequence[int], source: int, target: int, op: Op = Op.LINEAR,
        **values: Any,
    ) -> None:  # fmt: skip
        """Matrices that read the same input; where their formats differ, one after the other."""
        modules = [_packed(linear) for linear in linears]
        weights = [module.weight for module in modules]
        if len({(w.kind, w.group_size) for w in weights}) > 1:
            if op is not Op.LINEAR:
                raise NotLowered("gates in another format than what they multiply")
            for linear, offset in zip(linears, offsets, strict=True):
                self._linears((linear,), (offset,), source, target, **values)
            return
        structs = (LinearStruct * 3)()
        for i, weight in enumerate(weights):
            bias = None if weight.bias is None else self._address(weight.bias)
            structs[i] = LinearStruct(
                weight.kind, weight.out_features, weight.in_features, weight.group_size, self._address(weight.packed),
                bias,
            )  # fmt: skip
        columns = (*offsets, 0, 0, 0)[:3]
        sites = (*(self.sites.setdefault(module, len(self.sites)) for module in modules), 0, 0, 0)[:3]
        self._emit(
            op, source, target, num_linears=len(weights), linears=structs, offsets=columns, sites=sites, **values
        )  # fmt: skip

    def _emit(self, op: Op, source: int, target: int, **values: Any) -> None:
        fields = {"number": 1.0, "rotary": -1} | values
        self.instructions.append(InstructionStruct(op=op, input=source, output=target, **fields))

    def _buffer(self, name: str, width: int) -> int:
        key = name, width
        if key not in self._names:
            self._names[key] = len(self.widths)
            self.widths.append(width)
        return self._names[key]

    def _address(self, tensor: Tensor) -> int:
        """Of a tensor that the program keeps."""
        assert tensor.is_contiguous(), "programs read whole arrays"
        self.keep.append(tensor)
        return tensor.data_ptr()


def _packed(module: nn.Module) -> PackedLinear:
    if not isinstance(module, PackedLinear):
        raise NotLowered(f"a linear map that is {type(module).__name__}, not packed")
    return module


def _window(mask: Mask) -> int:
    """Last positions that are seen, 0 for all."""
    match mask:
        case Causal():
            return 0
        case And(left=Causal(), right=Window()) if mask.reach is not None:
            return mask.reach
    raise NotLowered(f"the mask {mask}")
