"""LoRA adapters in one batch: each request has its adapter's answer, as PEFT computes it and in any company."""

from __future__ import annotations

import json
import shutil

import peft
import pytest
import torch
import transformers
from tiny_engine import VOCABULARY, byte_tokenizer, random_prompts

from lmworks.core.errors import CheckpointError, LMWorksError, ModelNotFoundError, RequestError
from lmworks.core.sampling import SamplingParams
from lmworks.engine import LLM, EngineConfig
from lmworks.engine.offline import collect, run_requests
from lmworks.engine.request import Request
from lmworks.models.hub import load_pretrained

# peft reads an attribute that the newest transformers has renamed, and says what it does about Conv1D and heads
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*is_gradient_checkpointing:FutureWarning",
    "ignore:.*(fan_in_fan_out|save_embedding_layers|tie_word_embeddings)",
)

NAMES = ["one", None, "two", "one", "two", None]
PROMPTS = random_prompts([5, 20, 33, 9, 12, 40])
LOGPROBS = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True, logprobs=2)
SIZES = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 2, "initializer_range": 0.2}
LLAMA = {
    **SIZES, "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 6,
    "num_key_value_heads": 2, "max_position_embeddings": 128,
}  # fmt: skip
FAMILIES = {
    "llama": (transformers.LlamaForCausalLM, LLAMA, "all-linear"),
    "tied": (transformers.LlamaForCausalLM, {**LLAMA, "tie_word_embeddings": True}, ["o_proj", "lm_head"]),
    "gpt2": (  # matrices transposed, query, key and value in one
        transformers.GPT2LMHeadModel,
        {**SIZES, "n_embd": 48, "n_layer": 2, "n_head": 6, "n_positions": 128},
        ["c_attn", "c_proj", "c_fc"],
    ),
    "phi3": (  # fused by rows, and the head
        transformers.Phi3ForCausalLM,
        {**LLAMA, "pad_token_id": 0},
        ["qkv_proj", "gate_up_proj", "lm_head"],
    ),
    "neox": (  # fused head by head, blocks in parallel
        transformers.GPTNeoXForCausalLM,
        {k: v for k, v in LLAMA.items() if k != "num_key_value_heads"},
        ["query_key_value", "dense_h_to_4h"],
    ),
    "t5": (
        transformers.T5ForConditionalGeneration,
        {"vocab_size": VOCABULARY, "d_model": 48, "d_ff": 96, "num_layers": 2, "num_heads": 6, "d_kv": 8,
         "decoder_start_token_id": 0, "initializer_factor": 2.0},
        ["q", "k", "v", "o", "wi", "wo"],
    ),
}  # fmt: skip


class Made:
    """A base model, two adapters and PEFT's models of both."""

    def __init__(self, folder, family):
        kind, values, targets = FAMILIES[family]
        torch.manual_seed(0)
        config = kind.config_class(**values)
        if family == "t5":
            config.is_encoder_decoder = True
        base = kind(config).eval()
        self.folder, self.models, self.encodes = folder, {None: base}, family == "t5"
        base.save_pretrained(folder / "base")
        byte_tokenizer().save(folder / "base")
        for name, lora in {
            "one": {"r": 4, "lora_alpha": 6},
            "two": {"r": 7, "lora_alpha": 9, "use_rslora": True},
        }.items():
            torch.manual_seed(len(self.models))
            settings = peft.LoraConfig(
                **lora, target_modules=targets, init_lora_weights=False,
                task_type="SEQ_2_SEQ_LM" if self.encodes else "CAUSAL_LM",
            )  # fmt: skip
            model = peft.get_peft_model(kind.from_pretrained(folder / "base"), settings)
            model.save_pretrained(folder / name)
            self.models[name] = model.eval()

    @torch.no_grad()
    def expected(self, name, prompt, answer):
        """[T, V] log-probabilities of PEFT's model where each token of the answer was chosen."""
        if self.encodes:
            decoder = torch.tensor([[0, *answer[:-1]]])
            logits = self.models[name](input_ids=torch.tensor([prompt]), decoder_input_ids=decoder).logits[0]
        else:
            logits = self.models[name](input_ids=torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1]
        return logits.float().log_softmax(-1)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    kept = {}

    def make(family):
        if family not in kept:
            kept[family] = Made(tmp_path_factory.mktemp(family), family)
        return kept[family]

    return make


def served(made, **settings):
    settings = {"dtype": "float32", **settings}
    llm = LLM(made.folder / "base", config=EngineConfig(**settings))
    for name in ("one", "two"):
        llm.load_lora_adapter(name, made.folder / name)
    return llm


