"""OPT (arXiv:2205.01068): learned positions that begin at row 2, ReLU, norms before the branches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lmworks.core.errors import ConfigError
from lmworks.models.families.entries import Constant, Draft, Field, Implied, Only, Written
from lmworks.models.families.family import Family
from lmworks.models.families.gpt_like import A, M, heads, modules, sizes
from lmworks.models.families.hf_config import Fields

_LAYER = "model.decoder.layers.{i}."
RULES = (
    *modules(
        "embed_tokens=embed_tokens decoder.embed_positions=embed_positions decoder.norm=final_layer_norm",
        "model.decoder.", ours="",
    ),
    *modules("lm_head=lm_head head.score=score", ours=""),
    *modules(
        "self_attn.q_proj=self_attn.q_proj self_attn.k_proj=self_attn.k_proj self_attn.v_proj=self_attn.v_proj "
        "self_attn.o_proj=self_attn.out_proj mlp.up_proj=fc1 mlp.down_proj=fc2 input_layernorm=self_attn_layer_norm "
        "post_attention_layernorm=final_layer_norm", _LAYER,
    ),
)  # fmt: skip


@dataclass(frozen=True)
class WordEmbedding:
    """The embedding's own width, which has to be the model's."""

    def read(self, fields: Fields, draft: Draft) -> None:
        """See `entries.Entry`."""
        width = fields.take("word_embed_proj_dim", draft["hidden_size"])
        if width != draft["hidden_size"]:
            raise ConfigError(
                f"config.json: word_embed_proj_dim = {width} is not the hidden size {draft['hidden_size']}; narrower "
                "embeddings of OPT are not supported", "Use another size than 350m",
            )  # fmt: skip

    def write(self, draft: Draft, hf: dict[str, Any]) -> None:
        """See `entries.Entry`."""
        hf["word_embed_proj_dim"] = draft["hidden_size"]


OPT = Family(
    name="opt",
    architectures=heads("OPT"),
    entries=(
        *sizes(inner="ffn_dim", eps=None, act=("activation_function", "relu"), initializer="init_std"),
        Field("enable_bias", f"{A}qkv_bias {A}o_bias {M}bias", True),
        Field("layer_norm_elementwise_affine", "decoder.norm.affine", True),
        Constant("positions", {"kind": "learned", "offset": 2}),
        Field(
            "do_layer_norm_before", "decoder.placement", True, {True: "pre", False: "post"}.__getitem__, "pre".__eq__
        ),
        Constant("decoder.final_norm", lambda draft: draft["decoder"]["placement"] == "pre"),
        Only("_remove_final_layer_norm", (False,), "the last norm stands where the others do"),
        WordEmbedding(),
        Written({"dropout": 0.0, "attention_dropout": 0.0, "layerdrop": 0.0}),
        Implied(("activation_dropout", "prefix")),
    ),
    weight_rules=RULES,
    prefix="model.",
)  # fmt: skip
