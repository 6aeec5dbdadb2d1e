"""Switch Transformers (arXiv:2101.03961): T5 with a mixture of experts in every n-th layer, one expert a token.

An expert takes so many tokens of a document and lets the rest pass (`expert_capacity`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from lmworks.models.config import ModelConfig
from lmworks.models.families.encoder_decoder import TiedHead, both
from lmworks.models.families.entries import ActivationField, Constant, Draft, Implied, Only, get, letters, put, tiled
from lmworks.models.families.hf_config import Fields
from lmworks.models.families.t5 import SIZES, T5, t5_rules
from lmworks.models.hub.rules import Rule, Stack, rename
from lmworks.models.slots import MoEConfig

EXPERTS = {
    "num_experts": 8, "expert_capacity": 64, "router_aux_loss_coef": 0.001, "router_z_loss_coef": 0.001,
}  # fmt: skip
"""Keys of theirs that are fields of ours, with their defaults."""


@dataclass(frozen=True)
class SparseLayers:
    """How many layers of a stack have experts: every n-th, from the second on."""

    def read(self, fields: Fields, draft: Draft) -> None:
        """See `entries.Entry`."""
        values = {key: fields.take(key, default) for key, default in EXPERTS.items()}
        for stack in ("encoder", "decoder"):
            sparse = _sparse(get(draft, f"{stack}.num_hidden_layers"), fields.take(f"num_sparse_{stack}_layers", 3))
            if not any(sparse):
                continue
            net = get(draft, f"{stack}.mlp")
            mixture = {
                "kind": "moe", "num_experts_per_tok": 1, "moe_intermediate_size": net["intermediate_size"],
                "hidden_act": net["hidden_act"], "gated": False, "norm_topk_prob": False, **values,
            }  # fmt: skip
            put(draft, f"{stack}.pattern", tiled(["S" if s else "D" for s in sparse]) or "S")
            put(draft, f"{stack}.layers", {"S": {"mlp": mixture}})

    def write(self, draft: Draft, hf: dict[str, Any]) -> None:
        """See `entries.Entry`."""
        for stack in ("encoder", "decoder"):
            sparse = [letter == "S" for letter in letters(draft, stack)]
            # The number that a file names is not always the number of layers that it means.
            guesses = [sum(sparse), *range(len(sparse) + 2)]
            hf[f"num_sparse_{stack}_layers"] = next(n for n in guesses if _sparse(len(sparse), n) == sparse)
            if any(sparse):
                hf.update({key: get(draft, f"{stack}.layers.S.mlp.{key}") for key in EXPERTS})


def _sparse(layers: int, count: int) -> list[bool]:
    step = layers // count if count > 0 else layers
    return [step == 1 or (step > 0 and i % step == 1) for i in range(layers)]


def _rules(config: ModelConfig) -> tuple[Rule, ...]:
    rules = list(t5_rules(config, net="mlp"))
    nets = [layer.mlp for stack in config.stacks for layer, _ in stack.kinds()]
    count = next((net.num_experts for net in nets if isinstance(net, MoEConfig)), 0)
    for stack, last in (("encoder", 1), ("decoder", 2)):
        ours, net = f"{stack}.layers.{{i}}.mlp", f"{stack}.block.{{i}}.layer.{last}.mlp"
        rules.append(rename(f"{ours}.router.weight", f"{net}.router.classifier.weight"))
        for name, other in (("up_proj", "wi"), ("down_proj", "wo")):
            experts = tuple(f"{net}.experts.expert_{e}.{other}.weight" for e in range(count))
            rules.append(Rule((f"{ours}.experts.{name}",), experts, (Stack(),)))
    return tuple(rules)


UNUSED = (
    "router_dtype", "router_jitter_noise", "router_ignore_padding_tokens", "add_router_probs", "router_type",
    "encoder_sparse_step", "decoder_sparse_step", "feed_forward_proj", "batch_prioritized_routing",
    "add_cross_attention", "num_selected_experts",
)  # fmt: skip
"""Keys that change nothing here."""
SWITCH_TRANSFORMERS = replace(
    T5,
    name="switch_transformers",
    architectures={
        f"SwitchTransformers{end}": {"kind": "causal_lm"} for end in ("ForConditionalGeneration", "Model")
    },
    entries=(
        *SIZES,
        *(Constant(path, value=False) for path in both("mlp.gated").split()),
        *(ActivationField("dense_act_fn", path, "relu") for path in both("mlp.hidden_act").split()),
        SparseLayers(),
        TiedHead(),
        Only("router_bias", (False,), "routers have no bias"),
        Implied(UNUSED),
    ),
    weight_rules=_rules,
    tied_unless_stored=False,
)  # fmt: skip
