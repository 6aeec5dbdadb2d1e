"""Debian packages: looked up, fetched, verified, kept and read, with an apt made here."""

import json
import os
import threading
from pathlib import Path

import pytest
from debian_packages import fields, install_apt, make_deb

from lmworks.core.errors import DataError, DownloadError
from lmworks.core.lineage import load_manifest
from lmworks.data.acquisition import debian_index
from lmworks.data.acquisition.debian_archive import debian_members
from lmworks.data.acquisition.debian_index import DebianPackage, obtain_debian
from lmworks.data.acquisition.download_cache import cache_folder
from lmworks.data.acquisition.fetch import FetchConfig, fetch

PAGES = DebianPackage("pages")
DOCS = DebianPackage("docs", holder="docs-[0-9]*")


@pytest.fixture
def apt(tmp_path, monkeypatch):
    """Offers packages; `apt()` tells what was asked."""
    monkeypatch.setenv("LMWORKS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("FAKE_APT", str(tmp_path / "offers.json"))
    install_apt(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    offers = {}

    def offer(name=None, version="1", files=None, *, depends="", reachable=True, seconds=0.0, **change):
        if name:
            deb = make_deb(tmp_path / f"{name}-{version}".replace(":", "_"), files or {"usr/a.txt": b"a"})
            about = fields(name, version, deb, depends) | change
            offers[name] = {"fields": about, "file": str(deb) if reachable else None, "seconds": seconds}
            (tmp_path / "offers.json").write_text(json.dumps(offers))
        log = tmp_path / "offers.json.log"
        return log.read_text().splitlines() if log.exists() else []

    return offer


def kept():
    return sorted(f.name for f in (cache_folder() / "packages").rglob("*") if f.is_file())


def test_the_newest_version_comes_and_is_recorded_and_kept(apt):
    apt("pages", "4:7.4+deb12u1")
    first = obtain_debian(PAGES)
    assert (first.file.project, first.file.version, first.verified) == ("pages", "4:7.4+deb12u1", True)
    assert apt()[-1] == "-q download pages=4:7.4+deb12u1"
    assert first.path.name == "pages_4%3a7.4+deb12u1_all.deb"
    asked = len(apt())
    assert obtain_debian(PAGES) == first
    assert len(apt()) == asked + 1, "it was looked up again, and not fetched"
    apt("pages", "4:7.5")
    assert obtain_debian(PAGES).file.version == "4:7.5"


def test_a_package_that_only_depends_on_the_newest_leads_to_it(apt):
    apt("docs-6.1", "6.1.9", {"usr/six": b"6"})
    apt("docs", "6.1.9", depends="tools (>= 2), docs-6.1 (= 6.1.9)")
    assert obtain_debian(DOCS).file.project == "docs-6.1"
    apt("docs", "6.1.9", depends="tools")
    assert obtain_debian(DOCS).file.project == "docs", "where it holds the files itself"


def test_a_damaged_copy_is_fetched_again_and_a_forged_one_refused(apt):
    apt("pages")
    path = obtain_debian(PAGES).path
    good = path.read_bytes()
    path.write_bytes(good[:-1] + b"!")
    assert obtain_debian(PAGES).path.read_bytes() == good
    path.unlink()
    apt("pages", SHA256="0" * 64)
    with pytest.raises(DownloadError, match="sha256 0000"):
        obtain_debian(PAGES)
    assert kept() == []


def test_without_network_the_copy_of_an_earlier_version_is_used(apt, capsys):
    apt("pages", "1")
    obtain_debian(PAGES)
    apt("pages", "2", reachable=False)
    found = obtain_debian(PAGES)
    assert (found.file.version, found.verified) == ("1", False)
    assert "pages_1_all.deb is used instead" in capsys.readouterr().err
    found.path.unlink()
    with pytest.raises(DownloadError, match="could not fetch pages 2: Failed to fetch http://mirror") as caught:
        obtain_debian(PAGES)
    assert "secret" not in str(caught.value)
    assert "apt-get update" in str(caught.value)


def test_without_apt_a_file_placed_in_the_cache_is_used(apt, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    with pytest.raises(DownloadError, match="apt-cache cannot be run") as caught:
        obtain_debian(DOCS)
    folder = cache_folder() / "packages" / "debian"
    assert "docs-[0-9]*_*.deb" in str(caught.value)
    assert str(folder) in str(caught.value)
    folder.mkdir(parents=True)
    make_deb(folder / "docs_2_all.deb", {"usr/nothing": b""})
    for age, version in enumerate(("12~rc", "9%2e", "11")):
        os.utime(make_deb(folder / f"docs-6.1_{version}_all.deb", {"usr/a": b"a"}), (age, age))
    found = obtain_debian(DOCS)
    assert (found.file.project, found.file.version, found.verified) == ("docs-6.1", "11", False)


def test_an_index_that_lists_it_without_saying_where_is_no_index(apt):
    apt("pages")
    index = Path(os.environ["FAKE_APT"])
    index.write_text(index.read_text().replace("SHA256", "MD5sum"))
    with pytest.raises(DownloadError, match="do not list it"):
        obtain_debian(PAGES)


def test_two_at_once_fetch_it_once(apt):
    apt("pages", seconds=0.5)
    found = []
    threads = [threading.Thread(target=lambda: found.append(obtain_debian(PAGES).path)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    assert len([line for line in apt() if "download" in line]) == 1
    assert kept() == ["pages_1_all.deb"]


def test_what_a_killed_download_left_is_swept_away(apt):
    apt("pages")
    folder = cache_folder() / "packages" / "debian"
    staging = folder / ".pages_1_all.deb.folder"
    staging.mkdir(parents=True)
    (staging / "half.deb").write_bytes(b"half")
    (folder / ".pages_1_all.deb.partial").write_bytes(b"half")
    obtain_debian(PAGES)
    assert kept() == ["pages_1_all.deb"]
    assert not staging.exists()


@pytest.mark.parametrize("compression", ["xz", "zst", ""])
def test_members_are_read_and_links_skipped(tmp_path, compression):
    files = {"usr/share/doc/a.txt": "甲".encode(), "usr/odd": b"123", "usr/link.txt": None}
    deb = make_deb(tmp_path / "a.deb", files, compression)
    assert {name: stream.read() for name, stream in debian_members(deb, "*.txt")} == {
        "usr/share/doc/a.txt": "甲".encode()
    }
    with pytest.raises(DataError, match="no member"):
        list(debian_members(deb, "*.pdf"))


def test_hostile_and_damaged_packages_are_refused(tmp_path):
    deb = make_deb(tmp_path / "a.deb", {"../evil": b"x"})
    with pytest.raises(DataError, match="leads out"):
        list(debian_members(deb, "*"))
    bomb = make_deb(tmp_path / "b.deb", {"zeros": bytes(3_000_000)})
    assert bomb.stat().st_size < 5000
    with pytest.raises(DataError, match="decompressed"):
        [stream.read() for _, stream in debian_members(bomb, "*", max_bytes=1_000_000)]
    whole = make_deb(tmp_path / "c.deb", {f"usr/{n}": os.urandom(300) for n in range(20)}).read_bytes()
    for cut in (0, 5, 8, 40, 100, 200, 300, len(whole) // 2, len(whole) - 40):
        (tmp_path / "d.deb").write_bytes(whole[:cut])
        with pytest.raises(DataError, match=r"no Debian package|damaged|no member"):
            [stream.read() for _, stream in debian_members(tmp_path / "d.deb", "usr/*")]
    (tmp_path / "d.deb").write_bytes(whole.replace(b"data.tar.xz ", b"data.tar.lz4"))
    with pytest.raises(DataError, match="compression is not known"):
        list(debian_members(tmp_path / "d.deb", "*"))


def test_a_fetched_source_tells_its_packages(apt, tmp_path):
    page = '<html><body><h1 id="hd_1">{}</h1><p id="par_2">{}</p></body></html>'
    where = "usr/share/libreoffice/help/{}/text/swriter/a.html"
    english, chinese = page.format("Notes", "Choose <b>Insert</b>."), page.format("注释", "选择<b>插入</b>。")
    apt("libreoffice-help-en-us", "7", {where.format("en-US"): english.encode()})
    apt("libreoffice-help-zh-cn", "7", {where.format("zh-CN"): chinese.encode()})
    fetch(FetchConfig(name="libreoffice-help", output=tmp_path / "en"))
    package = load_manifest(tmp_path / "en").notes["package"]
    assert (package["registry"], package["project"], package["version"]) == ("debian", "libreoffice-help-en-us", "7")
    assert "verified" not in package
    fetch(FetchConfig(name="libreoffice-pairs", output=tmp_path / "pairs"))
    assert [p["project"][-5:] for p in load_manifest(tmp_path / "pairs").notes["packages"]] == ["en-us", "zh-cn"]
    rows = [json.loads(line) for line in (tmp_path / "pairs/conversations.jsonl").read_text().splitlines()]
    assert [row["source"] for row in rows] == [
        "libreoffice-pairs: swriter/a#hd_1",
        "libreoffice-pairs: swriter/a#par_2",
    ]
    for row, pair in zip(rows, [("Notes", "注释"), ("Choose Insert.", "选择插入。")], strict=True):
        asked, answer = (message["content"] for message in row["messages"])
        assert {asked.rpartition("\n\n")[2], answer} == set(pair)


def test_mirrors_passwords_are_never_shown():
    done = debian_index.subprocess.CompletedProcess((), 1, "", "E: Failed http://u:p@ss@host/x\nW: odd\nE: Sorry\n")
    assert debian_index._complaints(done) == "Failed http://host/x; Sorry"
