"""Every family under every form: `check_support` refuses by name, and what it lets through is exact."""

import pytest
import torch

from lmworks.models.build import build_model
from lmworks.models.families.presets import preset_named, preset_names
from lmworks.parallel.processes import run_processes
from lmworks.proofs.parallel_families import FAMILY_FORMS, family_configs, family_gaps, refusal

SAMPLE = ("llama", "gpt2", "gemma2", "bloom", "deepseek_v3", "gpt_oss", "modernbert", "t5", "xlnet", "mpt")
BOUND = 2e-6


@pytest.fixture(scope="module")
def configs():
    return family_configs()


def refused_and_let_through(configs, families):
    refused, through = {}, []
    for family in families:
        for form in FAMILY_FORMS:
            error = refusal(configs[family], FAMILY_FORMS[form])
            if error is None:
                through.append((family, form))
            else:
                refused[family, form] = error
    return refused, through


def test_families_are_refused_by_name_or_equal_one_process(configs):
    refused, through = refused_and_let_through(configs, SAMPLE)
    assert all(error.remedy for error in refused.values())
    assert "sinks" in str(refused["gpt_oss", "DP x TP+SP 2x2"])
    assert "encoder and decoder cannot be cut" in str(refused["t5", "DP x pipeline 2x2"])
    assert "'xl' attention" in str(refused["xlnet", "DP x TP+SP 2x2"])
    assert "no layer with experts" in str(refused["llama", "DP x EP 2x2"])
    chosen = [pair for index, pair in enumerate(through) if index % 7 == 0]
    assert {form for _, form in chosen} >= {"DDP", "DP x pipeline 2x2"}
    assert_exact(configs, chosen)


def assert_exact(configs, chosen):
    gaps = run_processes(family_gaps, 4, 0, configs, chosen, timeout=900.0)[0]
    for pair, gap in zip(chosen, gaps, strict=True):
        assert max(gap.gradient, gap.loss) <= BOUND, (pair, gap)


@pytest.mark.slow
def test_all_families_are_refused_by_name_or_equal_one_process(configs):
    refused, through = refused_and_let_through(configs, configs)
    assert all(error.remedy for error in refused.values())
    assert len(through) > 4 * len(configs)
    assert_exact(configs, through)


def published(names):
    for name in names:
        config = preset_named(name)
        for form in FAMILY_FORMS.values():
            error = refusal(config, form)
            assert error is None or (error.problem and error.remedy), name


def test_published_models_get_an_answer():
    published(list(preset_names())[::40])


@pytest.mark.slow
def test_all_published_models_get_an_answer():
    published(preset_names())


def test_the_models_are_of_the_families_they_say(configs):
    assert len(configs) > 40
    with torch.device("meta"):
        assert build_model(configs["t5"]).encoder is not None
