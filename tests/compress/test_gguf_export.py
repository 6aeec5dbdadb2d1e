"""Models written as GGUF come back, and other readers see the same model in them."""

import importlib.util
import resource

import gguf
import numpy as np
import pytest
import torch

from lmworks.compress.gguf_export import save_gguf
from lmworks.compress.round_to_nearest import quantizable, quantize_linears
from lmworks.core.errors import ConfigError, DiskFullError
from lmworks.core.gguf import GGUFFile
from lmworks.models.build import build_model
from lmworks.models.families import family_named
from lmworks.models.hub import load_pretrained
from lmworks.models.hub.gguf import ARCHITECTURES
from lmworks.nn.attention_context import PackedContext

VOCAB = 70
TOKENS = [*"abcdefghijklmnopqrstuvwxyz", "Ġ", "<s>", "</s>", "<|im_end|>", *(f"[PAD{i}]" for i in range(30, VOCAB))]
TOKENIZER = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "gpt-2",
    "tokenizer.ggml.tokens": TOKENS,
    "tokenizer.ggml.token_type": [1] * 27 + [3] * 3 + [5] * (VOCAB - 30),
    "tokenizer.ggml.merges": ["a b", "c d"],
    "tokenizer.ggml.bos_token_id": 27,
    "tokenizer.ggml.eos_token_id": 28,
    "tokenizer.ggml.add_bos_token": False,
}
LLAMA = {
    "vocab_size": VOCAB, "hidden_size": 96, "intermediate_size": 160, "num_hidden_layers": 3, "num_attention_heads": 3,
    "num_key_value_heads": 1, "head_dim": 32, "max_position_embeddings": 128, "rms_norm_eps": 1e-5,
    "rope_theta": 5e4, "tie_word_embeddings": False, "bos_token_id": 27, "eos_token_id": [28, 29],
    "initializer_range": 0.2,
}  # fmt: skip
GEMMA = {key: value for key, value in LLAMA.items() if key != "tie_word_embeddings"} | {"initializer_range": 0.1}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 8192}  # fmt: skip
CASES = {
    "llama": ("llama", LLAMA),
    "llama tied, awkward sizes": ("llama", {**LLAMA, "tie_word_embeddings": True, "head_dim": 20, "hidden_size": 50}),
    "llama biases": ("llama", {**LLAMA, "attention_bias": True, "mlp_bias": True}),
    "llama 3": ("llama", {**LLAMA, "rope_scaling": LLAMA3}),
    "llama linear": ("llama", {**LLAMA, "rope_scaling": {"rope_type": "linear", "factor": 4.0}}),
    "llama yarn": (
        "llama",
        {**LLAMA, "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}},
    ),
    "mistral": ("mistral", {**LLAMA, "sliding_window": None}),
    "qwen2": ("qwen2", LLAMA),
    "qwen3": ("qwen3", {**LLAMA, "tie_word_embeddings": True}),
    "granite": (
        "granite",
        {**LLAMA, "embedding_multiplier": 6.0, "residual_multiplier": 0.5, "attention_multiplier": 0.125,
         "logits_scaling": 2.0},
    ),
    "smollm3": ("smollm3", {**LLAMA, "num_hidden_layers": 5, "tie_word_embeddings": True}),
    "olmo2": ("olmo2", LLAMA),
    "phi3": ("phi3", LLAMA),
    "gemma": ("gemma", GEMMA),
    "gemma2": ("gemma2", {**GEMMA, "query_pre_attn_scalar": 32, "sliding_window": 5}),
    "gemma3": ("gemma3_text", {**GEMMA, "query_pre_attn_scalar": 32, "num_hidden_layers": 7, "sliding_window": 5}),
    "gpt2": (
        "gpt2",
        {"vocab_size": VOCAB, "n_embd": 96, "n_layer": 3, "n_head": 3, "n_positions": 128, "n_inner": 200,
         "initializer_range": 0.2, "bos_token_id": 27, "eos_token_id": [28, 29]},
    ),
}  # fmt: skip
UNREAD = {
    "qwen3": {"head_dim": 128},
    "gemma2": {"head_dim": 256, "query_pre_attn_scalar": 256, "attn_logit_softcapping": 50.0},
    "gemma3": {"head_dim": 256, "query_pre_attn_scalar": 256},
    "gpt2": {"n_inner": 384, "n_positions": 1024},
}
"""What transformers' reader of GGUF takes for granted (it also overlooks scaled positions and biases of Llama)."""
IDS = torch.tensor([27, 3, 60, 9, 12, 1, 44, 9, 27, 5, 31, 2])


def build(case, **changes):
    family, hf = CASES[case]
    model = build_model(family_named(family).config_from_hf({**hf, **changes}), seed=0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:  # biases and norms that are not all alike
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))) / 5)
    return model


