"""Real tiny engines behind the protocol, against the reference libraries on the same folders."""

import base64
import json
import math

import httpx
import numpy as np
import openai
import pytest
import torch
import transformers

from lmworks.engine import AsyncLLM
from lmworks.engine.config import EngineConfig
from lmworks.engine.prompts import encode_prompt
from lmworks.models.build import build_model
from lmworks.models.hub import save_pretrained
from lmworks.proofs.tiny import LLAMA
from lmworks.server.config import AppConfig
from lmworks.server.serve import listen, run_in_background
from lmworks.server.served_model import ServedModel

WORDS = ["cat", "dog", "rain", "on", "the", "mat", "sat", "fell", "runs", "slowly", "and", "was", "seen", "nobody"]
TEXTS = [" ".join(WORDS[i % 7 : i % 7 + 1 + i]) for i in range(8)]


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A tiny encoder's folder, its tokenizer, and what the library gives: unit means of the last layer."""
    folder = tmp_path_factory.mktemp("bert")
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    tokenizer = transformers.BertTokenizerFast(vocab={w: i for i, w in enumerate(vocabulary)})
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    model = transformers.BertModel(
        transformers.BertConfig(
            vocab_size=len(vocabulary), hidden_size=24, num_hidden_layers=2, num_attention_heads=3,
            intermediate_size=32, max_position_embeddings=24,
        )
    ).eval()  # fmt: skip
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    model.save_pretrained(folder)

    @torch.no_grad()
    def encode(texts):
        rows = [model(**tokenizer(t, return_tensors="pt")).last_hidden_state[0].mean(0).numpy() for t in texts]
        return np.stack([row / np.linalg.norm(row) for row in rows])

    return folder, tokenizer, encode


@pytest.fixture(scope="module")
def judge(tmp_path_factory, bert):
    """A tiny cross-encoder's folder, and the library's scores of pairs."""
    folder, tokenizer, _ = bert
    judge = tmp_path_factory.mktemp("judge")
    tokenizer.save_pretrained(judge)
    torch.manual_seed(1)
    config = transformers.BertConfig.from_pretrained(folder, num_labels=1)
    model = transformers.BertForSequenceClassification(config).eval()
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    model.save_pretrained(judge)

    @torch.no_grad()
    def score(first, second):
        return [
            model(**tokenizer(*pair, return_tensors="pt")).logits.sigmoid().item()
            for pair in zip(first, second, strict=True)
        ]

    return judge, score


@pytest.fixture(scope="module")
def llama(tmp_path_factory, tokenizer):
    """A tiny decoder's folder and the library's model of it."""
    folder = tmp_path_factory.mktemp("llama")
    changes = {"vocab_size": tokenizer.vocab_size, "initializer_range": 0.2, "max_position_embeddings": 1024}
    config = LLAMA.model_copy(update=changes)
    save_pretrained(build_model(config, seed=1), folder, dtype=torch.float32)
    tokenizer.save(folder)
    return folder, transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


@pytest.fixture(scope="module")
def url(bert, judge, llama):
    config = EngineConfig(dtype="float32", num_kv_blocks=128)
    talker, embedder = AsyncLLM(llama[0], config=config), AsyncLLM(bert[0], config=config, kind="embed")
    judging = AsyncLLM(judge[0], config=config)
    models = {
        "talker": ServedModel("talker", talker),
        "embedder": ServedModel("embedder", embedder),
        "judge": ServedModel("judge", judging),
    }
    with listen("127.0.0.1", 0) as listener, run_in_background(models, AppConfig(), listener) as server:
        yield f"{server.url}/v1"
    talker.shutdown()
    embedder.shutdown()
    judging.shutdown()


@pytest.fixture
def client(url):
    with openai.OpenAI(base_url=url, api_key="k", max_retries=0, _strict_response_validation=True) as client:
        yield client


def test_embeddings_are_those_of_transformers(client, bert):
    _, tokenizer, encode = bert
    expected = encode(TEXTS)
    answer = client.embeddings.create(model="embedder", input=TEXTS, encoding_format="float")
    assert [item.index for item in answer.data] == list(range(len(TEXTS)))
    np.testing.assert_allclose([item.embedding for item in answer.data], expected, atol=1e-5)
    lengths = [len(tokenizer(text)["input_ids"]) for text in TEXTS]
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == sum(lengths)
    ids = tokenizer(TEXTS, add_special_tokens=False)["input_ids"]
    of_ids = client.embeddings.create(model="embedder", input=ids, encoding_format="float")
    assert [item.embedding for item in of_ids.data] == [item.embedding for item in answer.data]
    client._strict_response_validation = False  # the client asks for base64, which its types do not know
    default = client.embeddings.create(model="embedder", input=TEXTS)
    assert [item.embedding for item in default.data] == [item.embedding for item in answer.data]


