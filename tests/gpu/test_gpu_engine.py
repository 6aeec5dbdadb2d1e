"""On a CUDA device: the engine says what `transformers` says, and recorded steps are the same bits as launched ones.

No machine of the continuous integration has one. `make test-gpu` runs these, and the kernels' own tests on the device.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lmworks.core.sampling import SamplingParams
from lmworks.engine import LLM, EngineConfig
from lmworks.engine.config import SpeculativeConfig
from lmworks.engine.execution.cuda_graphs import CudaRecorder, DecodeStep, GraphRunner
from lmworks.engine.execution.kv_cache import KVCache
from lmworks.engine.llm_engine import LLMEngine
from lmworks.engine.request import Request
from lmworks.engine.scheduling.scheduler import Chunk
from lmworks.engine.scheduling.sequence import Sequence
from lmworks.models.hub import load_pretrained

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION:UserWarning"),
]
VOCABULARY, GREEDY = 300, SamplingParams(temperature=0, max_tokens=30, ignore_eos=True)
GPU = torch.device("cuda")


@pytest.fixture(autouse=True)
def exact_products(monkeypatch):
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)


def theirs(family):
    import transformers

    torch.manual_seed(0)
    sizes = {
        "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 2048,
        "initializer_range": 0.2, "bos_token_id": 0, "eos_token_id": 0,
    }  # fmt: skip
    special = {
        "llama": {}, "qwen3": {}, "gemma2": {"sliding_window": 24, "query_pre_attn_scalar": 16},
        "mistral": {"sliding_window": 24},
    }[family]  # fmt: skip
    name = {"llama": "Llama", "qwen3": "Qwen3", "gemma2": "Gemma2", "mistral": "Mistral"}[family]
    config = getattr(transformers, f"{name}Config")(**sizes, **special)
    return getattr(transformers, f"{name}ForCausalLM")(config).eval()


def prompts(lengths=(5, 40, 17), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(1, VOCABULARY, (n,), generator=generator).tolist() for n in lengths]


def served(path, **settings):
    chosen = {"device": "cuda", "dtype": "float32", "max_num_seqs": 8, "num_kv_blocks": 256} | settings
    return LLM(load_pretrained(path), config=EngineConfig(**chosen))


def tokens(outputs):
    return [output.outputs[0].token_ids for output in outputs]


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "mistral"])
def test_greedy_tokens_are_those_of_transformers(family, tmp_path):
    model = theirs(family)
    model.save_pretrained(tmp_path)
    got = tokens(served(tmp_path).generate(prompts(), GREEDY))
    model = model.to(GPU)
    for prompt, answer in zip(prompts(), got, strict=True):
        ids = torch.tensor([prompt], device=GPU)
        expected = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=30, eos_token_id=None,
            pad_token_id=0,
        )  # fmt: skip
        assert answer == tuple(expected[0, len(prompt) :].tolist())


@pytest.mark.parametrize("settings", [{"enforce_eager": True}, {"attention": "batched"}, {"block_size": 64}])
def test_answers_do_not_depend_on_how_steps_run(settings, tmp_path):
    theirs("llama").save_pretrained(tmp_path)
    given = prompts([3, 90, 12, 700, 41, 8])
    for params in (GREEDY, SamplingParams(temperature=0.8, top_p=0.9, seed=5, max_tokens=30, ignore_eos=True)):
        recorded = tokens(served(tmp_path, max_num_batched_tokens=128).generate(given, params))
        assert tokens(served(tmp_path, max_num_batched_tokens=128, **settings).generate(given, params)) == recorded


def test_guesses_change_nothing(tmp_path):
    theirs("llama").save_pretrained(tmp_path)
    given = [[5, 6, 7, 8] * 12, *prompts([30])]
    guessing = served(tmp_path, speculative_config=SpeculativeConfig(method="ngram", num_speculative_tokens=3))
    assert tokens(guessing.generate(given, GREEDY)) == tokens(served(tmp_path).generate(given, GREEDY))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("length", [1, 4])
@torch.inference_mode()
def test_a_recording_is_the_same_bits_as_its_launches(dtype, length, tmp_path):
    theirs("llama").save_pretrained(tmp_path)
    model = load_pretrained(tmp_path, dtype=dtype, device=GPU).eval()
    cache = KVCache(model.config, 200, 16, dtype, GPU)
    for layer in cache.layers:
        layer.normal_()

    def runner(record):
        return GraphRunner(
            DecodeStep(model, cache.layers), max_num_seqs=16, max_model_len=2048, block_size=16,
            spare_block=cache.spare_block, vocabulary=VOCABULARY, device=GPU, record=record,
        )  # fmt: skip

    recorded, launched = runner(CudaRecorder()), runner(lambda step: step)
    for count in (16, 1, 2, 3, 8, 9):
        chunks = []
        for i in range(count):
            prompt = tuple(prompts([7 + 9 * i], seed=i)[0])
            sequence = Sequence(Request(str(i), prompt, SamplingParams(max_tokens=1)), 0, prompt, 1)
            sequence.block_table = list(range(12 * i, 12 * i + 12))
            sequence.num_computed_tokens = len(prompt) - 1
            sequence.draft_token_ids = [3, 4, 5][: length - 1]
            chunks.append(Chunk(sequence, length, length))
        for _ in range(3):
            got, expected = recorded.run(chunks), launched.run(chunks)
        assert got is not None
        assert torch.equal(got, expected)
        assert got.isfinite().all()


def engine_of(path, **settings):
    llm = served(path, **settings)
    llm.generate(prompts(), GREEDY)
    engine = llm.engine
    assert isinstance(engine, LLMEngine)
    return llm, engine


def test_new_weights_reach_recordings(tmp_path):
    theirs("llama").save_pretrained(tmp_path)
    llm, engine = engine_of(tmp_path)
    graphs = engine.runner._graphs
    assert graphs is not None
    assert graphs._recordings
    before = tokens(llm.generate(prompts(), GREEDY))
    state = {name: tensor.flip(0) for name, tensor in engine.model.state_dict().items()}
    engine.update_weights(state)
    assert engine.runner._graphs is graphs
    after = tokens(llm.generate(prompts(), GREEDY))
    assert after != before
    eager, other = engine_of(tmp_path, enforce_eager=True)
    other.update_weights(state)
    assert tokens(eager.generate(prompts(), GREEDY)) == after


def test_compiled_steps_agree(tmp_path):
    theirs("llama").save_pretrained(tmp_path)
    llm, engine = engine_of(tmp_path, compile=True)
    expected = tokens(served(tmp_path).generate(prompts(), GREEDY))
    compiled = engine.runner._graphs._faster
    compiled.wait()
    assert compiled._ready
    assert tokens(llm.generate(prompts(), GREEDY)) == expected


@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_rounded_weights_give_what_their_widened_copies_give(quantization, tmp_path, monkeypatch):
    theirs("llama").save_pretrained(tmp_path)
    fast = served(tmp_path, quantization=quantization).generate(prompts(), GREEDY)
    monkeypatch.setenv("LMWORKS_QUANTIZED_MATMUL", "reference")
    assert tokens(served(tmp_path, quantization=quantization).generate(prompts(), GREEDY)) == tokens(fast)


def test_the_cache_takes_its_share_of_memory(tmp_path):
    theirs("llama").save_pretrained(tmp_path)
    free, total = torch.cuda.mem_get_info()
    share = (total - free) / total + 0.05
    config = EngineConfig(device="cuda", gpu_memory_utilization=share, max_num_seqs=512, max_num_batched_tokens=512)
    engine = LLMEngine(load_pretrained(tmp_path).to(GPU), None, config)
    taken = sum(layer.nbytes for layer in engine.cache.layers)
    assert 0 < taken < 0.05 * total


def test_sleeping_gives_memory_back_and_waking_goes_on(tmp_path):
    from lmworks.engine.weights.sleep import sleep, wake_up

    theirs("llama").save_pretrained(tmp_path)
    llm, engine = engine_of(tmp_path)
    before = tokens(llm.generate(prompts(), GREEDY))
    held = torch.cuda.memory_allocated()
    sleep(engine)
    assert torch.cuda.memory_allocated() < held
    wake_up(engine)
    assert tokens(llm.generate(prompts(), GREEDY)) == before


def test_the_benchmark_measures_a_share_of_the_roofline():
    script = Path(__file__).parents[2] / "benchmarks" / "gpu_decode.py"
    done = subprocess.run([sys.executable, str(script), "--quick"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = {row["case"]: row for row in json.loads(done.stdout.splitlines()[-1])["rows"]}
    assert 0.2 < rows["decode, batch 1"]["limit_share"] <= 1.05
    assert rows["decode, batch 1"]["ratio"] > 1
