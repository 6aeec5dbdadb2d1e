"""What can go wrong while a package is fetched: killed, twice at once, no room, odd settings; and no secret is told."""

import base64
import hashlib
import http.server
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest

from lmworks.core.errors import ArtifactError, DiskFullError, DownloadError
from lmworks.data.acquisition import index_settings, package_index, web
from lmworks.data.acquisition.download_cache import cache_folder
from lmworks.data.acquisition.fetch import FetchConfig, fetch
from lmworks.data.acquisition.index_settings import IndexSettings, npm_settings, redact
from lmworks.data.acquisition.package_index import PackageFile, obtain

CONTENT = os.urandom(3 << 20)
NAME = "thing-1.0-py3-none-any.whl"
WHEEL = PackageFile("pypi", "thing", "1.0", NAME, len(CONTENT), hashlib.sha256(CONTENT).hexdigest())
POEMS = PackageFile("npm", "@scope/poems", "2.0", "poems-2.0.tgz", len(CONTENT), WHEEL.sha256)
FETCH = f"from lmworks.data.acquisition.package_index import PackageFile, obtain; print(obtain({WHEEL!r}))"


@pytest.fixture(autouse=True)
def surroundings(tmp_path, monkeypatch):
    """A cache and settings of its own, and no waiting between attempts."""
    for name in list(os.environ):
        if name.lower().startswith(("pip_", "npm_config_")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("LMWORKS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("npm_config_userconfig", str(tmp_path / "npmrc"))
    monkeypatch.setenv("npm_config_globalconfig", os.devnull)
    monkeypatch.setattr(web.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(index_settings.subprocess, "run", no_pip)
    monkeypatch.chdir(tmp_path)


def no_pip(*args, **kwargs):
    """Asking pip takes a second; without it its environment variables count."""
    raise OSError


@pytest.fixture
def index():
    """An index and a registry on the loopback; `seconds` is how long a file takes to come."""
    shared = SimpleNamespace(seconds=0.0, requests=[], secret=None)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            shared.requests.append((self.path, self.headers.get("Authorization")))
            if shared.secret and self.headers.get("Authorization") != shared.secret:
                self.send_error(401)
            elif self.path.endswith(NAME):
                self.answer(CONTENT, shared.seconds)
            elif self.path == "/simple/thing/":
                self.answer(f'<a href="/files/{NAME}#sha256={WHEEL.sha256}">{NAME}</a>'.encode())
            elif self.path == "/npm/@scope%2Fpoems":
                self.answer(
                    json.dumps({"versions": {"2.0": {"dist": {"tarball": f"{shared.url}/npm/-/{NAME}"}}}}).encode()
                )
            else:
                self.answer(b"[]", kind="application/json")

        def answer(self, body, seconds=0.0, kind="text/html"):
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            half = len(body) // 2
            try:
                self.wfile.write(body[:half])
                time.sleep(seconds)
                self.wfile.write(body[half:])
            except OSError:  # the other side was killed
                pass

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    shared.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield shared
    server.shutdown()
    thread.join()
    server.server_close()


def kept():
    return sorted(f.name for f in cache_folder().rglob("*") if f.is_file())


def test_what_was_killed_in_the_middle_leaves_nothing_behind_the_next_time(index, monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", f"{index.url}/simple")
    index.seconds = 30
    with subprocess.Popen([sys.executable, "-c", FETCH], stderr=subprocess.DEVNULL) as killed:
        until = time.monotonic() + 30
        while not any(f.stat().st_size for f in cache_folder().rglob("*") if f.is_file()):
            assert time.monotonic() < until
            time.sleep(0.02)
        killed.send_signal(signal.SIGKILL)
    assert kept() == [f".{NAME}.partial"]
    index.seconds = 0
    assert obtain(WHEEL).read_bytes() == CONTENT
    assert kept() == [NAME]


def test_those_who_want_the_same_file_wait_for_the_one_who_fetches_it(index, monkeypatch, capsys):
    monkeypatch.setenv("PIP_INDEX_URL", f"{index.url}/simple")
    index.seconds = 0.5
    found = []
    threads = [threading.Thread(target=lambda: found.append(obtain(WHEEL))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert f"Another process writes {NAME}; waiting" in capsys.readouterr().err
    assert [path for path, _ in index.requests].count(f"/files/{NAME}") == 1
    assert kept() == [NAME]


def test_one_who_waited_for_a_failure_tries_for_itself(index, monkeypatch):
    """The first is refused, so its partial file vanishes while the second waits for it."""
    settings = [IndexSettings(indexes=()), IndexSettings(indexes=(f"{index.url}/simple",))]

    def read(cls):
        found = settings.pop(0)
        time.sleep(0.3 if not found.indexes else 0)
        return found

    monkeypatch.setattr(web.time, "sleep", time.sleep)
    monkeypatch.setattr(package_index.IndexSettings, "read", classmethod(read))
    outcomes = []

    def one():
        try:
            outcomes.append(obtain(WHEEL).name)
        except DownloadError:
            outcomes.append("refused")

    threads = [threading.Thread(target=one) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["refused", NAME]
    assert kept() == [NAME]


def test_no_room_is_said_and_nothing_stays(index, monkeypatch):
    import resource

    monkeypatch.setenv("PIP_INDEX_URL", f"{index.url}/simple")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))
    try:
        with pytest.raises(DiskFullError):
            obtain(WHEEL)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert kept() == []


def test_a_cache_that_cannot_be_written_serves_what_it_holds(index, tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", f"{index.url}/simple")
    path = obtain(WHEEL)

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    assert obtain(WHEEL) == path
    path.unlink()
    with pytest.raises(DownloadError, match="cannot be written: Permission denied") as caught:
        obtain(WHEEL)
    assert "LMWORKS_CACHE" in str(caught.value)


def test_a_password_of_the_index_goes_to_its_files_and_into_no_message(index, monkeypatch):
    index.secret = "Basic " + base64.b64encode(b"me:pa:ss@word").decode()
    monkeypatch.setenv("PIP_INDEX_URL", index.url.replace("//", "//me:pa%3Ass%40word@") + "/simple")
    assert obtain(WHEEL).read_bytes() == CONTENT, "the file lies on the host of the page, as pip has it"
    obtain(WHEEL).unlink()
    index.secret = "Basic other"
    with pytest.raises(DownloadError, match="401") as caught:
        obtain(WHEEL)
    assert "me:" not in str(caught.value)
    assert "word@" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    ["http://me:secret@host:port/simple", "http://me:se/secret@host/simple", "http://[me:secret@host/simple",
     "ftp://me:secret@host/simple", "me:secret@host/simple", "http://me:secret@127.0.0.1:1/simple"],
)  # fmt: skip
def test_odd_addresses_are_an_error_without_their_secret(url, monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", url)
    with pytest.raises(DownloadError) as caught:
        obtain(WHEEL)
    assert "secret" not in str(caught.value)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:1/simple")
    monkeypatch.setenv("PIP_PROXY", url)
    with pytest.raises(DownloadError) as caught:
        obtain(WHEEL)
    assert "secret" not in str(caught.value)


def test_certificates_that_are_not_there_are_an_error(monkeypatch):
    monkeypatch.setenv("PIP_CERT", "/no/such/ca.pem")
    with pytest.raises(DownloadError, match="No such file"):
        obtain(WHEEL)


def test_no_index_says_that_there_is_nowhere_to_look(monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(DownloadError, match="no-index"):
        obtain(WHEEL)


def test_what_is_no_listing_or_no_http_is_said(index, monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", f"{index.url}/other")
    with pytest.raises(DownloadError, match="no list of files"):
        obtain(WHEEL)
    monkeypatch.setenv("npm_config_registry", f"{index.url}/other")
    with pytest.raises(DownloadError, match="no list of versions"):
        obtain(POEMS)
    with socket.create_server(("127.0.0.1", 0)) as odd:

        def answer():
            for _ in range(web.ATTEMPTS):
                connection, _ = odd.accept()
                connection.recv(1000)
                connection.sendall(b"SSH-2.0-OpenSSH\r\n")
                connection.close()

        thread = threading.Thread(target=answer)
        thread.start()
        monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{odd.getsockname()[1]}/simple")
        with pytest.raises(DownloadError, match="does not speak HTTP"):
            obtain(WHEEL)
        thread.join()


def test_npm_s_own_settings_are_honored(index, tmp_path, monkeypatch):
    host = index.url.removeprefix("http:")
    monkeypatch.setenv("TOKEN", "s3cret")
    (tmp_path / "npmrc").write_text(
        f"; a comment\nregistry=http://127.0.0.1:1/\n@scope:registry={index.url}/npm/\n{host}/npm/:_authToken=${{TOKEN}}\n"
    )
    index.secret = "Bearer s3cret"
    assert obtain(POEMS).read_bytes() == CONTENT
    assert npm_settings("poems").indexes == ("http://127.0.0.1:1/",)
    (tmp_path / ".npmrc").write_text("registry='https://of.this.folder/'\ncafile = /ca.pem\nhttps-proxy=http://p:1\n")
    found = npm_settings("poems")
    assert (found.indexes, found.certificate, found.proxy) == (("https://of.this.folder/",), "/ca.pem", "http://p:1")
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", "https://environment/")
    assert npm_settings("poems").indexes == ("https://environment/",)


def test_npm_s_user_names_and_broken_files(tmp_path):
    password = base64.b64encode(b"word").decode()
    (tmp_path / "npmrc").write_bytes(
        b"//a/:username=me\n//a/:_password="
        + password.encode()
        + b"\n//b/:_auth=eDp5\n//c/:_password=?\n//c/:username=u\n\xff\n=\n"
    )
    (tmp_path / ".npmrc").mkdir()
    found = npm_settings("poems").authorization
    assert found == {"//a/": index_settings.basic("me", "word"), "//b/": "Basic eDp5"}


@pytest.mark.parametrize("place", ["file/source", "/proc/nowhere/source"])
def test_an_output_that_cannot_be_made_is_named(place, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match=f"{place} cannot be written"):
        fetch(FetchConfig(name="stdlib-code", output=place, limit=1))


def test_addresses_written_wrongly_are_shown_without_credentials_too():
    assert redact("https://u:p@host:1/simple") == "https://host:1/simple"
    assert "secret" not in redact("https://u:se/secret@host/simple")
    assert redact("https://host/simple") == "https://host/simple"
