"""SmolLM3 (Hugging Face, 2025): Llama whose every fourth layer has no positions (arXiv:2501.18795)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lmworks.core.errors import ConfigError
from lmworks.models.families.entries import Draft, Only, Rotary, get, letters, tiled
from lmworks.models.families.hf_config import Fields
from lmworks.models.families.llama_like import ATTENTION_BIAS, MLP_BIAS, TIED, decoder


@dataclass(frozen=True)
class LayersWithoutRotation:
    """`no_rope_layers` has 0 for a layer without positions, `N` in the pattern, and 1 (`R`) for others."""

    def read(self, fields: Fields, draft: Draft) -> None:
        """See `Entry`."""
        count, interval = get(draft, "decoder.num_hidden_layers"), fields.count("no_rope_layer_interval", 4)
        turned = fields.take("no_rope_layers", None) or [int((i + 1) % interval > 0) for i in range(count)]
        fields.take("sliding_window", None)  # which nothing uses
        if set(fields.take("layer_types", ())) - {"full_attention"}:
            raise ConfigError("config.json: SmolLM3 is read without windows", "Use a model whose layers all see all")
        if len(turned) < count:
            raise ConfigError(
                f"config.json: no_rope_layers has {len(turned)} entries for {count} layers", "Correct one of them"
            )
        names = ["R" if turns else "N" for turns in turned[:count]]
        if "N" in names:
            draft["decoder"]["pattern"] = tiled(names) or "N"
            draft["decoder"]["layers"] = {"N": {"positions": {"kind": "none"}}}

    def write(self, draft: Draft, hf: dict[str, Any]) -> None:
        """See `Entry`."""
        hf["no_rope_layers"] = [int(letter != "N") for letter in letters(draft, "decoder")]


SMOLLM3 = decoder(
    "smollm3", "SmolLM3", TIED, ATTENTION_BIAS, MLP_BIAS, LayersWithoutRotation(),
    Only("use_sliding_window", (False,), "SmolLM3 is read without windows", False), rotary=Rotary(2e6),
)  # fmt: skip
