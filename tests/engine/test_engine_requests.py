"""What happens to one request among others: deadlines, grammars, priorities, tenants, new weights, telemetry."""

from __future__ import annotations

from concurrent.futures import Future
from itertools import count
from time import monotonic

import pytest
import torch
from tiny_engine import byte_tokenizer, full_logits, random_prompts, tiny_model

from lmworks.core.errors import DeadlineExceededError, EngineError, EngineOverloadedError, RequestError
from lmworks.core.sampling import SamplingParams, StructuredOutputs
from lmworks.core.telemetry import subscribed
from lmworks.engine import EngineConfig, llm_engine
from lmworks.engine.llm_engine import LLMEngine
from lmworks.engine.outputs import Delta
from lmworks.engine.request import Request

ENDLESS = SamplingParams(temperature=0, ignore_eos=True, max_tokens=60)
SHORT = SamplingParams(temperature=0, ignore_eos=True, max_tokens=4)


def changed(**values) -> SamplingParams:
    return SHORT.model_copy(update=values)


def engine(**changes) -> LLMEngine:
    values = {"block_size": 4, "max_num_seqs": 4, "max_num_batched_tokens": 24, **changes}
    return LLMEngine(tiny_model(), byte_tokenizer(), EngineConfig(**values))


def request(name, length=9, params=SHORT, seed=0, **how) -> Request:
    return Request(name, tuple(random_prompts([length], seed)[0]), params, **how)


def run(e: LLMEngine, steps=10_000) -> list[Delta]:
    deltas = []
    while e.has_unfinished and steps:
        deltas += e.step()
        e.check_integrity()
        steps -= 1
    return deltas


@pytest.fixture
def later(monkeypatch):
    """Lets an hour pass when it is called."""
    hours = count()

    def call():
        skew = 3600.0 * (1 + next(hours))
        monkeypatch.setattr(llm_engine, "monotonic", lambda: monotonic() + skew)

    return call


def test_what_is_late_ends_alone_running_or_waiting(later):
    e = engine(max_num_seqs=1)
    e.add_request(request("late", params=ENDLESS, timeout_seconds=1000.5))
    e.add_request(request("late in the queue", params=ENDLESS, timeout_seconds=1000))
    e.add_request(request("patient", timeout_seconds=10_000))
    first = run(e, 3)
    assert {d.request_id for d in first} == {"late"}
    later()
    ended = [d for d in run(e) if d.finish_reason is not None]
    assert [(d.request_id, d.finish_reason, type(d.error)) for d in ended] == [
        ("late in the queue", "abort", DeadlineExceededError),
        ("late", "abort", DeadlineExceededError),
        ("patient", "length", type(None)),
    ]
    assert "1000.5 seconds" in str(ended[1].error)
    assert e.blocks.usage == 0


def test_a_deadline_is_that_of_its_request_alone(later):
    e = engine()
    e.add_request(request("other", params=ENDLESS, timeout_seconds=10_000))
    e.add_request(request("again", timeout_seconds=1000))
    while not any(d.request_id == "again" and d.finish_reason for d in e.step()):
        pass
    e.add_request(request("again", params=ENDLESS))
    later()
    assert {d.finish_reason for d in run(e)} == {None, "length"}


class Compiler:
    """Hands out futures that the test settles."""

    def __init__(self) -> None:
        self.futures: list[Future] = []

    def compile(self, outputs, begins_text):
        self.futures.append(Future())
        return self.futures[-1]


def structured(name, **how) -> Request:
    return request(name, params=changed(structured_outputs=StructuredOutputs(choice=("a",))), **how)


def test_others_go_on_while_a_grammar_is_compiled_and_when_it_fails(later):
    e = engine(max_num_seqs=1)
    e._grammars = compiler = Compiler()
    for name in ("wrong", "broken", "aborted", "late"):
        e.add_request(structured(name, timeout_seconds=1000 if name == "late" else None))
    assert e.step() == []
    assert e.idle
    e.add_request(request("plain"))
    while not any(d.finish_reason for d in e.step()):
        assert not e.idle
    compiler.futures[0].set_exception(RequestError("the schema is wrong", "Mend it"))
    compiler.futures[1].set_exception(MemoryError("too much"))
    failed = e.step()
    assert [(d.request_id, d.finish_reason, str(d.error)) for d in failed] == [
        ("wrong", "abort", "the schema is wrong. Mend it."),
        ("broken", "abort", "the grammar cannot be compiled: too much. Simplify what is asked for."),
    ]
    assert [d.request_id for d in e.abort("aborted")] == ["aborted"]
    compiler.futures[2].set_exception(RequestError("too late"))
    later()
    assert [d.request_id for d in e.step()] == ["late"]
    assert not e.has_unfinished
    e.check_integrity()


def test_every_completion_has_a_constraint_of_its_own():
    e = engine()
    outputs = StructuredOutputs(regex="[ab]{5}")
    params = SamplingParams(n=3, seed=1, max_tokens=20, structured_outputs=outputs)
    e.add_request(request("r", params=params))
    texts, reasons = {}, []
    while e.has_unfinished:
        for d in e.step():
            assert d.error is None
            texts[d.index] = texts.get(d.index, "") + d.text
            reasons += [d.finish_reason] if d.finish_reason else []
    assert len(texts) == 3
    assert all(len(t) == 5 and set(t) <= set("ab") for t in texts.values())
    assert reasons == ["stop"] * 3


