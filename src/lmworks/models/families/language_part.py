"""A model of text and images, read as its language model alone. Saved again it is of the language model's family."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from lmworks.core.errors import ConfigError
from lmworks.models.families.entries import Draft, put
from lmworks.models.families.family import Family
from lmworks.models.families.hf_config import Fields

_ABOVE = ("bos_token_id", "eos_token_id", "tie_word_embeddings")
"""Keys that such a file may have beside `text_config`, where they have priority."""
_IMAGES = (
    "vision_config", "mm_tokens_per_image", "boi_token_index", "eoi_token_index", "image_token_index",
    "initializer_range",
)  # fmt: skip


@dataclass(frozen=True)
class TextConfig:
    """`text_config`, whose keys are those of another family."""

    of: Family
    defaults: dict[str, Any] = field(hash=False)
    """Published files leave out what is the reference's default."""

    def read(self, fields: Fields, draft: Draft) -> None:
        """See `Entry`."""
        above = {key: fields.take(key, None) for key in _ABOVE}
        for key in _IMAGES:
            fields.take(key, None)
        text = Fields({
            **self.defaults, **fields.take("text_config"), **{k: v for k, v in above.items() if v is not None},
        })  # fmt: skip
        put(draft, "family", self.of.name)
        for entry in self.of.entries:
            entry.read(text, draft)
        text.done()

    def write(self, draft: Draft, hf: dict[str, Any]) -> None:
        """See `Entry`."""
        raise ConfigError(f"the images' part of this {self.of.name} model is not kept", f"Save it as {self.of.name}")


def language_part(name: str, architecture: str, of: Family, **defaults: Any) -> Family:
    """The row that reads files with `model_type` `name` as a model of the family `of`."""
    return replace(
        of,
        name=name,
        architectures={architecture: {"kind": "causal_lm"}},
        entries=(TextConfig(of, defaults),),
        ignored_tensors=(r"(vision_tower|multi_modal_projector)\..*",),
        # The first files are of modules in another order.
        legacy_names={r"^(language_model\.model|model\.language_model)\.": of.prefix, r"^language_model\.lm_": "lm_"},
    )
