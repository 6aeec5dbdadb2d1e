"""Builds and loads the native operations. Knows none of them.

The C++ files beside this one need a compiler and nothing else: no headers of Python or torch. They are compiled once
for what this processor can do and kept in the user's cache, under a name that changes with the sources, the compiler
and the flags. Without a compiler everything still runs, in PyTorch, and the log says why.

Environment: `LMWORKS_NATIVE=0` leaves the native operations out; `LMWORKS_NATIVE_ISA` (`avx512`, `avx2`, `portable`)
forces a level; `LMWORKS_CACHE` is where compiled files are kept.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Literal

from lmworks.core.config import nearest
from lmworks.core.errors import ConfigError

Isa = Literal["avx512", "avx2", "portable"]

FLAGS: dict[Isa, tuple[str, ...]] = {
    "avx512": (*(f"-mavx512{part}" for part in ("f", "bw", "dq", "vl", "vnni", "bf16")), "-mfma", "-mf16c"),
    "avx2": ("-mavx2", "-mfma", "-mf16c"),
    "portable": (),
}
"""Compiler flags of each level."""

NEEDED: dict[Isa, frozenset[str]] = {
    "avx512": frozenset({"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni", "avx512_bf16", "fma", "f16c"}),
    "avx2": frozenset({"avx2", "fma", "f16c"}),
    "portable": frozenset(),
}
"""What the processor must have for it, in Linux's words."""

# No contraction: the same formula must give the same bits in every loop it is compiled into.
COMMON_FLAGS = ("-std=c++17", "-O3", "-fPIC", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-pthread")
COMPILE_SECONDS = 300

logger = logging.getLogger(__name__)


@cache
def library(part: str = "", sources: Path | None = None) -> ctypes.CDLL | None:
    """The native operations, compiled if need be; None where they cannot be had, with the reason in the log.

    Args:
        part: folder beside this file whose sources make a library of their own; empty for the files of this one.
        sources: folder of the part's sources, where they lie elsewhere.

    Raises:
        ConfigError: an environment variable names no level.
    """
    if os.environ.get("LMWORKS_NATIVE") == "0":
        logger.info("native operations: left out, LMWORKS_NATIVE is 0")
        return None
    names = (os.environ.get("CXX"), "g++", "c++", "clang++")
    compiler = next((found for name in names if name and (found := shutil.which(name))), None)
    if compiler is None:
        logger.warning("native operations: no C++ compiler (g++ or clang++) was found, PyTorch takes their place")
        return None
    level = isa()
    try:
        path = compiled(compiler, level, part, sources)
        loaded = ctypes.CDLL(str(path))
    except (OSError, subprocess.SubprocessError) as error:
        detail = getattr(error, "stderr", None) or error
        logger.warning("native operations: they could not be built, PyTorch takes their place: %s", detail)
        return None
    logger.info("native operations: %s", path)
    return loaded


def isa() -> Isa:
    """The level that is built: the best this processor has, or the one the environment forces."""
    forced = os.environ.get("LMWORKS_NATIVE_ISA")
    if forced is None:
        return next(level for level in FLAGS if NEEDED[level] <= processor_features())
    for level in FLAGS:
        if level == forced:
            return level
    raise ConfigError(
        f"LMWORKS_NATIVE_ISA = {forced!r} is no level{nearest(forced, list(FLAGS))}", "Unset it or name a level"
    )


@cache
def processor_features() -> frozenset[str]:
    """What the processor can do, in Linux's words; nothing where that cannot be read."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return frozenset()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), ()))


def compiled(compiler: str, level: Isa, part: str = "", sources: Path | None = None) -> Path:
    """The shared library of a level and part, compiled unless the cache has it; two processes may do so at once.

    Raises:
        OSError: the cache cannot be written.
        subprocess.SubprocessError: the compiler failed.
    """
    folder = sources or Path(__file__).parent / part
    files = sorted(folder.glob("*.cpp"))
    flags = (*COMMON_FLAGS, *FLAGS[level])
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True, timeout=30).stdout
    digest = hashlib.sha256(repr((version, flags)).encode())
    for source in sorted([*files, *folder.glob("*.h")]):
        digest.update(source.name.encode() + source.read_bytes())
    name = f"native-{part}" if part else "native"
    target = cache_folder() / f"{name}-{level}-{digest.hexdigest()[:16]}.so"
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    logger.info("native operations: compiling for %s, once", level)
    with tempfile.TemporaryDirectory(dir=target.parent) as work:

        def compile_one(source: Path) -> str:
            out = str(Path(work) / f"{source.stem}.o")
            subprocess.run(
                [compiler, *flags, "-c", str(source), "-o", out],
                capture_output=True, text=True, check=True, timeout=COMPILE_SECONDS,
            )  # fmt: skip
            return out

        with ThreadPoolExecutor(os.cpu_count() or 1) as threads:
            objects = list(threads.map(compile_one, files))
        made = Path(work) / target.name
        subprocess.run(
            [compiler, *flags, "-shared", *objects, "-o", str(made)],
            capture_output=True, text=True, check=True, timeout=COMPILE_SECONDS,
        )  # fmt: skip
        made.replace(target)
    return target


def cache_folder() -> Path:
    """Where compiled files are kept."""
    given = os.environ.get("LMWORKS_CACHE")
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lmworks"
