"""Freed memory stays during training and goes back after it."""

import subprocess
import sys
from textwrap import dedent

import pytest

PROGRAM = """
    import resource, torch
    from lmworks.train.allocator import keeping_freed_memory

    def faults_of_a_step():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        blocks = [torch.ones(2 << 20) for _ in range(16)]  # 8 MiB each
        del blocks
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    def resident():
        return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

    faults_of_a_step()
    before = faults_of_a_step()
    with keeping_freed_memory():
        faults_of_a_step()
        inside, held = faults_of_a_step(), resident()
    print(before, inside, held - resident())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the C library is another")
def test_a_step_finds_the_memory_that_the_last_one_freed() -> None:
    run = subprocess.run([sys.executable, "-c", dedent(PROGRAM)], capture_output=True, text=True, check=True)
    before, inside, given_back = map(int, run.stdout.split())
    assert inside < before / 2  # nearly always 0; the C library may find no room where the old blocks were
    assert given_back > 64 * 2**20