def answers(llm, names=NAMES, prompts=PROMPTS, params=LOGPROBS, together=True):
    requests = [
        Request(str(i), tuple(p), params, adapter=n) for i, (p, n) in enumerate(zip(prompts, names, strict=True))
    ]
    found = {}
    for batch in [requests] if together else [[r] for r in requests]:
        found |= run_requests(llm.engine, batch)
    llm.engine.check_integrity()
    return [collect(found[r.request_id], 1)[0] for r in requests]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("way", ["program", "modules", "memory"])
def test_a_mixed_batch_gives_what_peft_gives(made, family, way):
    tiny = made(family)
    if way == "memory":  # not packed
        llm = LLM(load_pretrained(tiny.folder / "base").eval())
        for name in ("one", "two"):
            llm.load_lora_adapter(name, tiny.folder / name)
    else:
        llm = served(tiny, attention="reference" if way == "modules" else "auto")
    for name, prompt, output in zip(NAMES, PROMPTS, answers(llm), strict=True):
        expected = tiny.expected(name, prompt, output.token_ids)
        assert expected.argmax(-1).tolist() == list(output.token_ids)
        for row, got in zip(expected, output.logprobs, strict=True):
            assert got.logprob == pytest.approx(row[got.token_id].item(), abs=1e-4)


def test_an_adapter_is_the_merged_model(made, tmp_path):
    tiny = made("llama")
    merged = peft.PeftModel.from_pretrained(
        transformers.LlamaForCausalLM.from_pretrained(tiny.folder / "base"), tiny.folder / "two"
    ).merge_and_unload()
    merged.save_pretrained(tmp_path)
    byte_tokenizer().save(tmp_path)
    whole = LLM(tmp_path, config=EngineConfig(dtype="float32"))
    ours = answers(served(tiny), names=["two"] * 6)
    assert [o.token_ids for o in answers(whole, names=[None] * 6)] == [o.token_ids for o in ours]


@pytest.mark.parametrize("quantization", ["none", "int8"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_answers_do_not_depend_on_company(made, quantization, dtype):
    settings = {"dtype": dtype, "quantization": quantization, "enable_prefix_caching": False}
    params = SamplingParams(temperature=1, seed=3, max_tokens=10, ignore_eos=True, logprobs=3)

    def bits(together, **limits):
        llm = served(made("llama"), **settings, **limits)
        return [(o.token_ids, o.logprobs) for o in answers(llm, params=params, together=together)]

    alone = bits(False)
    assert alone == bits(True)
    assert alone == bits(True, max_num_batched_tokens=7, max_num_seqs=7)
    assert alone == bits(True, num_kv_blocks=9, max_model_len=100), "preempted"
    plain = LLM(made("llama").folder / "base", config=EngineConfig(**settings))
    for got, name, prompt in zip(alone, NAMES, PROMPTS, strict=True):
        if name is None:
            (output,) = plain.generate([prompt], params)
            assert (output.outputs[0].token_ids, output.outputs[0].logprobs) == got


def test_prefixes_are_shared_within_an_adapter_alone(made):
    llm = served(made("llama"))
    prompt = random_prompts([48])[0]

    def cached(name):
        before = llm.stats().prefix_cache_hits_total
        (output,) = answers(llm, [name], [prompt])
        expected = made("llama").expected(name, prompt, output.token_ids)
        assert expected.argmax(-1).tolist() == list(output.token_ids)
        return llm.stats().prefix_cache_hits_total - before

    assert [cached(name) for name in ("one", "one", "two", None, "two", None)] == [0, 32, 0, 0, 32, 32]
    llm.load_lora_adapter("one", made("llama").folder / "one")
    assert cached("one") == 0, "loaded anew, it is another"


def test_requests_keep_the_adapter_that_they_began_with(made):
    llm = served(made("llama"))
    engine, tiny, prompt = llm.engine, made("llama"), PROMPTS[1]
    engine.add_request(Request("early", tuple(prompt), LOGPROBS, adapter="one"))
    deltas = engine.step()
    llm.load_lora_adapter("one", tiny.folder / "two")
    engine.add_request(Request("late", tuple(prompt), LOGPROBS, adapter="one"))
    deltas += engine.step()
    llm.unload_lora_adapter("one")
    engine.scheduler.preempt_all()  # computed anew, still with the old one
    with pytest.raises(ModelNotFoundError, match=r"'one'.*two"):
        engine.add_request(Request("refused", tuple(prompt), LOGPROBS, adapter="one"))
    while engine.has_unfinished:
        deltas += engine.step()
    engine.check_integrity()
    for request, name in (("early", "one"), ("late", "two")):
        tokens = [t for d in deltas if d.request_id == request for t in d.token_ids]
        assert tiny.expected(name, prompt, tokens).argmax(-1).tolist() == tokens
    assert engine.stats().adapters == {"two": str(tiny.folder / "two")}


def test_limits_have_names(made):
    tiny = made("llama")
    llm = served(tiny, max_loras=2)
    with pytest.raises(RequestError, match=r"2 adapters are loaded \(one, two\), and max_loras is 2"):
        llm.load_lora_adapter("three", tiny.folder / "one")
    llm.load_lora_adapter("two", tiny.folder / "one")
    with pytest.raises(ModelNotFoundError, match="'three'"):
        llm.unload_lora_adapter("three")
    with pytest.raises(CheckpointError, match="rank 7, and max_lora_rank is 4"):
        served(tiny, max_lora_rank=4)
    with pytest.raises(ModelNotFoundError, match="'nobody'"):
        llm.generate([PROMPTS[0]], LOGPROBS, adapter="nobody")


def _config(**values):
    def change(folder):
        file = folder / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | values))

    return change


