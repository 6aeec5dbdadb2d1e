"""Reading files in a process of its own, with bounded time and memory, so that no file can stop or kill the reading.

Parsers of HTML, PDF and office files are large, partly in C, and meet hostile input: they crash, loop and swallow
memory. Here that ends one process, which is named, counted and started again. Knows formats only by suffix.
"""

from __future__ import annotations

import atexit
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from multiprocessing.connection import Connection, Pipe
from typing import Any

from lmworks.core.errors import LMWorksError
from lmworks.data.extraction.result import Extracted, RowFields, UnreadableError

MAX_MEMORY_BYTES = 4 << 30
"""Of address space that one file may take."""
_FILES_PER_PROCESS = 5000
"""Then the process is made anew: C libraries lose some memory with each file."""
_RECOGNITION_FACTOR = 60
"""Time allowed for a PDF file whose pages are recognized: books of hundreds of pages, each some seconds."""
_CLOCK_FACTOR = 11
"""Time by the clock allowed for one second of the processor, for machines that are busy with other work."""


class Guard:
    """A process that reads files one after the other; it is started when the first one comes."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._owner = self._read = 0
        self._lock = threading.Lock()

    def read(self, suffix: str, data: bytes, fields: RowFields, declared: str = "") -> Extracted:
        """What the reader of a suffix makes of a file's bytes.

        Raises:
            UnreadableError: its reader's own reasons; `time`, `memory`, `crash`, `parser` (an error of a library).
            MissingExtraError: the reader needs an extra that is not installed.
        """
        seconds = fields.seconds * (_RECOGNITION_FACTOR if suffix == ".pdf" and fields.ocr else 1)
        with self._lock:
            connection = self._started()
            try:
                connection.send_bytes(pickle.dumps((suffix, data, fields, declared, seconds)))
                if not connection.poll(seconds * _CLOCK_FACTOR):
                    self._stop()
                    raise UnreadableError("time", f"not read within {seconds * _CLOCK_FACTOR} s by the clock")
                answer = pickle.loads(connection.recv_bytes())
            except (EOFError, OSError):
                raise self._death(seconds) from None
            except BaseException:  # interrupted between question and answer: the next answer would be the wrong one
                self._stop()
                raise
            self._read += 1
            if self._read >= _FILES_PER_PROCESS:
                self._stop()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def close(self) -> None:
        """End the process, if there is one."""
        with self._lock:
            self._stop()

    def _started(self) -> Connection:
        if self._owner != os.getpid():  # a fork must not speak through its parent's pipe
            self._process = self._connection = None
        if self._process is None or self._process.poll() is not None or self._connection is None:
            self._stop()
            ours, theirs = Pipe()
            code = f"from lmworks.data.extraction.guard import serve; serve({theirs.fileno()})"
            self._process = subprocess.Popen(
                [sys.executable, "-c", code], pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            theirs.close()
            self._connection, self._owner, self._read = ours, os.getpid(), 0
        return self._connection

    def _stop(self) -> None:
        if self._connection is not None:
            self._connection.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._process = self._connection = None

    def _death(self, seconds: int) -> UnreadableError:
        assert self._process is not None, "it was asked"
        try:
            status = self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:  # closed its end and lives on
            status = 0
        self._stop()
        if status == -signal.SIGXCPU:
            return UnreadableError("time", f"more than {seconds} s of processor time")
        return UnreadableError("crash", f"the process that read it ended with status {status}")


def serve(descriptor: int) -> None:
    """The process's side: answer until the other side is gone."""
    import resource

    from lmworks.data.extraction.extract import READERS

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent alone answers it
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES if most < 0 else min(most, MAX_MEMORY_BYTES), most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _, most_time = resource.getrlimit(resource.RLIMIT_CPU)
    connection = Connection(descriptor)
    while True:
        try:
            suffix, data, fields, declared, seconds = pickle.loads(connection.recv_bytes())
        except EOFError:
            return
        until = int(time.process_time()) + 1 + seconds
        resource.setrlimit(resource.RLIMIT_CPU, (until if most_time < 0 else min(until, most_time), most_time))
        answer: Any
        try:
            answer = READERS[suffix](data, fields, declared)
        except LMWorksError as error:
            answer = error
        except MemoryError:
            answer = UnreadableError("memory", f"needs more than {MAX_MEMORY_BYTES >> 30} GiB")
        except Exception as error:  # noqa: BLE001 - damaged files make parsers raise anything at all
            answer = UnreadableError("parser", f"{type(error).__name__}: {error}"[:500])
        data = b""
        connection.send_bytes(pickle.dumps(answer))


GUARD = Guard()
"""The one of this process."""
atexit.register(GUARD.close)
