"""`LLM` as its users meet it: outputs, chat, scoring, new weights, and named errors for what cannot be served."""

from __future__ import annotations

import math

import pytest
import torch
from tiny_engine import (
    BOS,
    CONTEXT,
    FIRST_BYTE,
    IM_END,
    VOCABULARY,
    byte_tokenizer,
    full_logits,
    greedy_loop,
    random_prompts,
    tiny_model,
)

from lmworks.core.errors import (
    CheckpointError,
    ConfigError,
    EngineError,
    RequestError,
    RequestTooLongError,
    TokenizerError,
)
from lmworks.core.generation import Generator, Scorer
from lmworks.core.messages import Message
from lmworks.core.sampling import SamplingParams
from lmworks.core.telemetry import subscribed
from lmworks.engine import LLM, EngineConfig
from lmworks.engine.request import Request
from lmworks.models.hub import save_pretrained

GREEDY = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
TOKENIZER = byte_tokenizer()


def llm(model=None, tokenizer=TOKENIZER, **config) -> LLM:
    return LLM(model if model is not None else tiny_model(), tokenizer, EngineConfig(block_size=4, **config))


def test_it_is_what_evaluation_and_agents_ask_for():
    assert isinstance(llm(), Generator)
    assert isinstance(llm(), Scorer)


def test_outputs_of_texts_and_of_token_ids():
    model = llm()
    by_text, by_ids = model.generate(["hello", [BOS, *TOKENIZER.encode("hello")]], GREEDY)
    assert by_text.prompt == "hello"
    assert by_text.prompt_token_ids == by_ids.prompt_token_ids == (BOS, *TOKENIZER.encode("hello"))
    (completion,) = by_text.outputs
    assert completion == by_ids.outputs[0]
    assert completion.text == TOKENIZER.decode(completion.token_ids)
    assert completion.finish_reason == "length"
    assert completion.logprobs is None


def test_chat_continues_the_template_and_the_empty_prompt_is_a_new_document():
    model = llm()
    (chat,) = model.chat([[Message(role="user", content="hi")]], GREEDY)
    assert chat.prompt == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    (empty,) = model.generate([""], GREEDY)
    assert empty.prompt_token_ids == (BOS,)


def test_eos_of_model_or_tokenizer_ends_and_is_counted_but_not_shown():
    model = tiny_model()
    with torch.no_grad():
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.clone())
        model.lm_head.weight[IM_END] = 100 * full_logits_direction(model)
    (output,) = llm(model).generate(["abc"], SamplingParams(temperature=0))
    completion = output.outputs[0]
    assert (completion.text, completion.token_ids, completion.finish_reason) == ("", (IM_END,), "stop")


def full_logits_direction(model):
    """The hidden state after "abc", so that a head row along it wins there."""
    from lmworks.nn.attention_context import PackedContext

    tokens = [BOS, *TOKENIZER.encode("abc")]
    context = PackedContext(torch.tensor([0, len(tokens)], dtype=torch.int32))
    return model(torch.tensor(tokens), torch.arange(len(tokens)), context)[-1]


def test_completions_end_with_the_context():
    (prompt,) = random_prompts([CONTEXT - 3])
    (output,) = llm().generate([prompt], SamplingParams(temperature=0, max_tokens=50, ignore_eos=True))
    assert len(output.outputs[0].token_ids) == 3
    assert output.outputs[0].finish_reason == "length"


def test_more_prompts_than_may_wait():
    model = llm(max_num_queued_reqs=2, max_num_seqs=2)
    prompts = random_prompts([4] * 9)
    assert [len(o.outputs) for o in model.generate(prompts, SamplingParams(max_tokens=2, n=2, seed=0))] == [2] * 9


BAD = {
    "empty": ([], {}, RequestError, "no tokens"),
    "too long": ([5] * CONTEXT, {}, RequestTooLongError, f"{CONTEXT} tokens.*Shorten the prompt to {CONTEXT - 1}"),
    "token id": ([VOCABULARY], {}, RequestError, f"token id {VOCABULARY} in prompt"),
    "negative id": ([-1], {}, RequestError, "token id -1"),
    "bias": ([5], {"logit_bias": {9999: 1.0}}, RequestError, "9999 in logit_bias"),
    "stop id": ([5], {"stop_token_ids": (9999,)}, RequestError, "9999 in stop_token_ids"),
    "stop": ([5], {"stop": ("",)}, RequestError, "stop string is empty"),
}