def _tensors(edit):
    from safetensors.torch import load_file, save_file

    def change(folder):
        tensors = load_file(folder / "adapter_model.safetensors")
        edit(tensors)
        save_file(tensors, folder / "adapter_model.safetensors")

    return change


FIRST = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (_config(use_dora=True), "use_dora"),
        (_config(modules_to_save=["lm_head"]), "modules_to_save"),
        (_config(bias="all"), "bias"),
        (_config(peft_type="IA3"), "LORA"),
        (_config(rank_pattern={"q_proj": 2}), "rank_pattern"),
        (lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"no"), "cannot read"),
        (lambda folder: (folder / "adapter_config.json").unlink(), "cannot read"),
        (_tensors(lambda t: t.pop(FIRST)), "unexpected .*lora_B|missing"),
        (_tensors(lambda t: t.update({FIRST: torch.zeros(4, 47)})), r"\(4, 47\).*needs \(4, 48\)"),
        (_tensors(lambda t: t.update({"base_model.model.model.embed_tokens.lora_embedding_A": torch.zeros(4, 9)})),
         "lora_embedding_A"),
        (_tensors(lambda t: t.update({FIRST.replace("layers.0", "layers.9"): t[FIRST].clone(),
                                      FIRST.replace("layers.0", "layers.9").replace("_A", "_B"): torch.zeros(48, 4)})),
         "no linear map model.layers.9"),
    ],
)  # fmt: skip
def test_folders_that_are_no_plain_lora_are_refused(made, tmp_path, change, told):
    tiny = made("llama")
    shutil.copytree(tiny.folder / "one", tmp_path / "broken")
    change(tmp_path / "broken")
    llm = served(tiny)
    with pytest.raises(LMWorksError, match=told):
        llm.load_lora_adapter("broken", tmp_path / "broken")
    assert set(llm.stats().adapters) == {"one", "two"}
    assert answers(llm, ["one"], PROMPTS[:1])


def test_what_attention_absorbs_cannot_be_adapted(tmp_path):
    config = transformers.DeepseekV3Config(
        **SIZES, hidden_size=48, intermediate_size=96, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=64, kv_lora_rank=12, q_lora_rank=None, qk_nope_head_dim=8,
        qk_rope_head_dim=4, v_head_dim=8, first_k_dense_replace=1, n_routed_experts=4, n_group=1,
        topk_group=1, num_experts_per_tok=2, moe_intermediate_size=16,
    )  # fmt: skip
    model = transformers.DeepseekV3ForCausalLM(config)
    model.save_pretrained(tmp_path / "base")
    byte_tokenizer().save(tmp_path / "base")
    llm = LLM(tmp_path / "base", config=EngineConfig(dtype="float32"))
    for target, refused in (("kv_b_proj", True), ("o_proj", False)):
        settings = peft.LoraConfig(r=2, target_modules=[target], init_lora_weights=False)
        peft.get_peft_model(
            transformers.DeepseekV3ForCausalLM.from_pretrained(tmp_path / "base"), settings
        ).save_pretrained(tmp_path / target)
        if refused:
            with pytest.raises(CheckpointError, match="kv_b_proj is read otherwise"):
                llm.load_lora_adapter(target, tmp_path / target)
        else:
            llm.load_lora_adapter(target, tmp_path / target)
            assert llm.generate([[5, 6]], LOGPROBS, adapter=target)