def test_base64_is_little_endian_floats_and_dimensions_are_cut_and_normalized(url, bert):
    body = {"model": "embedder", "input": TEXTS[3], "encoding_format": "base64", "dimensions": 8}
    raw = base64.b64decode(httpx.post(f"{url}/embeddings", json=body).json()["data"][0]["embedding"])
    cut = bert[2](TEXTS)[3, :8]
    np.testing.assert_allclose(np.frombuffer(raw, "<f4"), cut / np.linalg.norm(cut), atol=1e-5)


def test_rerank_and_score(url, bert):
    query, *documents = TEXTS
    vectors = bert[2](TEXTS)
    expected = vectors[1:] @ vectors[0]
    body = {"model": "embedder", "query": query, "documents": [documents[0], *({"text": d} for d in documents[1:])]}
    for path in ("/v1/rerank", "/rerank", "/v2/rerank"):
        answer = httpx.post(url.removesuffix("/v1") + path, json=body).json()
        assert [r["index"] for r in answer["results"]] == np.argsort(-expected).tolist()
        scores = {r["index"]: r["relevance_score"] for r in answer["results"]}
        np.testing.assert_allclose([scores[i] for i in range(len(documents))], expected, atol=1e-5)
        assert answer["results"][0]["document"]["text"] == documents[int(expected.argmax())]
    short = httpx.post(f"{url}/rerank", json={**body, "top_n": 2, "return_documents": False}).json()["results"]
    assert len(short) == 2
    assert "document" not in short[0]
    answer = httpx.post(f"{url}/score", json={"model": "embedder", "text_1": query, "text_2": documents}).json()
    np.testing.assert_allclose([d["score"] for d in answer["data"]], expected, atol=1e-5)
    pairs = httpx.post(f"{url}/score", json={"model": "embedder", "text_1": documents, "text_2": documents}).json()
    np.testing.assert_allclose([d["score"] for d in pairs["data"]], 1, atol=1e-5)


def test_a_cross_encoder_judges_pairs(url, judge):
    query, *documents = TEXTS[:6]
    expected = judge[1]([query] * len(documents), documents)
    answer = httpx.post(f"{url}/rerank", json={"model": "judge", "query": query, "documents": documents}).json()
    scores = {r["index"]: r["relevance_score"] for r in answer["results"]}
    np.testing.assert_allclose([scores[i] for i in range(len(documents))], expected, atol=1e-5)
    assert [r["index"] for r in answer["results"]] == np.argsort(-np.array(expected)).tolist()
    answer = httpx.post(f"{url}/score", json={"model": "judge", "text_1": documents, "text_2": TEXTS[1:6]}).json()
    np.testing.assert_allclose([d["score"] for d in answer["data"]], judge[1](documents, TEXTS[1:6]), atol=1e-5)


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("embeddings", {"input": "cat " * 50}, "input"),
        ("embeddings", {"input": [[10_000]]}, "input"),
        ("embeddings", {"input": ""}, None),
        ("embeddings", {"input": "cat", "dimensions": 25}, "dimensions"),
        ("embeddings", {"input": "cat", "model": "talker"}, "model"),
        ("rerank", {"query": "cat", "documents": []}, "documents"),
        ("rerank", {"query": "cat", "documents": [3]}, "documents[0]"),
        ("score", {"text_1": ["a", "b"], "text_2": ["a", "b", "c"]}, "text_1"),
        ("completions", {"prompt": "cat"}, "model"),
        ("chat/completions", {"messages": [{"role": "user", "content": "cat"}]}, "model"),
    ],
)
def test_what_cannot_be_embedded(url, path, body, param):
    response = httpx.post(f"{url}/{path}", json={"model": "embedder", **body})
    if param is None:  # what surrounds an empty text still gives a vector
        assert response.status_code == 200
        return
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param
    cut = httpx.post(
        f"{url}/embeddings", json={"model": "embedder", "input": "cat " * 50, "truncate_prompt_tokens": -1}
    )
    assert cut.json()["usage"]["prompt_tokens"] == 24