@pytest.mark.parametrize("name", BAD)
def test_impossible_requests_are_refused_before_anything_runs(name):
    prompt, params, error, message = BAD[name]
    model = llm()
    with pytest.raises(error, match=message):
        model.generate([[5, 6], prompt], SamplingParams(**params))
    assert model.stats().prompt_tokens_total == 0
    model.engine.check_integrity()


def test_impossible_engines_are_refused():
    with pytest.raises(ConfigError, match=f"exceeds the model's context of {CONTEXT}"):
        llm(max_model_len=CONTEXT + 1)
    with pytest.raises(ConfigError, match="kv_cache_memory_bytes"):
        llm(max_model_len=64, num_kv_blocks=15)
    assert llm(num_kv_blocks=15).max_model_len == 60
    with pytest.raises(TokenizerError, match=f"only {VOCABULARY - 1}"):
        llm(tiny_model(vocab_size=VOCABULARY - 1))
    with pytest.raises(RequestError, match="no tokenizer"):
        llm(tokenizer=None).generate(["text"], GREEDY)


def test_a_folder_is_served_and_a_foreign_tokenizer_in_it_refused(tmp_path):
    model, prompts = tiny_model(), random_prompts([9])
    save_pretrained(model, tmp_path / "m")
    TOKENIZER.save(tmp_path / "m")
    from_folder = LLM(tmp_path / "m")
    assert from_folder.generate(prompts, GREEDY)[0].outputs[0].token_ids == tuple(greedy_loop(model, prompts[0], 8))
    assert from_folder.chat([[Message(role="user", content="hi")]], GREEDY)[0].outputs
    save_pretrained(tiny_model(vocab_size=VOCABULARY - 5), tmp_path / "other")
    TOKENIZER.save(tmp_path / "other")
    with pytest.raises(TokenizerError, match="embedding rows"):
        LLM(tmp_path / "other")


def test_a_request_whose_logits_break_harms_nobody():
    """Token 200 breaks the model: the request that holds it fails, its neighbors and successors do not."""
    model = tiny_model()
    with torch.no_grad():
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.clone())
        model.embed_tokens.weight[200] = float("nan")
    good = [[t if t != 200 else 201 for t in p] for p in random_prompts([9, 30] + [9] * 12)]
    bad = [7, 8, 200, 9]
    served = llm(model, num_kv_blocks=40)
    engine = served.engine
    for name, prompt in (("a", good[0]), ("bad", bad), ("b", good[1])):
        engine.add_request(Request(name, tuple(prompt), GREEDY))
    deltas = []
    while engine.has_unfinished:
        deltas += engine.step()
        engine.check_integrity()
    (failed,) = [d for d in deltas if d.error]
    assert (failed.request_id, failed.finish_reason) == ("bad", "abort")
    for name, prompt in (("a", good[0]), ("b", good[1])):
        tokens = [t for d in deltas if d.request_id == name for t in d.token_ids]
        assert tokens == greedy_loop(model, prompt, 8)
    # The victim's blocks are used again, half filled.
    for prompt in good[2:]:
        assert served.generate([prompt], GREEDY)[0].outputs[0].token_ids == tuple(greedy_loop(model, prompt, 8))
    with pytest.raises(EngineError, match="not finite"):
        served.generate([good[0], bad], GREEDY)
    assert not engine.has_unfinished


def test_new_weights_apply_at_once_and_leave_no_stale_prefix():
    old, new, prompts = tiny_model(seed=0), tiny_model(seed=1), random_prompts([30])
    model = llm(old)
    model.generate(prompts, GREEDY)
    model.update_weights(new.state_dict())
    assert model.generate(prompts, GREEDY)[0].outputs[0].token_ids == tuple(greedy_loop(new, prompts[0], 8))
    state = {k: v for k, v in tiny_model(seed=2).state_dict().items() if k != "lm_head.weight"}
    model.update_weights(state)
    assert model.generate(prompts, GREEDY)[0].outputs[0].token_ids == tuple(
        greedy_loop(tiny_model(seed=2), prompts[0], 8)
    )


