"""A decoder behind an encoder: sources encoded once, answered as by full recomputation, scored, freed."""

from __future__ import annotations

import asyncio

import pytest
import torch
from tiny_engine import BOS, FIRST_BYTE, IM_END, VOCABULARY, byte_tokenizer, random_prompts

from lmworks.core.errors import ConfigError, RequestError, RequestTooLongError
from lmworks.core.messages import Message
from lmworks.core.sampling import SamplingParams
from lmworks.engine import LLM, AsyncLLM, EngineConfig
from lmworks.engine.prompts import surroundings
from lmworks.engine.request import Request
from lmworks.models.build import build_model
from lmworks.models.config import ModelConfig, StackConfig
from lmworks.models.position_slots import LearnedPositions, RelativeBiasPositions
from lmworks.models.slots import AttentionConfig, MLPConfig, NormConfig
from lmworks.nn.attention_context import PackedContext
from lmworks.tokenization import Tokenizer
from lmworks.tokenization.definition import TokenizerDefinition

NEW, START, CONTEXT = 10, 2, 64
GREEDY = SamplingParams(temperature=0, max_tokens=NEW, ignore_eos=True)
LENGTHS = [5, 1, 33, 17, 50, 16]


def config(family, **changes) -> ModelConfig:
    """Like T5 (biases, no scale, soft cap of nothing) or like BART (learned positions, post-norm, biases)."""
    t5 = family == "t5"
    attention = AttentionConfig(
        num_attention_heads=4, num_key_value_heads=4, head_dim=10, scale=1.0 if t5 else None, qkv_bias=not t5,
        o_bias=not t5,
    )  # fmt: skip
    stack = StackConfig(
        num_hidden_layers=3, attention=attention, mlp=MLPConfig(intermediate_size=64, gated=t5, bias=not t5),
        norm=NormConfig(kind="rms" if t5 else "layer"), placement="pre" if t5 else "post", final_norm=t5,
    )  # fmt: skip
    values = {
        "vocab_size": VOCABULARY,
        "hidden_size": 48,
        "max_position_embeddings": CONTEXT,
        "positions": RelativeBiasPositions(relative_attention_num_buckets=8, relative_attention_max_distance=20)
        if t5
        else LearnedPositions(offset=2),
        "encoder": stack.model_copy(update={"causal": False, "num_hidden_layers": 2}),
        "decoder": stack.model_copy(update={"cross_attention": attention}),
        "initializer_range": 0.1 if t5 else 0.3,
        "decoder_start_token_id": START,
        **changes,
    }
    return ModelConfig(**values)


def tiny(family, **changes):
    return build_model(config(family, **changes), seed=1).eval()


def engine(model, tokenizer=None, **changes) -> LLM:
    return LLM(model, tokenizer, EngineConfig(**{"block_size": 4, **changes}))


@torch.no_grad()
def logits(model, source, target):
    """[T, V] by one forward pass over everything."""
    bounds = [torch.tensor([0, len(ids)], dtype=torch.int32) for ids in (source, target)]
    memory = model.encode(torch.tensor(source), torch.arange(len(source)), PackedContext(bounds[0]))
    context = PackedContext(bounds[1], memory_cu_seqlens=bounds[0])
    return model.logits(model(torch.tensor(target), torch.arange(len(target)), context, memory=memory))


def greedy(model, source, count=NEW):
    tokens = [START]
    for _ in range(count):
        tokens.append(int(logits(model, source, tokens)[-1].argmax()))
    return tuple(tokens[1:])


SETTINGS = {
    "alone": {"max_num_seqs": 1},
    "one token a step": {"max_num_batched_tokens": 1, "max_num_seqs": 1},
    "sources in several steps": {"max_num_batched_tokens": 40, "max_num_seqs": 4},
    "together, blocks of sixteen": {"block_size": 16, "max_num_batched_tokens": 512},
    "tiny cache": {"num_kv_blocks": 26, "max_model_len": 32, "max_num_seqs": 6},
    "formula": {"attention": "reference"},
}


