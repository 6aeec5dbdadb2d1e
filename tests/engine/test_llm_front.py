"""`LLM` with vLLM's names: forms of prompts, limits by keyword, best_of, parameters, beams of texts."""

from __future__ import annotations

import pytest
import torch
from tiny_engine import BOS, IM_END, VOCABULARY, byte_tokenizer, greedy_loop, random_prompts, tiny_model

from lmworks.core.errors import ConfigError, RequestError
from lmworks.core.messages import Message
from lmworks.core.sampling import BeamSearchParams, SamplingParams
from lmworks.engine import LLM, EngineConfig
from lmworks.models.hub import save_pretrained

GREEDY = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
TOKENIZER = byte_tokenizer()


@pytest.fixture(scope="module")
def llm():
    return LLM(tiny_model(), TOKENIZER, block_size=4)


def test_prompts_of_every_form_are_the_same_prompt(llm):
    ids = [BOS, *TOKENIZER.encode("hi")]
    outputs = llm.generate(["hi", ids, {"prompt": "hi"}, {"prompt_token_ids": ids}], GREEDY)
    assert len({output.prompt_token_ids for output in outputs}) == 1
    assert len({output.outputs for output in outputs}) == 1
    assert llm.generate("hi", GREEDY)[0].outputs == llm.generate({"prompt": "hi"}, GREEDY)[0].outputs
    assert llm.generate("hi", GREEDY)[0].outputs == outputs[0].outputs
    with pytest.raises(RequestError, match=r'neither text nor tokens.*Give "prompt"'):
        llm.generate([{"text": "hi"}], GREEDY)


def test_one_conversation_or_several(llm):
    turn = [Message(role="user", content="hi")]
    (one,) = llm.chat(turn, GREEDY)
    assert llm.chat([turn, turn], GREEDY)[1].outputs == one.outputs
    said = [*turn, Message(role="assistant", content="hello")]
    (continued,) = llm.chat(said, GREEDY, add_generation_prompt=False, continue_final_message=True)
    assert continued.prompt.endswith("hello")


def test_limits_are_given_by_name_and_unknown_ones_named():
    assert LLM(tiny_model(), TOKENIZER, max_model_len=20, max_num_seqs=3).max_model_len == 20
    both = LLM(tiny_model(), TOKENIZER, EngineConfig(block_size=4, seed=5), max_num_seqs=3).engine.config
    assert (both.block_size, both.seed, both.max_num_seqs) == (4, 5, 3)
    with pytest.raises(ConfigError, match=r"unknown field 'max_num_seq' \(did you mean 'max_num_seqs'"):
        LLM(tiny_model(), TOKENIZER, max_num_seq=3)


def test_a_tokenizer_may_be_a_path(tmp_path):
    TOKENIZER.save(tmp_path)
    assert LLM(tiny_model(), str(tmp_path)).generate("hi", GREEDY)[0].outputs[0].text


def test_best_of_returns_the_likeliest(llm):
    params = SamplingParams(seed=3, max_tokens=6, ignore_eos=True)
    (everything,) = llm.generate("a", params.model_copy(update={"n": 6, "logprobs": 2}))
    sums = [sum(x.logprob for x in c.logprobs) for c in everything.outputs]
    assert [c.cumulative_logprob for c in everything.outputs] == pytest.approx(sums)
    best = sorted(everything.outputs, key=lambda c: -c.cumulative_logprob)[:2]
    (chosen,) = llm.generate("a", params.model_copy(update={"n": 2, "best_of": 6}))
    assert [c.token_ids for c in chosen.outputs] == [c.token_ids for c in best]
    assert [c.cumulative_logprob for c in chosen.outputs] == [c.cumulative_logprob for c in best]
    assert {c.logprobs for c in chosen.outputs} == {None}, "nobody asked for them"
    (told,) = llm.generate("a", params.model_copy(update={"best_of": 6, "logprobs": 2}))
    assert told.outputs[0] == best[0]
    assert llm.generate("a", params)[0].outputs[0].cumulative_logprob is None


def test_what_ended_a_completion_is_told(llm):
    first = greedy_loop(tiny_model(), [BOS, *TOKENIZER.encode("a")], 2)
    params = GREEDY.model_copy(update={"stop_token_ids": (first[1],)})
    completion = llm.generate("a", params)[0].outputs[0]
    assert (completion.finish_reason, completion.stop_reason) == ("stop", first[1])
    assert llm.generate("a", GREEDY)[0].outputs[0].stop_reason is None