def logits(model, ids=IDS):
    with torch.no_grad():
        return model.logits(model(ids, torch.arange(len(ids)), PackedContext(torch.tensor([0, len(ids)]).int())))


def relative(error, reference):
    return (error - reference).norm() / reference.norm()


@pytest.mark.parametrize("case", CASES)
def test_integers_that_are_kept_compute_what_decoded_ones_do(tmp_path, case):
    """Fused, transposed and interleaved matrices of each architecture included."""
    save_gguf(build(case), TOKENIZER, tmp_path / "m.gguf", dtype="q8_0")
    kept, plain = (load_pretrained(tmp_path / "m.gguf", keep_quantized=keep) for keep in (True, False))
    linears = [m for m in kept.modules() if isinstance(m, torch.nn.Linear)]
    left = [m for m in linears if m.in_features % 32 == 0]
    assert not left  # rows of other lengths are stored as float16
    torch.testing.assert_close(logits(kept), logits(plain), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("dtype", "tolerance"), [("f32", 0), ("f16", 5e-3), ("bf16", 2e-2), ("q8_0", 8e-2)])
def test_round_trip(tmp_path, case, dtype, tolerance):
    model = build(case)
    save_gguf(model, TOKENIZER, tmp_path / "m.gguf", dtype=dtype)
    loaded = load_pretrained(tmp_path / "m.gguf")
    assert loaded.config.eos_token_ids == (28, 29)
    if case.startswith("gemma") and dtype == "f32":  # its norms are stored plus one, which rounds them
        torch.testing.assert_close(logits(loaded), logits(model), atol=1e-4, rtol=1e-4)
    elif dtype == "f32":
        assert all(torch.equal(loaded.state_dict()[n], t) for n, t in model.state_dict().items())
        assert torch.equal(logits(loaded), logits(model))
    else:
        assert 0 < relative(logits(loaded), logits(model)) < tolerance


def test_every_architecture_is_proven():
    covered = {family for family, _ in CASES.values()}
    assert {family for row in ARCHITECTURES.values() for family in row.families} == covered


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", ["llama", "mistral", "qwen2", *UNREAD])
def test_transformers_computes_the_same(tmp_path, case):
    from transformers import AutoModelForCausalLM

    model = build(case, **UNREAD.get(case, {}))
    save_gguf(model, TOKENIZER, tmp_path / "m.gguf", dtype="f32")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf", dtype=torch.float32).eval()
    with torch.no_grad():
        torch.testing.assert_close(logits(model), theirs(IDS[None]).logits[0], atol=1e-4, rtol=1e-4)