@pytest.mark.parametrize("family", ["t5", "bart"])
@pytest.mark.parametrize("setting", SETTINGS)
def test_greedy_tokens_are_those_of_full_recomputation(family, setting):
    model, sources = tiny(family), random_prompts(LENGTHS)
    expected = [greedy(model, source) for source in sources]
    assert len(set(expected)) > 1, "the source must matter"
    llm = engine(model, **SETTINGS[setting])
    outputs = llm.generate(sources, GREEDY)
    assert [o.outputs[0].token_ids for o in outputs] == expected
    assert [o.prompt_token_ids for o in outputs] == [tuple(source) for source in sources]
    stats = llm.stats()
    assert (stats.preemptions_total > 0) == (setting == "tiny cache")
    assert stats.kv_cache_usage == stats.prefix_cache_hits_total == 0
    llm.engine.check_integrity()


def test_completions_of_one_source_and_requests_that_come_and_go():
    model = tiny("t5")
    llm = engine(model, max_num_batched_tokens=64)
    params = [SamplingParams(temperature=1.5, seed=5, n=2, max_tokens=NEW, ignore_eos=True), GREEDY]
    long, short = random_prompts([30, 8])
    (two, one), (again,) = llm.generate([long, short], params), llm.generate([long], params[0])
    assert two.outputs == again.outputs
    assert two.outputs[0] != two.outputs[1]
    assert one.outputs[0].token_ids == greedy(model, short)
    llm.engine.add_request(Request("gone", tuple(long), GREEDY))
    llm.engine.step()
    assert llm.stats().kv_cache_usage > 0
    llm.engine.abort("gone")
    assert llm.stats().kv_cache_usage == 0


def test_tokens_are_counted_as_the_user_gave_them():
    llm = engine(tiny("bart"))
    llm.engine.add_request(Request("r", tuple(range(3, 24)), GREEDY))
    (delta,) = llm.engine.step()
    assert (delta.num_prompt_tokens, delta.num_generated_tokens) == (21, 1)
    assert llm.stats().prompt_tokens_total == 21


def test_new_weights_encode_running_sources_anew():
    model, other = tiny("t5"), build_model(config("t5"), seed=7).eval()
    (source,) = random_prompts([12])
    llm = engine(model)
    llm.engine.add_request(Request("r", tuple(source), GREEDY))
    first = llm.engine.step()[0].token_ids
    llm.update_weights(other.state_dict())
    tokens = [START, *first]
    while llm.engine.has_unfinished:
        tokens += llm.engine.step()[0].token_ids
    expected = logits(other, source, tokens[:-1]).argmax(-1).tolist()
    assert tokens[2:] == expected[1:]


def test_source_and_decoder_have_limits_of_their_own():
    bart, t5 = engine(tiny("bart")), engine(tiny("t5"))
    assert bart.max_model_len == t5.max_model_len == CONTEXT
    with pytest.raises(RequestTooLongError, match=f"source has {CONTEXT + 1} tokens.*takes {CONTEXT}"):
        bart.generate([[5] * (CONTEXT + 1)], GREEDY)
    (source,) = random_prompts([3 * CONTEXT])
    assert t5.generate([source], GREEDY)[0].outputs[0].token_ids == greedy(t5.engine.model, source)
    with pytest.raises(RequestTooLongError, match=r"the encoder takes \d+"):
        t5.generate([[5] * (t5.engine.max_source_len + 1)], GREEDY)
    (full,) = bart.generate([[5]], SamplingParams(temperature=0, ignore_eos=True))
    assert len(full.outputs[0].token_ids) == CONTEXT - 1
    small = engine(tiny("t5"), num_kv_blocks=10, max_num_seqs=2)
    assert (small.max_model_len, small.engine.max_source_len) == (20, 20)
    assert len(small.generate([[7] * 20], SamplingParams(ignore_eos=True))[0].outputs[0].token_ids) == 19
    with pytest.raises(ConfigError, match="kv_cache_memory_bytes of at least"):
        engine(tiny("t5"), num_kv_blocks=1)


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_scores_are_those_of_the_plain_forward(family):
    model = tiny(family)
    pairs = [(s, t) for s, t in zip(random_prompts([30, 4, 11]), random_prompts([7, 20, 1], seed=9), strict=True)]
    pairs.append((pairs[0][0], list(greedy(model, pairs[0][0]))))
    got = engine(model, max_num_batched_tokens=40).loglikelihood_tokens(pairs)
    for (source, target), score in zip(pairs, got, strict=True):
        expected = logits(model, source, [START, *target[:-1]]).log_softmax(-1)
        wanted = expected.gather(-1, torch.tensor(target)[:, None]).sum().item()
        assert score.logprob == pytest.approx(wanted, abs=1e-4)
        assert score.num_tokens == len(target)
    assert [s.is_greedy for s in got][-1]


