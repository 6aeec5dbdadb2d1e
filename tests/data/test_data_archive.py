"""Archives are untrusted: names cannot lead out, links are skipped, bombs are stopped."""

import io
import tarfile
import zipfile

import pytest

from lmworks.core.errors import DataError
from lmworks.data.acquisition.archive import members


def make_zip(path, files):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def make_tar(path, files, mode="w:gz"):
    with tarfile.open(path, mode) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            if data is None:
                info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
                archive.addfile(info)
            else:
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return path


MAKERS = {"whl": make_zip, "tar.gz": make_tar, "tar": lambda path, files: make_tar(path, files, "w")}


def read(path, pattern, **bounds):
    return {name: stream.read() for name, stream in members(path, pattern, **bounds)}


@pytest.mark.parametrize("kind", MAKERS)
def test_matching_members_are_read(tmp_path, kind):
    path = MAKERS[kind](tmp_path / f"a.{kind}", {"p/data/x.json": b"1", "p/data/y.txt": b"2", "p/data/z.json": b"3"})
    assert read(path, "*/data/*.json") == {"p/data/x.json": b"1", "p/data/z.json": b"3"}


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("name", ["../evil", "/evil", "a/../../evil", "c:/evil", "a\\..\\evil"])
def test_a_name_that_leads_out_is_refused(tmp_path, kind, name):
    path = MAKERS[kind](tmp_path / f"a.{kind}", {"fine": b"", name: b"evil"})
    with pytest.raises(DataError, match="leads out of the archive"):
        read(path, "*")


def test_links_are_not_followed(tmp_path):
    path = make_tar(tmp_path / "a.tgz", {"data": None, "real": b"1"})
    assert read(path, "*") == {"real": b"1"}
    with pytest.raises(DataError, match="no member"):
        read(path, "data")


@pytest.mark.parametrize("kind", MAKERS)
def test_a_bomb_is_stopped(tmp_path, kind):
    path = MAKERS[kind](tmp_path / f"a.{kind}", {"bomb": bytes(3_000_000), "x": b"1"})
    with pytest.raises(DataError, match="more than 1,000,000 bytes"):
        read(path, "*", max_bytes=1_000_000)


def test_a_bomb_before_the_wanted_member_of_a_tarball_is_stopped(tmp_path):
    path = make_tar(tmp_path / "a.tgz", {"bomb": bytes(3_000_000), "x": b"1"})
    with pytest.raises(DataError, match="more than 1,000,000 bytes"):
        read(path, "x", max_bytes=1_000_000)


@pytest.mark.parametrize("kind", MAKERS)
def test_a_truncated_archive_is_a_clear_error(tmp_path, kind):
    path = MAKERS[kind](tmp_path / f"a.{kind}", {"x": bytes(range(256)) * 100})
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match="damaged"):
        read(path, "x")
