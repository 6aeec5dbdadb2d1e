"""A model behind an endpoint: what is sent, what is read, what is tried again and what is not."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from lmworks.client.http_generator import HttpGenerator
from lmworks.core.errors import ConfigError, EndpointError
from lmworks.core.generation import Generator
from lmworks.core.messages import Message
from lmworks.core.sampling import SamplingParams

ANSWER = {
    "id": "x", "usage": {"prompt_tokens": 5, "completion_tokens": 7},
    "choices": [{"message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"},
                {"message": {"role": "assistant", "content": None}, "finish_reason": "length"}],
}  # fmt: skip


@pytest.fixture
def endpoint():
    """Replies `(status, body, headers)` in turn, the last one for ever; what was sent is in `endpoint.seen`."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            server.seen.append((self.path, dict(self.headers), json.loads(body)))
            status, text, headers = server.replies.pop(0) if len(server.replies) > 1 else server.replies[0]
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write((text if isinstance(text, str) else json.dumps(text)).encode())

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.seen, server.replies = [], [(200, ANSWER, {})]
        server.url = f"http://127.0.0.1:{server.server_port}/v1"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def ask(endpoint, **more):
    generator = HttpGenerator(endpoint.url, "m", "secret", wait=0.01, **more)
    assert isinstance(generator, Generator)
    params = SamplingParams(n=2, temperature=0.5, seed=3, stop=("X",), top_k=4)
    return generator.chat([[Message(role="user", content="q")]], params)[0]


def test_requests_and_answers_have_the_shape_of_openai(endpoint):
    output = ask(endpoint)
    assert [(one.text, one.finish_reason) for one in output.outputs] == [("hi", "stop"), ("", "length")]
    assert output.num_tokens == (5, 7)
    ((path, headers, body),) = endpoint.seen
    assert (path, headers["Authorization"]) == ("/v1/chat/completions", "Bearer secret")
    assert body == {"model": "m", "messages": [{"role": "user", "content": "q"}], "n": 2, "temperature": 0.5,
                    "top_p": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0, "seed": 3, "top_k": 4,
                    "stop": ["X"]}  # fmt: skip
    endpoint.replies = [(200, {"choices": [{"text": "on", "finish_reason": "stop"}]}, {})]
    (output,) = HttpGenerator(endpoint.url + "/", "m").generate(["go"], SamplingParams(max_tokens=3))
    assert (output.outputs[0].text, output.prompt) == ("on", "go")
    assert endpoint.seen[-1][0] == "/v1/completions"
    assert "Authorization" not in endpoint.seen[-1][1]


@pytest.mark.parametrize("reply", [(503, "busy", {}), (429, "slow down", {"Retry-After": "0"}), (200, '{"choi', {})])
def test_what_passes_is_tried_again(reply, endpoint):
    endpoint.replies = [reply, reply, (200, ANSWER, {})]
    assert ask(endpoint).outputs[0].text == "hi"
    assert len(endpoint.seen) == 3
    endpoint.replies = [reply]
    with pytest.raises(EndpointError):
        ask(endpoint, retries=1)
    assert len(endpoint.seen) == 5


@pytest.mark.parametrize(
    ("reply", "message"),
    [((401, "no such key", {}), "401 no such key"), ((400, "x", {}), "400"), ((200, {"x": 1}, {}), "something else"),
     ((200, [], {}), "something else"), ((302, "", {"Location": "http://127.0.0.1:9/v1"}), "302")],
)  # fmt: skip
def test_what_does_not_pass_is_an_error_at_once(reply, message, endpoint):
    endpoint.replies = [reply]
    with pytest.raises(EndpointError, match=message) as caught:
        ask(endpoint)
    assert len(endpoint.seen) == 1
    assert "secret" not in str(caught.value)


def test_nobody_there_is_named_and_no_address_is_refused():
    with pytest.raises(EndpointError, match="refused"):
        HttpGenerator("http://127.0.0.1:9/v1", "m", retries=1, wait=0.0).generate(["x"], SamplingParams())
    for url in ("", "host/v1", "file:///etc/passwd"):
        with pytest.raises(ConfigError, match="no address"):
            HttpGenerator(url, "m")