def framed_tokenizer(template=None) -> Tokenizer:
    """The byte tokenizer with a text's beginning and end, as T5's and BART's put around it."""
    bare = byte_tokenizer().definition
    frame = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                   {"SpecialToken": {"id": "<|im_end|>", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {
            "<|endoftext|>": {"id": "<|endoftext|>", "ids": [BOS], "tokens": ["<|endoftext|>"]},
            "<|im_end|>": {"id": "<|im_end|>", "ids": [IM_END], "tokens": ["<|im_end|>"]},
        },
    }  # fmt: skip
    return Tokenizer(
        TokenizerDefinition({**bare.spec, "post_processor": frame}, bare.config, template, bare.eos_token_ids)
    )


def test_texts_are_framed_for_the_encoder_and_the_last_question_is_asked():
    tokenizer = framed_tokenizer()
    llm = engine(tiny("t5"), tokenizer)
    source = (BOS, *tokenizer.encode("hello"), IM_END)
    (by_text,) = llm.generate(["hello"], GREEDY)
    assert by_text.prompt_token_ids == source
    assert by_text.outputs[0].token_ids == greedy(llm.engine.model, source)
    conversation = [("user", "hi"), ("assistant", "yes?"), ("user", "hello"), ("assistant", "ah")]
    (chat,) = llm.chat([[Message(role=r, content=c) for r, c in conversation]], GREEDY)
    assert chat.prompt_token_ids == source
    with pytest.raises(RequestError, match="no message of the user"):
        llm.chat([[Message(role="system", content="be kind")]], GREEDY)
    (score,) = llm.loglikelihood([("hello ", "you")])
    (same,) = llm.loglikelihood_tokens([(source, tokenizer.encode(" you"))])
    assert score == same
    assert surroundings(byte_tokenizer()) == ((), ())
    with pytest.raises(RequestError, match="source is empty"):
        engine(tiny("t5"), byte_tokenizer()).generate([""], GREEDY)


def test_a_template_is_used_where_there_is_one():
    template = "{% for m in messages %}[{{ m.content }}]{% endfor %}"
    llm = engine(tiny("t5"), framed_tokenizer(template))
    (chat,) = llm.chat([[Message(role="user", content="a"), Message(role="user", content="b")]], GREEDY)
    assert chat.prompt == "[a][b]"


def test_streams_answer_sources_too():
    model = tiny("bart")
    (source,) = random_prompts([14])

    async def ask():
        llm = AsyncLLM(model, config=EngineConfig(block_size=4))
        try:
            return [t async for delta in llm.generate(source, GREEDY) for t in delta.token_ids]
        finally:
            llm.shutdown()

    assert tuple(asyncio.run(ask())) == greedy(model, source)


def test_a_source_whose_logits_break_harms_nobody():
    model = tiny("t5", tie_word_embeddings=False)
    with torch.no_grad():
        model.embed_tokens.weight[FIRST_BYTE] = float("nan")
    llm = engine(model, num_kv_blocks=40)
    good, bad = [9, 8, 7, 6, 5], [9, FIRST_BYTE, 7]
    llm.engine.add_request(Request("bad", tuple(bad), GREEDY))
    llm.engine.add_request(Request("good", tuple(good), GREEDY))
    deltas = llm.engine.step()
    assert [d.request_id for d in deltas if d.error] == ["bad"]
    llm.engine.abort("good")
    assert all(layer.isfinite().all() for layer in llm.engine.cache.layers)
    llm.engine.check_integrity()


def test_encoder_decoders_that_cannot_be_served_are_named():
    with pytest.raises(ConfigError, match="no decoder_start_token_id"):
        engine(tiny("t5", decoder_start_token_id=None))
    decoder = config("t5").decoder
    narrow = decoder.cross_attention.model_copy(update={"num_key_value_heads": 2})
    with pytest.raises(ConfigError, match="Use equal num_key_value_heads and head_dim"):
        engine(tiny("t5", decoder=decoder.model_copy(update={"cross_attention": narrow})))
