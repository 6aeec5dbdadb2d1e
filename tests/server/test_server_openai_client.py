"""The official client against the server, without special cases."""

import openai
import pytest
from scripted_engine import REPLY

from lmworks.core.sampling import SamplingParams
from lmworks.server.config import AppConfig

ASK = [{"role": "user", "content": "Capital of France?"}]


def test_chat_completion(client, engine, tokenizer):
    answer = client.chat.completions.create(model="talker", messages=ASK)
    assert answer.choices[0].message.content == REPLY
    assert answer.choices[0].finish_reason == "stop"
    prompt, params = engine.asked[0]
    assert tokenizer.decode(prompt, skip_special_tokens=False).endswith("<|im_start|>assistant\n")
    assert answer.usage.prompt_tokens == len(prompt)
    assert answer.usage.completion_tokens == len(tokenizer.encode(REPLY))
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.id.startswith("chatcmpl-")
    assert answer.model == "talker"
    assert params.max_tokens is None
    assert params.temperature == 1.0


def test_chat_stream_says_the_same_in_the_order_of_openai(client, tokenizer):
    stream = client.chat.completions.create(
        model="talker", messages=ASK, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert len({c.id for c in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == REPLY
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == len(tokenizer.encode(REPLY))
    assert all(c.usage is None for c in chunks[:-1])


def test_every_decoding_field_reaches_the_engine(client, engine):
    client.chat.completions.create(
        model="talker", messages=ASK, n=2, temperature=0.3, top_p=0.9, presence_penalty=0.5, frequency_penalty=-0.5,
        logit_bias={"7": -100}, max_completion_tokens=5, max_tokens=9, seed=11, stop="zzz", user="me", store=False,
        metadata={"a": "b"}, service_tier="auto", verbosity="low", prompt_cache_key="k", safety_identifier="s",
        prediction={"type": "content", "content": "x"},
        extra_body={
            "top_k": -1, "min_p": 0.05, "repetition_penalty": 1.1, "ignore_eos": True, "stop_token_ids": [3],
            "typical_p": 0.9, "min_tokens": 1, "bad_words": ["no"], "allowed_token_ids": [4, 5, 6],
            "include_stop_str_in_output": True, "skip_special_tokens": False, "priority": -1, "cache_salt": "mine",
        },
    )  # fmt: skip
    assert engine.asked[0][1] == SamplingParams(
        n=2, temperature=0.3, top_p=0.9, top_k=0, min_p=0.05, repetition_penalty=1.1, presence_penalty=0.5,
        frequency_penalty=-0.5, logit_bias={7: -100.0}, max_tokens=5, stop=("zzz",), stop_token_ids=(3,),
        ignore_eos=True, seed=11, typical_p=0.9, min_tokens=1, bad_words=("no",), allowed_token_ids=(4, 5, 6),
        include_stop_str_in_output=True, skip_special_tokens=False,
    )  # fmt: skip
    assert engine.options[0]["priority"] == -1
    assert engine.options[0]["cache_salt"].endswith("/mine"), "joined with the salt of the key"


def test_n_choices_and_length(client):
    answer = client.chat.completions.create(model="talker", messages=ASK, n=3, max_tokens=2)
    assert [c.index for c in answer.choices] == [0, 1, 2]
    assert {c.finish_reason for c in answer.choices} == {"length"}
    assert answer.usage.completion_tokens == 6
    chunks = list(client.chat.completions.create(model="talker", messages=ASK, n=3, max_tokens=2, stream=True))
    assert sorted(c.choices[0].index for c in chunks if c.choices[0].finish_reason) == [0, 1, 2]


def test_chat_logprobs_rebuild_the_text_and_stay_finite(client):
    answer = client.chat.completions.create(model="talker", messages=ASK, logprobs=True, top_logprobs=2)
    entries = answer.choices[0].logprobs.content
    assert b"".join(bytes(e.bytes) for e in entries).decode() == REPLY
    assert entries[0].top_logprobs[0].token == entries[0].token
    assert entries[0].top_logprobs[1].logprob == -9999.0
    stream = client.chat.completions.create(model="talker", messages=ASK, logprobs=True, stream=True)
    streamed = [e for c in stream for e in (c.choices[0].logprobs.content if c.choices[0].logprobs else [])]
    assert [e.bytes for e in streamed] == [e.bytes for e in entries]


def test_content_as_text_parts_and_developer_role(client, engine, tokenizer):
    parts = [{"type": "text", "text": "Be"}, {"type": "text", "text": "brief"}]
    client.chat.completions.create(model="talker", messages=[{"role": "developer", "content": parts}, *ASK])
    prompt = tokenizer.decode(engine.asked[0][0], skip_special_tokens=False)
    assert "<|im_start|>system\nBe\nbrief<|im_end|>" in prompt


def test_completions_of_text_ids_and_lists(client, engine, tokenizer):
    ids = tokenizer.encode("Paris")
    answer = client.completions.create(model="base", prompt="Paris", max_tokens=50, echo=True)
    assert answer.choices[0].text == "Paris and so on."
    answer = client.completions.create(model="talker", prompt=[ids, ids[:1]], n=2, max_tokens=3, echo=True)
    assert [c.index for c in answer.choices] == [0, 1, 2, 3]
    assert engine.asked[0][0] == ids
    assert answer.choices[0].text.startswith("Paris")
    assert client.completions.create(model="talker", prompt=ids).usage.completion_tokens == 16


def test_completions_stream_with_logprobs_and_usage(client):
    client._strict_response_validation = False  # its type wants a finish_reason in every chunk, which OpenAI's lack too
    stream = client.completions.create(
        model="talker", prompt=["a", "b"], max_tokens=8, stream=True, echo=True, stream_options={"include_usage": True}
    )
    texts = {0: "", 1: ""}
    *chunks, last = list(stream)
    for chunk in chunks:
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert last.usage.completion_tokens == 16
    assert texts[0][1:] == texts[1][1:]
    assert (texts[0][0], texts[1][0]) == ("a", "b")
    whole = client.completions.create(model="talker", prompt="a", max_tokens=8, logprobs=1).choices[0].logprobs
    stream = client.completions.create(model="talker", prompt="a", max_tokens=8, logprobs=1, stream=True)
    parts = [c.choices[0].logprobs for c in stream]
    assert [o for p in parts for o in p.text_offset] == whole.text_offset
    assert "".join(whole.tokens)[whole.text_offset[3] :] == "".join(whole.tokens[3:])


def test_models(client):
    models = client.models.list().data
    assert [m.id for m in models] == ["talker", "base"]
    assert models[0].capabilities == ["completion", "chat"]
    assert models[1].capabilities == ["completion"]
    assert client.models.retrieve("base").max_model_len == 200
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nobody")


def test_errors_are_the_client_s_own_classes(client):
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="nobody", messages=ASK)
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="talker", messages=[{"role": "user", "content": "x" * 500}])
    assert caught.value.code == "context_length_exceeded"
    assert caught.value.param == "messages"
    with pytest.raises(openai.BadRequestError, match="/v1/completions"):
        client.chat.completions.create(model="base", messages=ASK)


def test_wrong_key_is_refused(start):
    url = start(api_key="secret").url
    wrong = openai.OpenAI(base_url=f"{url}/v1", api_key="wrong", max_retries=0)
    with wrong as client, pytest.raises(openai.AuthenticationError):
        client.models.list()
    with openai.OpenAI(base_url=f"{url}/v1", api_key="secret", max_retries=0) as client:
        assert client.models.list().data[0].id == "talker"


def test_the_key_is_written_nowhere():
    config = AppConfig(api_key="secret")
    assert "secret" not in repr(config)
    assert "secret" not in str(config.to_dict())


def test_an_adapter_is_a_model_of_its_own(client, engine, url):
    engine.adapters = {"poet": "/adapters/poet"}
    answer = client.chat.completions.create(model="poet", messages=ASK)
    assert answer.model == "poet"
    assert engine.options[-1]["adapter"] == "poet"
    client.completions.create(model="talker", prompt="hi", max_tokens=1)
    assert engine.options[-1]["adapter"] is None
    card = client.models.retrieve("poet")
    assert (card.parent, card.root) == ("talker", "poet")
    assert [m.id for m in client.models.list()] == ["talker", "poet", "base"]
    assert {request_id.partition("/")[0] for request_id in engine.ids} == {"talker"}
    engine.adapters = {}
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="poet", messages=ASK)
