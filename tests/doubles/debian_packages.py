"""Debian packages made here, and an `apt-get` and `apt-cache` that offer them. Knows nothing of lmworks."""

import hashlib
import io
import lzma
import stat
import sys
import tarfile

APT = (
    f"#!{sys.executable} -IS\n"
    + """
import json, os, sys, time
offers = json.load(open(os.environ["FAKE_APT"]))
with open(os.environ["FAKE_APT"] + ".log", "a") as log:
    log.write(" ".join(sys.argv[1:]) + "\\n")
name = sys.argv[-1].partition("=")[0]
if name not in offers:
    sys.exit("E: Unable to locate package " + name)
if sys.argv[1] == "show":
    print("".join(f"{k}: {v}\\n" for k, v in offers[name]["fields"].items()) + "\\nPackage: another\\n")
elif offers[name]["file"] is None:
    sys.exit("E: Failed to fetch http://user:secret@mirror.example/x.deb  Could not connect")
else:
    time.sleep(offers[name].get("seconds", 0))
    open(name + "_any.deb", "wb").write(open(offers[name]["file"], "rb").read())
"""
)


def make_deb(path, files, compression="xz"):
    """A package of files by name; None as content makes a link that leads out."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(f"./{name}")
            if content is None:
                info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
                archive.addfile(info)
            else:
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    packed = {"xz": lzma.compress, "": bytes}.get(compression) or _zstandard
    suffix = f".{compression}" if compression else ""
    members = {"debian-binary": b"2.0\n", "control.tar.xz": b"odd", f"data.tar{suffix}": packed(data.getvalue())}
    with path.open("wb") as deb:
        deb.write(b"!<arch>\n")
        for name, content in members.items():
            deb.write(f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(content):<10}`\n".encode())
            deb.write(content + b"\n" * (len(content) % 2))
    return path


def _zstandard(data):
    import zstandard

    return zstandard.ZstdCompressor().compress(data)


def fields(name, version, path, depends=""):
    """What an index says of a package."""
    data = path.read_bytes()
    about = {"Package": name, "Version": version, "Architecture": "all", "Size": len(data)}
    return about | {"Depends": depends, "SHA256": hashlib.sha256(data).hexdigest()}


def install_apt(folder):
    """Put the two programs into a folder for PATH."""
    folder.mkdir()
    for program in ("apt-get", "apt-cache"):
        (folder / program).write_text(APT)
        (folder / program).chmod(0o755 | stat.S_IXUSR)
