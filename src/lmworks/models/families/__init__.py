"""Model families as data: presets, `config.json` both ways, weight rules. Adding one is adding a row.

No family has modules of its own; `models.build` builds every one of them from its configuration.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lmworks.core.config import nearest
from lmworks.core.errors import ConfigError
from lmworks.core.registry import resolve

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lmworks.models.families.family import Family

FAMILIES = {
    "albert": "lmworks.models.families.albert:ALBERT",
    "arcee": "lmworks.models.families.llama:ARCEE",
    "bart": "lmworks.models.families.bart:BART",
    "bert": "lmworks.models.families.bert:BERT",
    "bloom": "lmworks.models.families.bloom:BLOOM",
    "camembert": "lmworks.models.families.roberta:CAMEMBERT",
    "clip_text_model": "lmworks.models.families.clip:CLIP_TEXT",
    "clip_vision_model": "lmworks.models.families.clip:CLIP_VISION",
    "cohere": "lmworks.models.families.cohere:COHERE",
    "cohere2": "lmworks.models.families.cohere:COHERE2",
    "deepseek_v2": "lmworks.models.families.deepseek:DEEPSEEK_V2",
    "deepseek_v3": "lmworks.models.families.deepseek:DEEPSEEK_V3",
    "dinov2": "lmworks.models.families.vit:DINOV2",
    "distilbert": "lmworks.models.families.distilbert:DISTILBERT",
    "electra": "lmworks.models.families.bert:ELECTRA",
    "ernie4_5": "lmworks.models.families.ernie:ERNIE4_5",
    "exaone4": "lmworks.models.families.exaone:EXAONE4",
    "falcon": "lmworks.models.families.falcon:FALCON",
    "gemma": "lmworks.models.families.gemma:GEMMA",
    "gemma2": "lmworks.models.families.gemma:GEMMA2",
    "gemma3_text": "lmworks.models.families.gemma:GEMMA3_TEXT",
    "glm": "lmworks.models.families.glm:GLM",
    "glm4": "lmworks.models.families.glm:GLM4",
    "glm4_moe": "lmworks.models.families.glm_moe:GLM4_MOE",
    "gpt2": "lmworks.models.families.gpt2:GPT2",
    "gpt_bigcode": "lmworks.models.families.gpt_bigcode:GPT_BIGCODE",
    "gpt_neox": "lmworks.models.families.neox:GPT_NEOX",
    "gpt_oss": "lmworks.models.families.gpt_oss:GPT_OSS",
    "gptj": "lmworks.models.families.gptj:GPTJ",
    "granite": "lmworks.models.families.granite:GRANITE",
    "granitemoe": "lmworks.models.families.granite_moe:GRANITE_MOE",
    "helium": "lmworks.models.families.llama:HELIUM",
    "llama": "lmworks.models.families.llama:LLAMA",
    "m2m_100": "lmworks.models.families.bart:M2M_100",
    "marian": "lmworks.models.families.bart:MARIAN",
    "mbart": "lmworks.models.families.bart:MBART",
    "ministral": "lmworks.models.families.mistral:MINISTRAL",
    "mistral": "lmworks.models.families.mistral:MISTRAL",
    "mixtral": "lmworks.models.families.mixtral:MIXTRAL",
    "modernbert": "lmworks.models.families.modernbert:MODERNBERT",
    "mpnet": "lmworks.models.families.roberta:MPNET",
    "mpt": "lmworks.models.families.mpt:MPT",
    "mt5": "lmworks.models.families.t5:MT5",
    "nemotron": "lmworks.models.families.nemotron:NEMOTRON",
    "nomic_bert": "lmworks.models.families.nomic_bert:NOMIC_BERT",
    "olmo": "lmworks.models.families.olmo:OLMO",
    "olmo2": "lmworks.models.families.olmo:OLMO2",
    "olmo3": "lmworks.models.families.olmo:OLMO3",
    "olmoe": "lmworks.models.families.qwen_moe:OLMOE",
    "opt": "lmworks.models.families.opt:OPT",
    "pegasus": "lmworks.models.families.bart:PEGASUS",
    "phi": "lmworks.models.families.phi:PHI",
    "phi3": "lmworks.models.families.phi3:PHI3",
    "qwen2": "lmworks.models.families.qwen:QWEN2",
    "qwen2_moe": "lmworks.models.families.qwen_moe:QWEN2_MOE",
    "qwen3": "lmworks.models.families.qwen:QWEN3",
    "qwen3_moe": "lmworks.models.families.qwen_moe:QWEN3_MOE",
    "roberta": "lmworks.models.families.roberta:ROBERTA",
    "seed_oss": "lmworks.models.families.llama:SEED_OSS",
    "smollm3": "lmworks.models.families.smollm3:SMOLLM3",
    "stablelm": "lmworks.models.families.stablelm:STABLELM",
    "starcoder2": "lmworks.models.families.starcoder2:STARCODER2",
    "switch_transformers": "lmworks.models.families.switch:SWITCH_TRANSFORMERS",
    "t5": "lmworks.models.families.t5:T5",
    "umt5": "lmworks.models.families.t5:UMT5",
    "vaultgemma": "lmworks.models.families.gemma:VAULTGEMMA",
    "vit": "lmworks.models.families.vit:VIT",
    "xlm-roberta": "lmworks.models.families.roberta:XLM_ROBERTA",
    "xlnet": "lmworks.models.families.xlnet:XLNET",
}
"""Family name, which is Hugging Face's `model_type`, to its row."""
LANGUAGE_PARTS = {"gemma3": "lmworks.models.families.gemma:GEMMA3"}
"""Models of text and images of which the language model is read; their configuration names its family."""


def family_named(name: str) -> Family:
    """The row called `name`.

    Raises:
        ConfigError: there is none.
    """
    if name not in FAMILIES:
        raise ConfigError(f"unknown model family {name!r}{nearest(name, list(FAMILIES))}", "Choose a known family")
    row: Family = resolve(FAMILIES[name])
    assert row.name == name, f"FAMILIES[{name!r}] is the family {row.name!r}"
    return row


def family_of(hf: Mapping[str, Any]) -> Family:
    """The row that reads a `config.json`, by its `model_type` or else its `architectures`.

    Raises:
        ConfigError: no row reads it.
    """
    model_type, architectures = hf.get("model_type"), hf.get("architectures") or []
    if isinstance(model_type, str) and model_type in LANGUAGE_PARTS:
        part: Family = resolve(LANGUAGE_PARTS[model_type])
        return part
    if model_type is not None:
        if not isinstance(model_type, str) or model_type not in FAMILIES:
            raise ConfigError(
                f"config.json: model_type {model_type!r} is not supported{nearest(str(model_type), list(FAMILIES))}",
                "Use a model of a supported family",
            )
        return family_named(model_type)
    known = {architecture: name for name in FAMILIES for architecture in family_named(name).architectures}
    listed = [str(name) for name in architectures] if isinstance(architectures, list) else [str(architectures)]
    for architecture in listed:
        if architecture in known:
            return family_named(known[architecture])
    hint = nearest(listed[0], list(known)) if listed else ""
    raise ConfigError(
        f"config.json has no model_type and no known architecture ({architectures}){hint}", 'Add "model_type" to it'
    )