def test_echo_scores_the_prompt_as_transformers_does(client, llama, tokenizer):
    client._strict_response_validation = False  # its types know no null for the first token, which OpenAI's API gives
    prompts = [tokenizer.encode("Bonjour! Paris is"), tokenizer.encode("Voilà 😀 the capital.")]
    answer = client.completions.create(
        model="talker", prompt=prompts, temperature=0, max_tokens=1, logprobs=1, echo=True, seed=1234
    )
    for prompt, choice in zip(prompts, answer.choices, strict=True):
        with torch.no_grad():
            table = llama[1](torch.tensor([prompt])).logits[0].float().log_softmax(-1)
        expected = [None, *table[range(len(prompt) - 1), prompt[1:]].tolist(), table[-1].max().item()]
        lists = choice.logprobs
        assert lists.token_logprobs[0] is lists.top_logprobs[0] is None
        np.testing.assert_allclose(lists.token_logprobs[1:], expected[1:], atol=1e-4)
        greedy = [
            max(top, key=top.get) == token for top, token in zip(lists.top_logprobs[1:], lists.tokens[1:], strict=True)
        ]
        assert greedy[:-1] == (table[:-1].argmax(-1) == torch.tensor(prompt[1:])).tolist()
        assert lists.text_offset[0] == 0
        assert choice.text.startswith(tokenizer.decode(prompt))
        assert lists.text_offset[-1] == len(tokenizer.decode(prompt))


def test_scoring_alone_generates_nothing(client, tokenizer):
    client._strict_response_validation = False  # as above
    answer = client.completions.create(model="talker", prompt="Paris is", max_tokens=0, echo=True, logprobs=2)
    choice = answer.choices[0]
    assert (choice.text, choice.finish_reason) == ("Paris is", "length")
    assert len(choice.logprobs.tokens) == len(encode_prompt(tokenizer, "Paris is"))
    assert len(choice.logprobs.top_logprobs[1]) in (2, 3), "the token itself is always among them"
    chunks = client.completions.create(model="talker", prompt="Paris is", max_tokens=0, echo=True, stream=True)
    assert "".join(chunk.choices[0].text for chunk in chunks) == "Paris is"


def test_extras_of_vllm(client, tokenizer):
    body = {"return_token_ids": True, "prompt_logprobs": 1}
    choice = client.completions.create(model="talker", prompt="Paris", max_tokens=3, extra_body=body).choices[0]
    ids = encode_prompt(tokenizer, "Paris")
    assert choice.prompt_token_ids == ids
    assert len(choice.token_ids) == 3
    assert choice.prompt_logprobs[0] is None
    assert str(ids[1]) in choice.prompt_logprobs[1]
    assert {"logprob", "rank", "decoded_token"} == set(choice.prompt_logprobs[1][str(ids[1])])
    answer = client.chat.completions.create(
        model="talker", messages=[{"role": "user", "content": "hi"}], max_tokens=2, extra_body=body
    )
    assert len(answer.prompt_token_ids) == len(answer.prompt_logprobs) == answer.usage.prompt_tokens
    assert len(answer.choices[0].token_ids) == 2
    cut = client.completions.create(
        model="talker", prompt="Paris is the capital", max_tokens=1, extra_body={"truncate_prompt_tokens": 2}
    )
    assert cut.usage.prompt_tokens == 2


def test_best_of_returns_the_likeliest(client):
    ask = {"model": "talker", "prompt": "Paris", "max_tokens": 4, "seed": 3}
    every = client.completions.create(**ask, n=5, logprobs=0).choices
    best = client.completions.create(**ask, n=2, best_of=5)
    ranked = sorted(every, key=lambda c: -math.fsum(c.logprobs.token_logprobs))
    assert [c.text for c in best.choices] == [c.text for c in ranked[:2]]
    assert best.choices[0].logprobs is None
    assert best.usage.completion_tokens == 20, "all of them were generated"


def test_beams_are_those_of_transformers(client, llama, tokenizer):
    ids = tokenizer.encode("Paris is")
    expected = llama[1].generate(
        torch.tensor([ids]), num_beams=3, num_return_sequences=3, max_new_tokens=5, do_sample=False,
        eos_token_id=list(tokenizer.eos_token_ids), pad_token_id=0,
    )  # fmt: skip
    answer = client.completions.create(
        model="talker", prompt=ids, n=3, max_tokens=5, extra_body={"use_beam_search": True, "return_token_ids": True}
    )
    assert [c.token_ids for c in answer.choices] == expected[:, len(ids) :].tolist()
    with pytest.raises(openai.BadRequestError):
        client.completions.create(model="talker", prompt=ids, stream=True, extra_body={"use_beam_search": True})


