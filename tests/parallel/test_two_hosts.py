"""Two hosts on one machine: network namespaces with a cable between them, torchrun on each, one run."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import two_hosts

from lmworks.parallel.config import ParallelConfig
from lmworks.parallel.launch import Job, LaunchConfig, torchrun_line
from lmworks.parallel.processes import run_processes

ADDRESSES = ("10.213.7.1", "10.213.7.2")


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@pytest.fixture
def hosts() -> Iterator[list[str]]:
    """Names of two namespaces that reach each other and nothing else; removed whatever happens, also on SIGTERM."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and iproute2")
    names = [f"lmw{os.getpid()}{side}" for side in "ab"]
    cables = [f"{name[-12:]}v" for name in names]
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        try:
            for name in names:
                ip("netns", "add", name)
            ip("link", "add", cables[0], "netns", names[0], "type", "veth", "peer", cables[1], "netns", names[1])
        except subprocess.CalledProcessError as error:
            pytest.skip(f"this machine allows no network namespaces: {error.stderr.strip()}")
        for name, cable, address in zip(names, cables, ADDRESSES, strict=True):
            ip("-n", name, "address", "add", f"{address}/24", "dev", cable)
            ip("-n", name, "link", "set", cable, "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield names
    finally:
        for name in names:  # takes its end of the cable along
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)
        signal.signal(signal.SIGTERM, before)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["data", "shard"])
def test_two_hosts_train_as_one_process(hosts: list[str], form: str, tmp_path: Path):
    (alone,) = run_processes(two_hosts.losses, 1, ParallelConfig())
    job = Job("two-hosts", "two_hosts", (form, str(tmp_path)))
    line = torchrun_line(job, LaunchConfig(nodes="2", head=ADDRESSES[0], max_restarts=0))
    path = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(Path(__file__).parent)}
    running = []
    try:
        for name, address in zip(hosts, ADDRESSES, strict=True):
            # A namespace has no name server: the host's own name leads nowhere, so it is told who it is.
            told = f"torchrun --local-addr {address} --rdzv-conf is_host={int(address == ADDRESSES[0])} "
            command = line.replace("torchrun ", told, 1)
            cable = f"{name[-12:]}v"
            words, environment = ["ip", "netns", "exec", name, "bash", "-c", command], {**os.environ, **path}
            with (tmp_path / f"{name}.log").open("w") as log:
                running.append(subprocess.Popen(words, env={**environment, "GLOO_SOCKET_IFNAME": cable}, stderr=log))
        statuses = [process.wait(170) for process in running]
    finally:
        for process in running:
            process.kill()
            process.wait()
    assert statuses == [0, 0], "".join(log.read_text()[-3000:] for log in tmp_path.glob("*.log"))
    found = [json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in range(2)]
    assert found[0] == found[1]
    assert found[0] == pytest.approx(alone, rel=1e-5)
    assert alone[-1] != alone[0]
