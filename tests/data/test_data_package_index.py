"""Downloads against package indexes on disk and on the loopback: found, verified, cached, never trusted."""

import base64
import hashlib
import http.server
import json
import threading
from types import SimpleNamespace

import pytest

from lmworks.core.errors import DownloadError
from lmworks.data.acquisition import index_settings, package_index, web
from lmworks.data.acquisition.index_settings import IndexSettings, npm_settings, redact
from lmworks.data.acquisition.package_index import PackageFile, cache_folder, obtain

CONTENT = b"the content of a wheel " * 1000
NAME = "thing-1.0-py3-none-any.whl"
DIGEST = hashlib.sha256(CONTENT).hexdigest()
WHEEL = PackageFile("pypi", "thing", "1.0", NAME, len(CONTENT), DIGEST)


@pytest.fixture(autouse=True)
def surroundings(tmp_path, monkeypatch):
    """A cache of its own, no waiting between attempts, and whatever indexes a test names."""
    monkeypatch.setenv("LMWORKS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(web.time, "sleep", lambda seconds: None)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def use(monkeypatch):
    def choose(*indexes):
        settings = IndexSettings(indexes=indexes, timeout=5.0)
        monkeypatch.setattr(package_index.IndexSettings, "read", classmethod(lambda cls: settings))

    return choose


def file_index(folder, content=CONTENT, digest=DIGEST):
    page = folder / "simple" / "thing"
    page.mkdir(parents=True)
    (folder / NAME).write_bytes(content)
    fragment = f"#sha256={digest}" if digest else ""
    (page / "index.html").write_text(
        f'<a href="../../other.whl">other.whl</a><a href="../../{NAME}{fragment}">{NAME}</a>'
    )
    return (folder / "simple").as_uri()


class Server:
    """A loopback server whose answers are a table of path to (status, headers, body)."""

    def __init__(self):
        self.answers, self.requests = {}, []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                outer.requests.append(SimpleNamespace(path=self.path, headers=dict(self.headers)))
                answer = outer.answers.get(self.path, (404, {}, b""))
                status, headers, body = answer.pop(0) if isinstance(answer, list) else answer
                self.send_response(status)
                for key, value in {"Content-Length": str(len(body)), **headers}.items():
                    self.send_header(key, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args):
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"

    def list_wheel(self, digest=DIGEST, content=CONTENT):
        listing = {"files": [{"filename": NAME, "url": f"../../files/{NAME}", "hashes": {"sha256": digest}}]}
        kind = {"Content-Type": "application/vnd.pypi.simple.v1+json"}
        self.answers["/simple/thing/"] = (200, kind, json.dumps(listing).encode())
        self.answers[f"/files/{NAME}"] = (200, {}, content)

    def paths(self):
        return [request.path for request in self.requests]


@pytest.fixture
def server():
    server = Server()
    thread = threading.Thread(target=server.http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.http.shutdown()
    thread.join()
    server.http.server_close()


def leftovers():
    return sorted(f.name for f in cache_folder().rglob("*") if f.is_file())


def test_a_file_index_is_read_and_the_second_time_needs_no_index(tmp_path, use):
    use(file_index(tmp_path / "index"))
    path = obtain(WHEEL)
    assert path.read_bytes() == CONTENT
    use("file:///nowhere")
    assert obtain(WHEEL) == path
    assert leftovers() == [NAME]


def test_a_json_index_is_read(server, use):
    server.list_wheel()
    use(f"{server.url}/simple/")
    assert obtain(WHEEL).read_bytes() == CONTENT
    assert "application/vnd.pypi.simple.v1+json" in server.requests[0].headers["Accept"]


def test_a_damaged_cache_is_fetched_again(server, use):
    server.list_wheel()
    use(f"{server.url}/simple")
    path = obtain(WHEEL)
    path.write_bytes(CONTENT[:-1] + b"!")
    assert obtain(WHEEL).read_bytes() == CONTENT
    assert server.paths().count(f"/files/{NAME}") == 2


@pytest.mark.parametrize("announced", [DIGEST, "", hashlib.sha256(b"x").hexdigest()])
def test_a_tampered_file_is_refused_and_not_kept(tmp_path, use, announced):
    use(file_index(tmp_path / "index", CONTENT[:-1] + b"!", announced))
    with pytest.raises(DownloadError, match=r"not the pinned one|another file"):
        obtain(WHEEL)
    assert leftovers() == []


@pytest.mark.parametrize(("content", "reason"), [(CONTENT + b"!", "more than"), (CONTENT[:-1], "only")])
def test_a_file_of_another_size_is_refused(tmp_path, use, content, reason):
    use(file_index(tmp_path / "index", content))
    with pytest.raises(DownloadError, match=reason):
        obtain(WHEEL)
    assert leftovers() == []


def test_an_honest_index_after_a_tampered_one_is_used(tmp_path, use):
    use(file_index(tmp_path / "bad", b"evil"), file_index(tmp_path / "good"))
    assert obtain(WHEEL).read_bytes() == CONTENT


def test_a_passing_failure_and_a_broken_connection_are_tried_again(server, use):
    server.list_wheel()
    good = server.answers[f"/files/{NAME}"]
    cut = (200, {"Content-Length": str(len(CONTENT))}, CONTENT[:5000])
    server.answers[f"/files/{NAME}"] = [(503, {}, b""), cut, good]
    use(f"{server.url}/simple")
    assert obtain(WHEEL).read_bytes() == CONTENT
    assert server.paths().count(f"/files/{NAME}") == 3


def test_no_network_names_every_index_the_remedy_and_no_password(use):
    use("http://user:secret@127.0.0.1:9/simple", "file:///nowhere/simple")
    with pytest.raises(DownloadError) as caught:
        obtain(WHEEL)
    message = str(caught.value)
    assert "127.0.0.1:9/simple" in message
    assert "nowhere" in message
    assert "PIP_INDEX_URL" in message
    assert DIGEST in message
    assert "secret" not in message


def test_a_missing_project_is_said(server, use):
    server.list_wheel()
    use(f"{server.url}/simple")
    with pytest.raises(DownloadError, match=r"does not list thing-2\.0"):
        obtain(PackageFile("pypi", "thing", "2.0", "thing-2.0-py3-none-any.whl", 1, DIGEST))
    with pytest.raises(DownloadError, match="404"):
        obtain(PackageFile("pypi", "unknown", "2.0", "unknown.whl", 1, DIGEST))


def test_credentials_go_to_their_index_and_not_along_a_redirect(server, use):
    server.list_wheel()
    server.answers["/simple/thing/"] = (302, {"Location": "/moved/"}, b"")
    listing = {"files": [{"filename": NAME, "url": f"{server.url}/files/{NAME}", "hashes": {}}]}
    server.answers["/moved/"] = (200, {"Content-Type": "application/json"}, json.dumps(listing).encode())
    use(server.url.replace("http://", "http://me:pass%40word@") + "/simple")
    obtain(WHEEL)
    sent = {request.path: request.headers.get("Authorization") for request in server.requests}
    assert sent["/simple/thing/"] == "Basic " + base64.b64encode(b"me:pass@word").decode()
    assert sent["/moved/"] is None


def test_an_npm_tarball_is_found_by_its_version(server, monkeypatch):
    monkeypatch.setenv("npm_config_registry", f"{server.url}/npm/")
    file = PackageFile("npm", "@scope/poems", "2.0.1", "poems-2.0.1.tgz", len(CONTENT), DIGEST)
    versions = {"versions": {"2.0.1": {"dist": {"tarball": f"{server.url}/t/poems.tgz"}}}}
    server.answers["/npm/@scope%2Fpoems"] = (200, {}, json.dumps(versions).encode())
    server.answers["/t/poems.tgz"] = (200, {}, CONTENT)
    assert obtain(file).read_bytes() == CONTENT


def test_a_cache_that_cannot_be_made_is_said(tmp_path, monkeypatch, use):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LMWORKS_CACHE", str(tmp_path / "file"))
    use()
    with pytest.raises(DownloadError, match="LMWORKS_CACHE"):
        obtain(WHEEL)


def test_pip_s_own_configuration_is_honored(tmp_path, monkeypatch):
    for name in [n for n in index_settings.os.environ if n.startswith("PIP_")]:
        monkeypatch.delenv(name)
    config = tmp_path / "pip.conf"
    config.write_text(
        "[global]\nindex-url = https://one.example/simple\nextra-index-url = https://two.example/simple\n"
        "  https://three.example/simple\ncert = /ca.pem\ntimeout = 7\nproxy = http://proxy.example:3128\n"
    )
    monkeypatch.setenv("PIP_CONFIG_FILE", str(config))
    settings = IndexSettings.read()
    assert settings.indexes[0] == "https://one.example/simple"
    assert set(settings.indexes[1:]) >= {"https://two.example/simple", "https://three.example/simple"}
    assert (settings.certificate, settings.proxy, settings.timeout) == ("/ca.pem", "http://proxy.example:3128", 7.0)
    monkeypatch.setenv("PIP_INDEX_URL", "https://env.example/simple")
    assert IndexSettings.read().indexes[0] == "https://env.example/simple"


def test_without_any_configuration_the_public_registries_are_used(tmp_path, monkeypatch):
    monkeypatch.setattr(index_settings, "_pip_values", dict)
    assert IndexSettings.read() == IndexSettings(("https://pypi.org/simple",))
    monkeypatch.setattr(index_settings.Path, "home", classmethod(lambda cls: tmp_path))
    for name in ("npm_config_registry", "NPM_CONFIG_REGISTRY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("npm_config_globalconfig", str(tmp_path / "none"))
    monkeypatch.chdir(tmp_path)
    assert npm_settings("poems").indexes == ("https://registry.npmjs.org",)
    (tmp_path / ".npmrc").write_text("registry = https://npm.example/\n")
    assert npm_settings("poems").indexes == ("https://npm.example/",)


def test_addresses_are_shown_without_credentials():
    assert redact("https://u:p@host:1/simple") == "https://host:1/simple"


def test_only_known_schemes_are_opened():
    with pytest.raises(ValueError, match="https, http or file"):
        web.WebClient().open("ftp://host/file")