def test_parameters_reach_the_sampler(llm):
    free = llm.generate("a", GREEDY)[0].outputs[0].token_ids
    (without,) = llm.generate("a", GREEDY.model_copy(update={"bad_words": (TOKENIZER.decode(free[:1]) or "x",)}))
    assert free[0] not in without.outputs[0].token_ids
    allowed = tuple(range(60, 70))
    (few,) = llm.generate("a", SamplingParams(seed=1, max_tokens=20, allowed_token_ids=allowed))
    assert set(few.outputs[0].token_ids) <= set(allowed)
    ends = SamplingParams(temperature=0, logit_bias={IM_END: 100.0}, min_tokens=5, max_tokens=20)
    assert len(llm.generate("a", ends)[0].outputs[0].token_ids) == 6


def test_a_request_that_forbids_everything_fails_alone(llm):
    impossible = SamplingParams(temperature=0, allowed_token_ids=(IM_END,), min_tokens=3, max_tokens=8)
    with pytest.raises(RequestError, match="min_tokens, allowed_token_ids together forbid all"):
        llm.generate("a", impossible)
    llm.engine.check_integrity()
    assert len(llm.generate("a", GREEDY)[0].outputs[0].token_ids) == 8


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"allowed_token_ids": (VOCABULARY,)}, f"token id {VOCABULARY} in allowed_token_ids"),
        ({"bad_words": ("x",)}, "bad_words .* need a tokenizer"),
    ],
)
def test_impossible_parameters_are_refused_before_anything_runs(values, message):
    bare = LLM(tiny_model(), None, block_size=4)
    with pytest.raises(RequestError, match=message):
        bare.generate([[5]], SamplingParams(**values))
    assert bare.stats().prompt_tokens_total == 0


# --- beams ---------------------------------------------------------------------------------------------------------


def test_one_beam_is_greedy_and_its_text_is_that_of_generate(llm):
    (beam,) = llm.beam_search("hello", BeamSearchParams(beam_width=1, max_tokens=8, ignore_eos=True))[0].outputs
    greedy = llm.generate("hello", GREEDY)[0].outputs[0]
    assert (beam.token_ids, beam.text, beam.finish_reason) == (greedy.token_ids, greedy.text, "length")


def test_many_prompts_are_searched_together_as_alone(llm):
    prompts = [*random_prompts([5, 17, 3]), "text"]
    params = BeamSearchParams(beam_width=3, max_tokens=6)
    together = llm.beam_search(prompts, params, use_tqdm=True)
    alone = [llm.beam_search([prompt], params)[0] for prompt in prompts]
    assert [[c.token_ids for c in o.outputs] for o in together] == [[c.token_ids for c in o.outputs] for o in alone]
    assert [o.prompt for o in together] == [o.prompt for o in alone]
    llm.engine.check_integrity()


def test_beams_reuse_the_cache_of_their_prefixes():
    served = LLM(tiny_model(), TOKENIZER, block_size=4)
    (prompt,) = random_prompts([40])
    served.beam_search([prompt], BeamSearchParams(beam_width=4, max_tokens=10, ignore_eos=True))
    assert served.stats().prompt_tokens_total < 400, "36 requests of more than 40 tokens each"


def test_impossible_searches_are_refused(llm):
    with pytest.raises(RequestError, match="no tokens"):
        llm.beam_search([[5], []], BeamSearchParams(beam_width=2, max_tokens=2))


def test_an_end_of_sequence_ends_a_beam_and_is_not_shown():
    model = tiny_model()
    likely = greedy_loop(model, [BOS, *TOKENIZER.encode("a")], 2)[1]
    with torch.no_grad():
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.clone())
        model.lm_head.weight[IM_END] = model.lm_head.weight[likely]
    (output,) = LLM(model, TOKENIZER, block_size=4).beam_search("a", BeamSearchParams(beam_width=4, max_tokens=4))
    ended = [c for c in output.outputs if c.finish_reason == "stop"]
    assert any(len(c.token_ids) > 1 for c in ended)
    assert {c.token_ids[-1] for c in ended} == {IM_END}
    assert all(c.text == TOKENIZER.decode(c.token_ids[:-1]) for c in ended)


def test_a_folder_is_opened_with_its_own_tokenizer(tmp_path):
    save_pretrained(tiny_model(), tmp_path)
    TOKENIZER.save(tmp_path)
    opened = LLM(str(tmp_path), max_num_seqs=2, dtype="float32")
    assert opened.generate("hi", GREEDY)[0].outputs == LLM(tiny_model(), TOKENIZER).generate("hi", GREEDY)[0].outputs