def test_tokens_there_and_back(url, tokenizer):
    root = url.removesuffix("/v1")
    told = httpx.post(f"{root}/tokenize", json={"prompt": "Paris 😀", "return_token_strs": True}).json()
    assert told["tokens"] == encode_prompt(tokenizer, "Paris 😀")
    assert told["count"] == len(told["tokens"]) == len(told["token_strs"])
    bare = httpx.post(f"{root}/tokenize", json={"prompt": "Paris 😀", "add_special_tokens": False}).json()["tokens"]
    assert bare == tokenizer.encode("Paris 😀")
    assert httpx.post(f"{root}/detokenize", json={"tokens": bare}).json() == {"prompt": "Paris 😀"}
    chat = httpx.post(f"{root}/tokenize", json={"model": "talker", "messages": [{"role": "user", "content": "hi"}]})
    assert tokenizer.decode(chat.json()["tokens"], skip_special_tokens=False).endswith("<|im_start|>assistant\n")
    assert httpx.post(f"{root}/tokenize", json={"model": "embedder", "prompt": "cat"}).json()["max_model_len"] == 24
    assert httpx.post(f"{root}/tokenize", json={}).status_code == 400
    assert httpx.post(f"{root}/detokenize", json={"tokens": [-1]}).status_code == 400
    assert httpx.get(f"{root}/tokenizer_info").json()["chat_template"] == tokenizer.chat_template


def test_models_say_what_they_are_for(client):
    cards = {model.id: model for model in client.models.list()}
    assert cards["embedder"].capabilities == ["embedding"]
    assert cards["talker"].capabilities == ["completion", "chat"]


def test_structure_and_a_named_tool_hold(client):
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    ask = {"model": "talker", "messages": [{"role": "user", "content": "hi"}], "seed": 1}
    answer = client.chat.completions.create(**ask, response_format=form).choices[0]
    assert json.loads(answer.message.content) in ({"a": 1}, {"a": 2})
    tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
    named = {"type": "function", "function": {"name": "f"}}
    answer = client.chat.completions.create(
        **ask, tools=[tool], tool_choice=named, parallel_tool_calls=False, max_tokens=60
    ).choices[0]
    assert answer.finish_reason == "tool_calls"
    (call,) = answer.message.tool_calls
    assert call.function.name == "f"
    assert json.loads(call.function.arguments) in ({"a": 1}, {"a": 2})


@pytest.mark.parametrize(
    "extreme",
    [
        {"temperature": 5e-324},
        {"top_p": 5e-324},
        {"min_p": 1.0, "top_k": 1},
        {"typical_p": 5e-324},
        {"repetition_penalty": 0.01},
        {"repetition_penalty": 10, "presence_penalty": -2, "frequency_penalty": -2},
        {"logit_bias": {"5": -100, "6": 100}},
        {"allowed_token_ids": [5], "logit_bias": {"5": -100}},
        {"bad_words": ["a", "e", "i", "o", "u"], "min_tokens": 5},
        {"seed": -(2**63)},
        {"n": 64, "stop": ["x"] * 64},
        {"n": 8, "use_beam_search": True, "length_penalty": -10},
        {"n": 4, "use_beam_search": True, "num_beam_groups": 2, "diversity_penalty": 100, "length_penalty": 10},
        {"prompt_logprobs": 20, "logprobs": 20, "echo": True},
        {"priority": 2**31 - 1, "cache_salt": "x" * 256, "truncate_prompt_tokens": 1},
        {"truncate_prompt_tokens": 0},
    ],
)
def test_extreme_values_are_answered_and_leave_the_engine_whole(url, extreme):
    body = {"model": "talker", "prompt": "Paris is the capital", "max_tokens": 6, **extreme}
    answer = httpx.post(f"{url}/completions", json=body, timeout=30)
    assert answer.status_code == 200, answer.text
    assert "NaN" not in answer.text
    body = {"model": "talker", "prompt": "Paris", "max_tokens": 2, "ignore_eos": True}
    plain = httpx.post(f"{url}/completions", json=body)
    assert plain.json()["usage"]["completion_tokens"] == 2


def test_with_tools_and_a_form_it_calls_or_keeps_to_the_form(client, tokenizer):
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
    for begin, reason in (("{", "stop"), ("[", "tool_calls")):
        answer = client.chat.completions.create(
            model="talker", messages=[{"role": "user", "content": "hi"}], tools=[tool], response_format=form, seed=1,
            parallel_tool_calls=False, logit_bias={str(tokenizer.encode(begin)[0]): 100},
        ).choices[0]  # fmt: skip
        assert answer.finish_reason == reason
        said = answer.message.tool_calls[0].function.arguments if answer.message.tool_calls else answer.message.content
        assert json.loads(said) in ({"a": 1}, {"a": 2})