def test_the_lower_number_goes_first():
    e = engine(max_num_seqs=1, scheduling_policy="priority")
    for name, priority in (("first", 3), ("second", 5), ("third", -2)):
        e.add_request(request(name, priority=priority))
    ended = [d.request_id for d in run(e) if d.finish_reason]
    assert ended == ["third", "first", "second"]


def test_tenants_do_not_learn_what_others_asked():
    e = engine()
    for name, salt in (("a", "x"), ("b", "y"), ("c", "x")):
        e.add_request(request(name, 40, cache_salt=salt))
        cached = {d.num_cached_tokens for d in run(e)}
        assert cached == {36 if name == "c" else 0}


def test_new_weights_are_used_at_once_and_nothing_older_is_found():
    e = engine(max_num_seqs=2)
    other = tiny_model(seed=7)
    for name in "abc":
        e.add_request(request(name, 30, params=ENDLESS, seed=ord(name)))
    before = run(e, 6)
    e.update_weights(other.state_dict())
    e.check_integrity()
    said = {name: list(request(name, 30, seed=ord(name)).prompt_token_ids) for name in "abc"}
    for d in before:
        said[d.request_id] += d.token_ids
    marks = {name: len(tokens) for name, tokens in said.items()}
    for d in run(e):
        said[d.request_id] += d.token_ids
    fresh = LLMEngine(other, None, EngineConfig(block_size=4))
    for name, tokens in said.items():
        fresh.add_request(Request(name, tuple(tokens[: marks[name]]), ENDLESS))
        rest = [t for d in run(fresh) for t in d.token_ids][: len(tokens) - marks[name]]
        assert tokens[marks[name] :] == rest


def test_a_prompt_is_not_scored_by_two_models():
    e, other = engine(), tiny_model(seed=7)
    e.add_request(request("r", 60, params=changed(prompt_logprobs=0)))
    assert run(e, 1) == []
    e.update_weights(other.state_dict())
    scores = run(e)[0].prompt_logprobs
    tokens = random_prompts([60])[0]
    expected = full_logits(other, tokens).log_softmax(-1)
    worst = max(abs(expected[i, t].item() - scores[i + 1].logprob) for i, t in enumerate(tokens[1:]))
    assert worst < 1e-5


def test_refused_requests_are_counted_and_told_when_to_come_back():
    e = engine(max_num_seqs=1, max_num_queued_reqs=1)
    e.add_request(request("a"))
    with pytest.raises(EngineOverloadedError) as caught:
        e.add_request(request("b"))
    assert caught.value.retry_after_seconds >= 1
    stats = e.stats()
    assert stats.requests_rejected_total == {"max_num_queued_reqs": 1}
    assert stats.num_tokens_waiting == 9
    run(e)
    e.add_request(request("b"))
    assert len(run(e)) == 4


def test_one_row_without_numbers_ends_its_request_only():
    e = engine(max_num_seqs=3)
    params = changed(n=2, prompt_logprobs=1)
    e.add_request(request("bad", 30, params=params))
    e.add_request(request("good"))
    real = e.runner.run

    def broken(chunks):
        logits = real(chunks).clone()
        end = 0
        for chunk in chunks:
            end += chunk.num_logits
            if chunk.sequence.request_id == "bad" and chunk.num_logits:
                logits[end - 1] = torch.nan
        return logits

    e.runner.run = broken
    deltas = run(e)
    bad = [d for d in deltas if d.request_id == "bad"]
    assert [d.finish_reason for d in bad] == ["abort", "abort"]
    assert all(type(d.error) is EngineError and d.prompt_logprobs is None for d in bad)
    assert [d.finish_reason for d in deltas if d.request_id == "good"][-1] == "length"
    assert e.blocks.usage == 0


def test_telemetry_tells_how_it_went():
    events = []
    e = engine()
    with subscribed(events.append):
        e.add_request(request("r", params=changed(n=2, top_p=0.9), priority=4))
        run(e)
    assert [x.name for x in events] == ["engine.request_finished"] * 2
    fields = events[0].fields
    assert (fields["n"], fields["max_tokens"], fields["top_p"], fields["priority"]) == (2, 4, 0.9, 4)
    assert fields["num_generated_tokens"] == 4
    assert fields["e2e_seconds"] >= fields["inference_seconds"] >= fields["decode_seconds"] > 0
    assert fields["time_per_output_token_seconds"] == pytest.approx(fields["decode_seconds"] / 3)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"structured_outputs": StructuredOutputs(json_object=True)}, "need a tokenizer"),
        ({"stop": ("x",)}, "need a tokenizer"),
    ],
)
def test_what_needs_a_tokenizer_is_refused_without_one(params, message):
    e = LLMEngine(tiny_model(), None, EngineConfig(block_size=4))
    with pytest.raises(RequestError, match=message):
        e.add_request(request("r", params=changed(**params)))
