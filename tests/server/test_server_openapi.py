"""The OpenAPI document, and whether the server keeps to it whatever is sent."""

import contextlib

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable

from lmworks.engine import AsyncLLM
from lmworks.engine.config import EngineConfig
from lmworks.models.build import build_model
from lmworks.proofs.tiny import LLAMA
from lmworks.server.config import AppConfig
from lmworks.server.serve import listen, run_in_background
from lmworks.server.served_model import ServedModel

EXAMPLES = 25


def references(value):
    if isinstance(value, dict):
        yield from ([value["$ref"]] if "$ref" in value else [])
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from references(item)


def test_the_document_describes_every_body(url):
    document = httpx.get(f"{url}/openapi.json").json()
    schemas = document["components"]["schemas"]
    assert {reference.rpartition("/")[2] for reference in references(document)} <= schemas.keys()
    chat = document["paths"]["/v1/chat/completions"]["post"]
    body = chat["requestBody"]["content"]["application/json"]["schema"]["$ref"]
    assert body.endswith("/ChatCompletionRequest")
    assert {"messages", "tools", "response_format", "top_k"} <= schemas["ChatCompletionRequest"]["properties"].keys()
    assert schemas["ChatCompletionRequest"]["required"] == ["messages"]
    assert set(chat["responses"]["200"]["content"]) == {"application/json", "text/event-stream"}
    assert chat["responses"]["4XX"]["content"]["application/json"]["schema"]["$ref"].endswith("/ErrorBody")
    for path, operations in document["paths"].items():
        assert all(method == "get" or "requestBody" in o or "{" in path for method, o in operations.items()), path


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_whatever_is_sent_nothing_breaks(tokenizer):
    """Schemathesis: bodies from the document and bodies that break it, at every route."""
    import schemathesis

    schemathesis.checks.load_all_checks()
    kept = schemathesis.checks.CHECKS.get_by_names(
        ["not_a_server_error", "content_type_conformance", "response_schema_conformance", "status_code_conformance"]
    )
    changes = {"vocab_size": tokenizer.vocab_size, "max_position_embeddings": 64}
    llm = AsyncLLM(build_model(LLAMA.model_copy(update=changes), seed=0), tokenizer, EngineConfig(dtype="float32"))
    answered = set()
    with (
        listen("127.0.0.1", 0) as listener,
        run_in_background({"m": ServedModel("m", llm)}, AppConfig(), listener) as server,
    ):
        schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
        for operation in (found.ok() for found in schema.get_all_operations()):
            for mode in schemathesis.GenerationMode:

                @settings(
                    max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
                )
                @given(case=operation.as_strategy(generation_mode=mode))
                def holds(case):
                    if isinstance(case.body, dict) and isinstance(case.body.get("model"), str):
                        case.body["model"] = "m"  # chance would never find it, nor a response that is stored
                        case.body.pop("previous_response_id", None)
                    response = case.call_and_validate(checks=kept, timeout=60)
                    if response.status_code == 200:
                        answered.add(case.operation.label)

                with contextlib.suppress(Unsatisfiable):  # a route without parameters has nothing to break
                    holds()
    llm.shutdown()
    assert {"POST /v1/completions", "POST /tokenize", "GET /v1/models"} <= answered, "not everything is refused"