def test_weights_that_do_not_fit_change_nothing():
    model, prompts = llm(), random_prompts([9])
    before = model.generate(prompts, GREEDY)
    state = {**tiny_model(seed=1).state_dict(), "extra": torch.zeros(1)}
    state["decoder.norm.weight"] = torch.ones(3)
    del state["embed_tokens.weight"]
    with pytest.raises(CheckpointError, match=r"unknown: \['extra'\]; missing: \['embed_tokens.*norm.weight \(3,\)"):
        model.update_weights(state)
    assert model.generate(prompts, GREEDY)[0].outputs == before[0].outputs


def test_finished_requests_are_reported_with_their_times():
    events = []
    with subscribed(events.append):
        llm().generate(random_prompts([9]), GREEDY)
    (event,) = events
    assert event.name == "engine.request_finished"
    fields = event.fields
    assert (fields["num_prompt_tokens"], fields["num_generated_tokens"], fields["finish_reason"]) == (9, 8, "length")
    parts = fields["queue_seconds"] + fields["prefill_seconds"] + fields["decode_seconds"]
    assert parts == pytest.approx(fields["e2e_seconds"])


# --- scoring -------------------------------------------------------------------------------------------------------


def expected_score(model, context: list[int], continuation: list[int]) -> tuple[float, bool]:
    tokens = [*context, *continuation]
    rows = full_logits(model, tokens[:-1]).log_softmax(-1)[len(context) - 1 :]
    score = sum(rows[i, t].item() for i, t in enumerate(continuation))
    return score, all(rows[i].argmax() == t for i, t in enumerate(continuation))


def test_scores_are_those_of_the_plain_forward_and_generation_is_greedy():
    model = tiny_model()
    served = llm(model, max_num_batched_tokens=40)
    greedy = served.generate([[BOS, *TOKENIZER.encode("a")]], GREEDY)[0].outputs[0].token_ids
    pairs = [("The sky is", " blue"), ("", "Once"), ("x " * 20, "y"), ("Zeile\n", "zwei")]
    got = served.loglikelihood(pairs)
    for (context, continuation), result in zip(pairs, got, strict=True):
        before = [BOS, *TOKENIZER.encode(context.rstrip())]
        after = TOKENIZER.encode((context + continuation)[len(context.rstrip()) :])
        score, is_greedy = expected_score(model, before, after)
        assert result.logprob == pytest.approx(score, abs=1e-4)
        assert (result.num_tokens, result.is_greedy) == (len(after), is_greedy)
    (sure,) = served.loglikelihood_tokens([([BOS, *TOKENIZER.encode("a")], greedy)])
    assert sure.is_greedy


def test_long_pairs_are_cut_from_the_left_and_long_continuations_windowed():
    model = tiny_model()
    served = llm(model, max_model_len=16)
    context, continuation = random_prompts([30, 10])
    (cut,) = served.loglikelihood_tokens([(context, continuation)])
    kept = [*context, *continuation][-17:]
    assert cut.logprob == pytest.approx(expected_score(model, kept[:7], kept[7:])[0], abs=1e-4)
    (continuation,) = random_prompts([40])
    (windowed,) = served.loglikelihood_tokens([([BOS], continuation)])
    tokens = [BOS, *continuation]
    expected = [(tokens[:1], tokens[1:17]), (tokens[16:17], tokens[17:33]), (tokens[24:33], tokens[33:])]
    assert windowed.logprob == pytest.approx(sum(expected_score(model, *w)[0] for w in expected), abs=1e-3)
    assert windowed.num_tokens == 40
    assert math.isfinite(windowed.logprob)


def test_an_empty_continuation_cannot_be_scored():
    with pytest.raises(RequestError, match="continuation"):
        llm().loglikelihood([("a", "b"), ("a", "")])


def test_bytes_are_tokens_of_the_double():
    assert TOKENIZER.decode(range(FIRST_BYTE, VOCABULARY)).count("a") == 1