def test_metadata_is_what_llama_cpp_writes(tmp_path):
    save_gguf(build("llama 3"), TOKENIZER, tmp_path / "Tiny-1M.gguf", dtype="q8_0")
    reader = gguf.GGUFReader(tmp_path / "Tiny-1M.gguf")
    read = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    expected = {
        gguf.Keys.General.ARCHITECTURE: "llama",
        gguf.Keys.General.TYPE: "model",
        gguf.Keys.General.NAME: "Tiny-1M",
        gguf.Keys.General.FILE_TYPE: gguf.LlamaFileType.MOSTLY_Q8_0,
        gguf.Keys.General.QUANTIZATION_VERSION: gguf.GGML_QUANT_VERSION,
        gguf.Keys.LLM.BLOCK_COUNT: 3,
        gguf.Keys.LLM.CONTEXT_LENGTH: 128,
        gguf.Keys.LLM.EMBEDDING_LENGTH: 96,
        gguf.Keys.LLM.FEED_FORWARD_LENGTH: 160,
        gguf.Keys.LLM.VOCAB_SIZE: VOCAB,
        gguf.Keys.Attention.HEAD_COUNT: 3,
        gguf.Keys.Attention.HEAD_COUNT_KV: 1,
        gguf.Keys.Attention.KEY_LENGTH: 32,
        gguf.Keys.Attention.VALUE_LENGTH: 32,
        gguf.Keys.Attention.LAYERNORM_RMS_EPS: pytest.approx(1e-5),
        gguf.Keys.Rope.DIMENSION_COUNT: 32,
        gguf.Keys.Rope.FREQ_BASE: 5e4,
        gguf.Keys.Tokenizer.MODEL: "gpt2",
        gguf.Keys.Tokenizer.PRE: "gpt-2",
        gguf.Keys.Tokenizer.MERGES: ["a b", "c d"],
        gguf.Keys.Tokenizer.BOS_ID: 27,
        gguf.Keys.Tokenizer.EOS_ID: 28,
        gguf.Keys.Tokenizer.EOT_ID: 29,
        gguf.Keys.Tokenizer.ADD_BOS: False,
    }
    expected = {key.format(arch="llama"): value for key, value in expected.items()}
    tokens, types = read.pop(gguf.Keys.Tokenizer.LIST), read.pop(gguf.Keys.Tokenizer.TOKEN_TYPE)
    assert read == expected
    assert (tokens, types) == (TOKENS, TOKENIZER["tokenizer.ggml.token_type"])
    kinds = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 3)
    known = {name for _, name in names.mapping.values()}
    assert {name.removesuffix(".weight") for name in kinds} <= known
    assert kinds["rope_freqs.weight"] == kinds["blk.0.attn_norm.weight"] == "F32"
    assert kinds["token_embd.weight"] == kinds["blk.2.ffn_down.weight"] == "Q8_0"


def test_rows_that_hold_no_whole_blocks_become_float16(tmp_path):
    save_gguf(build("llama tied, awkward sizes"), TOKENIZER, tmp_path / "m.gguf", dtype="q8_0")
    file = GGUFFile(tmp_path / "m.gguf")
    assert file.format("blk.0.attn_q.weight") == "F16"  # rows of 50
    assert file.format("blk.0.ffn_down.weight") == "Q8_0"  # rows of 160


def test_query_rows_are_interleaved_as_llama_cpp_does(tmp_path):
    for case, permuted in (("llama", True), ("qwen2", False)):
        model = build(case)
        save_gguf(model, TOKENIZER, tmp_path / "m.gguf", dtype="f32")
        ours = model.state_dict()["decoder.layers.1.self_attn.q_proj.weight"].numpy()
        heads = ours.reshape(3, 2, 16, 96).swapaxes(1, 2).reshape(96, 96) if permuted else ours
        np.testing.assert_array_equal(GGUFFile(tmp_path / "m.gguf").tensor("blk.1.attn_q.weight"), heads)


