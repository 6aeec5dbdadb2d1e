"""Every Triton kernel compiles to machine code of GPUs that are not here, fits into them and fetches ahead."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton has no wheel for this system")

COMPILER = Path(__file__).parents[1] / "doubles" / "gpu_compiler.py"
SHARED = {80: 163 * 1024, 86: 99 * 1024, 90: 227 * 1024}
"""Bytes that a program may take (CUDA programming guide, table of compute capabilities)."""


@pytest.mark.slow
@pytest.mark.parametrize("architecture", SHARED)
def test_all_kernels_compile(tmp_path, architecture):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, str(COMPILER), str(architecture)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len({row["kernel"] for row in rows}) == 7
    assert all(row["shared"] <= SHARED[architecture] for row in rows), rows
    streaming = [row["asynchronous"] for row in rows if row["kernel"] in ("_attend_tile", "_multiply_tile")]
    assert all(streaming), rows
