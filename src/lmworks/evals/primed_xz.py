"""How many more bytes xz needs for one text once it has read another.

The sizes of "first" and "first + second" are had in one pass instead of two: a process compresses the first text,
forks, ends the stream in the child and goes on to the second text in the parent. That process is a fresh one running
this file as a program, because the caller's is full of threads. Knows no documents; standard library alone, so that
the program needs nothing on its path.
"""

from __future__ import annotations

import lzma
import os
import subprocess
import sys

PRESET = 9 | lzma.PRESET_EXTREME
SMALLEST_DICTIONARY = 1 << 12


def primed_xz_size(first: bytes, second: bytes) -> int:
    """size(xz -9e of first + second) - size(xz -9e of first), in bytes, with a dictionary that spans both texts.

    Takes some 1.5 seconds a megabyte on one core, in another process, and twelve times the texts' size in memory.

    Raises:
        OSError: the process failed, most likely for want of memory.
    """
    command = [sys.executable, "-I", __file__, str(len(first))]
    done = subprocess.run(command, input=first + second, capture_output=True, check=False)
    if done.returncode:
        reason = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise OSError(f"xz of {len(first) + len(second)} bytes ended with status {done.returncode}: {reason}")
    return int(done.stdout)


def added_size(first: bytes, second: bytes) -> int:
    """The same in this process, which must have one thread."""
    dictionary = max(SMALLEST_DICTIONARY, len(first) + len(second))
    filters = [{"id": lzma.FILTER_LZMA2, "preset": PRESET, "dict_size": dictionary}]
    compressor = lzma.LZMACompressor(lzma.FORMAT_XZ, lzma.CHECK_NONE, filters=filters)
    compressor.compress(first)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writing, str(len(compressor.flush())).encode())
        os._exit(0)
    os.waitpid(child, 0)
    rest_of_first = int(os.read(reading, 32))
    return len(compressor.compress(second)) + len(compressor.flush()) - rest_of_first


if __name__ == "__main__":
    text, split = sys.stdin.buffer.read(), int(sys.argv[1])
    sys.stdout.write(str(added_size(text[:split], text[split:])))
