"""A disk that is full while several ranks train: all of them end and say so, and what was saved before is intact."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch.distributed as dist
from distributed_case import trainer

from lmworks.core.errors import DiskFullError
from lmworks.parallel.processes import run_processes
from lmworks.train.callbacks import StepEnd
from lmworks.train.checkpoint import Checkpoints


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Two MiB that can really be full."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(tmp_path)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a disk of its own needs root, and a system that mounts one")
    yield tmp_path
    subprocess.run(["umount", str(tmp_path)], check=True)


def fill(end: StepEnd) -> dict[str, float]:
    """After step 5 the first rank takes all that is left."""
    if end.step == 5 and dist.get_rank() == 0:
        folder = Path(os.environ["SMALL_DISK"])
        (folder / "ballast").write_bytes(bytes(shutil.disk_usage(folder).free))
    return {}


def train_until_full(folder: Path, checkpoint_every: int, asynchronous: bool) -> str:
    os.environ["SMALL_DISK"] = str(folder)
    made = trainer(
        folder / "run", callbacks=(fill,), steps=60, parallel={"shard": 2}, checkpoint_every=checkpoint_every,
        checkpoint={"asynchronous": asynchronous},
    )  # fmt: skip
    with pytest.raises(DiskFullError) as failure:
        made.fit()
    return str(failure.value)


@pytest.mark.parametrize(
    ("checkpoint_every", "asynchronous", "named"), [(4, False, "step-00000008"), (1000, True, "metrics.jsonl")]
)
def test_all_ranks_end_and_the_last_checkpoint_is_intact(
    small_disk: Path, checkpoint_every: int, asynchronous: bool, named: str
):
    one, other = run_processes(train_until_full, 2, small_disk, checkpoint_every, asynchronous, timeout=60)
    assert one == other
    assert f"run/{named} failed: No space left on device (rank 0)" in one
    (small_disk / "ballast").unlink()
    found = Checkpoints(small_disk / "run", 2).newest()
    assert (found and found.step) == (4 if checkpoint_every == 4 else None)
