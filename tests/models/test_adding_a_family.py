"""The guide's family, registered for a test as the guide says and proven; what its author is told about mistakes."""

import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
import yaml
from transformers import AutoConfig

from lmworks.core.config import load_yaml
from lmworks.core.errors import ConfigError
from lmworks.models import families
from lmworks.models.build import build_model
from lmworks.models.families import family_named
from lmworks.models.families.entries import Constant, Field, Only
from lmworks.models.families.llama_like import A, M, SlidingLayers, decoder, decoder_rules, generates_only, layer_norm
from lmworks.proofs import reference
from lmworks.proofs.cases.case import Case
from lmworks.proofs.families import CHECKS, family_rows, prove

GUIDE = Path(__file__).parents[2] / "docs/guides/adding-a-family.md"
MODULE, LINE, CASES = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
[PRESETS] = re.findall(r"```yaml\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)


def cases():
    names = {"Case": Case}
    exec(CASES, names)
    return names["CASES"]


@pytest.fixture
def persimmon(monkeypatch):
    """The family of the guide, while a test runs."""
    [(name, reference)] = eval(f"{{{LINE}}}").items()
    module = ModuleType(reference.partition(":")[0])
    exec(compile(MODULE, "adding-a-family.md", "exec"), module.__dict__)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(families.FAMILIES, name, reference)
    return family_named(name)


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
def test_the_family_of_the_guide_is_proven(persimmon, case):
    rows = family_rows(case)
    assert [row.check for row in rows] == list(CHECKS)
    assert [row.case for row in rows if not row.ok] == []


def test_the_preset_of_the_guide_is_read(persimmon):
    [(family, presets)] = yaml.safe_load(PRESETS).items()
    config = persimmon.config_from_hf(presets["persimmon-8b"])
    assert (family, config.positions.rope_theta) == ("persimmon", 25_000)
    assert persimmon.config_from_hf(persimmon.to_hf(config)) == config


STATED = {
    "model_type", "architectures", "bos_token_id", "eos_token_id", "max_position_embeddings", "n_positions",
    "num_key_value_heads", "initializer_range", "init_std", "router_aux_loss_coef", "encoder_layerdrop",
    "decoder_layerdrop",
}  # fmt: skip
"""Keys that every published file has, or that only training heeds."""
STATED_BY = {
    "deepseek_v2": {"first_k_dense_replace", "n_shared_experts", "q_lora_rank", "routed_scaling_factor"},
    "deepseek_v3": {"first_k_dense_replace", "n_shared_experts", "q_lora_rank", "routed_scaling_factor"},
    "exaone4": {"sliding_window"},
    "glm4_moe": {"head_dim", "first_k_dense_replace", "n_shared_experts"},
    "gpt_oss": {"rope_parameters"},
}
POSSIBLE = {"deepseek_v2": {"num_experts_per_tok": 6}, "glm4_moe": {"head_dim": 128}}
"""Where transformers' own defaults are no model."""


@pytest.mark.filterwarnings("ignore:config.json. .* have no effect here")
@pytest.mark.parametrize("name", [*families.FAMILIES, "persimmon"])
def test_an_absent_key_means_what_it_means_to_the_reference(persimmon, name):
    """The harness cannot see this, for transformers writes every key."""
    defaults = {"bos_token_id": 1, "eos_token_id": 2, **POSSIBLE.get(name, {})}
    told = json.loads(AutoConfig.for_model(name, **defaults).to_json_string(use_diff=False))
    row = family_named(name)
    whole, otherwise = row.config_from_hf(told), []
    for key in told.keys() - STATED - STATED_BY.get(name, set()):
        try:
            read = row.config_from_hf({k: v for k, v in told.items() if k != key})
        except ConfigError as error:
            if "lacks" in error.problem:
                continue
            raise
        otherwise += [key] if read != whole else []
    assert otherwise == []


def test_presets_are_of_families():
    listed = load_yaml(Path(families.__file__).with_name("presets.yaml"))
    assert sorted(set(listed) - set(families.FAMILIES)) == []


# What the author of a family is told.

SIZES = {"vocab_size": 97, "hidden_size": 24, "intermediate_size": 50, "num_hidden_layers": 2, "num_attention_heads": 3}
JAIS2 = decoder(
    "jais2", "Jais2", Field("hidden_act", f"{M}hidden_act", "relu2"), Constant(f"{M}gated", False),
    Field("attention_bias", f"{A}qkv_bias {A}o_bias", True), Field("mlp_bias", f"{M}bias", True), norm=layer_norm(),
    heads=generates_only("Jais2"),
)  # fmt: skip


def with_entry(*entries):
    return replace(JAIS2, entries=(*JAIS2.entries, *entries))


WRONG_ENTRIES = {
    "a misspelled field": (Constant(f"{A}qkvbias", True), r"decoder\.attention\.\S*qkvbias' \(did you mean 'qkv_bias'"),
    "a misspelled slot": (
        Constant("decoder.atention.qkv_bias", True),
        r"'decoder\.atention' \(did you mean 'attention'",
    ),
    "a value of no slot": (Constant("decoder.placement", "prenorm"), r"decoder\.placement = 'prenorm'"),
    "below a leaf": (Constant("vocab_size.x", 1), r"'vocab_size\.x' leads below 'vocab_size', which holds 97"),
    "not to be loaded": (
        Field("mlp_bias", f"{M}bias", True, load={"yes": True}.__getitem__),
        r"mlp_bias = True cannot",
    ),
    "not to be saved": (
        Field("mlp_bias", f"{M}bias", True, save={"yes": 1}.__getitem__),
        r"KeyError\(True\) .* mlp_bias",
    ),
    "saved otherwise": (
        Field("mlp_bias", f"{M}bias", True, save=lambda b: not b),
        r"decoder\.mlp\.bias True \(as False\)",
    ),
    "saved unreadably": (Field("x", "decoder.norm.eps", 1e-5, float, "1e-{}?".format), r"back: config\.json: x = '1e-"),
    "refused": (
        Only("clip", (False,), "no", written=True),
        r"what it writes cannot be read back: .*clip = True",
    ),
}


@pytest.mark.parametrize(("entry", "told"), WRONG_ENTRIES.values(), ids=WRONG_ENTRIES)
def test_a_wrong_entry_is_named(entry, told):
    family = with_entry(entry)
    with pytest.raises((ConfigError, AssertionError), match=told):
        family.to_hf(family.config_from_hf({**SIZES, "mlp_bias": True}))


def test_two_entries_cannot_both_name_the_layers():
    family = with_entry(Constant("decoder.pattern", "D"), SlidingLayers())
    types = {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}
    with pytest.raises(AssertionError, match="one entry alone can give the layers their letters"):
        family.config_from_hf({**SIZES, **types})


WRONG_RULES = {
    "missing": (
        decoder_rules(mlp="up_proj"),
        r"names decoder\.layers\.\{i\}\.mlp\.down_proj\.bias, \S+down_proj\.weight$",
    ),
    "misspelled": (decoder_rules(mlp="upproj down_proj"), r"misspelled as decoder\.layers\.\{i\}\.mlp\.upproj\.bias"),
    "twice": (
        decoder_rules(mlp="up_proj up_proj=fc1 down_proj"),
        r"two weight rules name decoder\.layers\.\{i\}\.mlp\.up",
    ),
}


@pytest.mark.parametrize(("rules", "told"), WRONG_RULES.values(), ids=WRONG_RULES)
def test_a_wrong_rule_is_named(rules, told):
    config = JAIS2.config_from_hf(SIZES)
    names = build_model(config).state_dict()
    with pytest.raises(AssertionError, match=told):
        replace(JAIS2, weight_rules=rules).rules(config, names)


def test_a_family_entered_under_another_name_is_noticed(persimmon, monkeypatch):
    monkeypatch.setitem(families.FAMILIES, "persimon", families.FAMILIES["persimmon"])
    with pytest.raises(AssertionError, match=r"FAMILIES\['persimon'\] is the family 'persimmon'"):
        family_named("persimon")


def test_a_family_without_a_case_is_not_proven(persimmon):
    with pytest.raises(ConfigError, match="no case of 'persimmon' is registered"):
        prove(only="persimmon")


def test_masks_that_are_called_biases_are_kept():
    sizes = {"vocab_size": 97, "n_embd": 12, "n_layer": 1, "n_head": 2, "n_positions": 8}
    model = reference.build(Case("openai-gpt", "masks", sizes, "OpenAIGPTModel"), seed=0)
    assert torch.equal(model.h[0].attn.bias[0, 0], torch.ones(8, 8).tril())


def test_a_masked_language_model_may_have_no_dense_layer():
    family = family_named("bert")
    head = {"kind": "masked_lm", "dense_act": "none", "bias": False}
    config = family.config_from_hf({**SIZES, "architectures": ["BertForMaskedLM"]}).to_dict() | {"head": head}
    names = build_model(type(family.config_from_hf(SIZES)).parse(config)).state_dict()
    assert [name for name in names if "head" in name] == ["lm_head.weight"]