@pytest.mark.parametrize(
    ("case", "changes", "message"),
    [
        ("mistral", {"sliding_window": 64}, "cannot express this model's decoder"),
        ("llama", {"hidden_act": "gelu"}, "cannot express this model's decoder"),
        ("llama 3", {"rope_scaling": {**LLAMA3, "low_freq_factor": 2.0}}, "not Llama 3's scaling"),
        ("llama", {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "cannot express this model's positions"),
        ("gemma2", {"query_pre_attn_scalar": 64}, "cannot express this model's decoder"),
        ("gemma2", {"tie_word_embeddings": False}, r"has no place for lm_head\.weight"),
        ("qwen3", {"attention_bias": True}, r"has no place for decoder\.layers\.0\.self_attn\.q_proj\.bias"),
        ("smollm3", {"no_rope_layer_interval": 2}, "cannot express this model's decoder"),
        ("llama", {"vocab_size": 29, "eos_token_id": 28}, "there are 70 tokens for 29 embedding rows"),
    ],
)
def test_what_gguf_cannot_say_is_refused(tmp_path, case, changes, message):
    model = build(case, **changes)
    with pytest.raises(ConfigError, match=message):
        save_gguf(model, TOKENIZER, tmp_path / "m.gguf")
    assert list(tmp_path.iterdir()) == []


def test_families_and_types_that_are_not_written(tmp_path):
    model = build("llama")
    with pytest.raises(ConfigError, match=r"dtype 'q4_k' is not written to GGUF.*q8_0"):
        save_gguf(model, TOKENIZER, tmp_path / "m.gguf", dtype="q4_k")
    with pytest.raises(ConfigError, match=r"'m.bin' does not end in .gguf"):
        save_gguf(model, TOKENIZER, tmp_path / "m.bin")
    model.config = model.config.model_copy(update={"family": "bert"})
    with pytest.raises(ConfigError, match="family 'bert' is not written as GGUF; llama, mistral, "):
        save_gguf(model, TOKENIZER, tmp_path / "m.gguf")


def test_weights_beyond_float16(tmp_path):
    model = build("llama")
    with torch.no_grad():
        model.decoder.layers[1].mlp.up_proj.weight[3, 4] = 1e6
    with pytest.raises(ConfigError, match=r"blk.1.ffn_up.weight holds 1e\+06, which float16 cannot.*bf16"):
        save_gguf(model, TOKENIZER, tmp_path / "m.gguf", dtype="f16")
    assert list(tmp_path.iterdir()) == []
    save_gguf(model, TOKENIZER, tmp_path / "m.gguf", dtype="bf16")


def test_quantized_models_are_refused(tmp_path):
    model = build("llama")
    quantize_linears(model, quantizable(model), torch.float32)
    with pytest.raises(ConfigError, match=r"int8.*dtype q8_0 quantizes"):
        save_gguf(model, TOKENIZER, tmp_path / "m.gguf")


def llama_cpp(file, prompt, count):
    """Greedy tokens with their log-probabilities, and the log-probabilities of the whole vocabulary at first."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(file)
    params.n_ctx, params.n_parallel, params.warmup = 128, 1, False
    # In float32 throughout, to be comparable: its caches are float16 by default.
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    asked = {"prompt": prompt, "max_tokens": count, "temperature": 0.0, "logprobs": VOCAB, "n_probs": VOCAB,
             "ignore_eos": True, "cache_prompt": False}  # fmt: skip
    steps = xllamacpp.Server(params).handle_completions(asked)["choices"][0]["logprobs"]["content"]
    first = torch.full((VOCAB,), -torch.inf)
    for token in steps[0]["top_logprobs"]:
        first[token["id"]] = token["logprob"]
    return [t["id"] for t in steps], [t["logprob"] for t in steps], first


def greedy(model, prompt, count):
    """What `llama_cpp` returns, from our logits."""
    ids, chosen, first = list(prompt), [], None
    for _ in range(count):
        scores = logits(model, torch.tensor(ids))[-1].log_softmax(-1)
        first = scores.clone() if first is None else first
        scores[[28, 29]] = -torch.inf  # llama.cpp, too, is told to go on
        chosen.append(float(scores.max()))
        ids.append(int(scores.argmax()))
    return ids[len(prompt) :], chosen, first


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
@pytest.mark.skipif(importlib.util.find_spec("xllamacpp") is None, reason="llama.cpp (package xllamacpp) is missing")
def test_llama_cpp_computes_the_same(tmp_path, case):
    model = build(case)
    save_gguf(model, TOKENIZER, tmp_path / "f32.gguf", dtype="f32")
    theirs, their_scores, _ = llama_cpp(tmp_path / "f32.gguf", IDS.tolist(), 24)
    ours, our_scores, _ = greedy(model, IDS.tolist(), 24)
    assert theirs == ours
    table = case.startswith("gemma") or case == "gpt2"  # GELU is looked up, by float16 arguments
    np.testing.assert_allclose(their_scores, our_scores, atol=3e-3 if table else 1e-4)
    for dtype, tolerance in (("f16", 0.02), ("bf16", 0.05), ("q8_0", 0.15)):  # it rounds activations likewise
        save_gguf(model, TOKENIZER, tmp_path / "m.gguf", dtype=dtype)
        _, _, theirs_first = llama_cpp(tmp_path / "m.gguf", IDS.tolist(), 1)
        _, _, ours_first = greedy(load_pretrained(tmp_path / "m.gguf"), IDS.tolist(), 1)
        seen = theirs_first.isfinite()
        assert seen.sum() > VOCAB / 2
        assert relative(theirs_first[seen], ours_first[seen]) < tolerance, dtype


def test_full_disk(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(DiskFullError, match=r"m.gguf failed: File too large"):
            save_gguf(build("llama"), TOKENIZER, tmp_path / "m.gguf")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []
