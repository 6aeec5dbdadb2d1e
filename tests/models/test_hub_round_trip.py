"""A model of every family that is saved and loaded is the same model: configuration, tensors, ends of generation."""

import pytest
import torch
from safetensors import safe_open
from transformers import GenerationConfig

from lmworks.models.build import build_model
from lmworks.models.families import family_named
from lmworks.models.hub import load_pretrained, read_config, safetensors_io, save_pretrained
from lmworks.models.hub.tensor_source import own_state
from lmworks.proofs import reference
from lmworks.proofs.cases import all_cases

CASES = {case.family: case for case in reversed(all_cases())}


def config_of(case, **further):
    """The case's configuration, with transformers' defaults."""
    hf = reference.transformers().AutoConfig.for_model(case.family, **case.config).to_dict()
    return family_named(case.family).config_from_hf({**hf, "architectures": [case.architecture], **further})


def model_of(case):
    """The case's model with random weights of ours, everywhere."""
    model = build_model(config_of(case), seed=0)
    generator = torch.Generator().manual_seed(1)
    for tensor in own_state(model).values():
        if tensor.is_floating_point():
            tensor.copy_(torch.randn(tensor.shape, generator=generator))
    return model


def stored(folder):
    """Every tensor's name, type and bytes."""
    found = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as reader:
            for name in reader.keys():  # noqa: SIM118 - not a mapping
                tensor = reader.get_tensor(name)
                found[name] = tensor.dtype, tuple(tensor.shape), tensor.view(torch.uint8).numpy().tobytes()
    return found


@pytest.mark.filterwarnings("ignore")  # of what a case's configuration says that has no effect
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CASES)
def test_load_of_save_is_the_model(name, dtype, tmp_path, monkeypatch):
    model = model_of(CASES[name]).to(dtype)
    monkeypatch.setattr(safetensors_io, "MAX_SHARD_BYTES", 20_000)
    save_pretrained(model, tmp_path / "one")
    assert len(list((tmp_path / "one").glob("model-*-of-*.safetensors"))) > 1
    again = load_pretrained(tmp_path / "one")
    assert again.config == model.config == read_config(tmp_path / "one")
    assert again.dtype == dtype
    ours, theirs = own_state(model), own_state(again)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[n], theirs[n]) for n in ours)
    monkeypatch.undo()
    save_pretrained(again, tmp_path / "two")
    assert stored(tmp_path / "two") == stored(tmp_path / "one")
    for file in ("config.json", "generation_config.json"):
        assert (tmp_path / "two" / file).read_bytes() == (tmp_path / "one" / file).read_bytes()


@pytest.mark.parametrize(
    ("family", "ids"),
    [("llama", {"bos_token_id": 1, "eos_token_id": [2, 3]}),
     ("t5", {"eos_token_id": 1, "pad_token_id": 0, "decoder_start_token_id": 0}),
     ("bart", {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1, "decoder_start_token_id": 2,
               "forced_bos_token_id": 0})],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore")
def test_transformers_reads_how_a_generation_begins_and_ends(family, ids, tmp_path):
    save_pretrained(build_model(config_of(CASES[family], **ids), seed=0), tmp_path)
    theirs = GenerationConfig.from_pretrained(tmp_path)
    assert {key: getattr(theirs, key) for key in ids} == ids
