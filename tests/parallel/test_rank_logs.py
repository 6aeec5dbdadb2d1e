"""Each rank has a file; the console is rank 0's, and hears a warning of the others once."""

import io
import logging
import warnings
from pathlib import Path

import pytest
import torch.distributed as dist

from lmworks.core.progress import console, say
from lmworks.parallel.processes import run_processes
from lmworks.parallel.rank_logs import rank_log

logger = logging.getLogger("lmworks.test")


def speaks(folder: Path) -> tuple[str, str]:
    """What a rank put on its console, and in its file."""
    console.file = terminal = io.StringIO()
    rank = dist.get_rank()
    with rank_log(folder) as path:
        say(f"hello from {rank}")
        print(f"printed by {rank}")
        logger.info("a detail")
        logger.warning("port %d is slow", 4000 + rank)
        logger.warning("port %d is slow", 5000 + rank)
        warnings.warn("this will change", FutureWarning, stacklevel=1)
        if rank == 1:
            logger.error("only rank 1 knows")
        dist.barrier()
    say("after")
    assert "after" in terminal.getvalue()
    return terminal.getvalue().replace("after\n", ""), path.read_text()


def test_only_rank_0_is_on_the_console_and_warnings_are_heard_once(tmp_path: Path):
    by_rank = run_processes(speaks, 3, tmp_path)
    consoles = [shown for shown, _ in by_rank]
    assert "hello from 0" in consoles[0]
    assert all("hello" not in shown for shown in consoles[1:])
    everything = "".join(consoles)
    assert everything.count("is slow") == 1
    assert everything.count("this will change") == 1
    assert consoles[1].count("rank 1: error: only rank 1 knows") == everything.count("only rank 1 knows") == 1
    assert "a detail" not in everything
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"rank-0000{r}.log" for r in range(3)]
    for rank, (_, written) in enumerate(by_rank):
        assert f"hello from {rank}" in written
        assert "INFO lmworks.test: a detail" in written
        assert f"WARNING lmworks.test: port {4000 + rank} is slow" in written
        assert f"port {5000 + rank} is slow" in written
        assert "FutureWarning: this will change" in written
        assert (f"printed by {rank}" in written) == (rank > 0)


def test_an_error_that_ends_the_block_is_in_the_log_and_goes_on_up(tmp_path: Path):
    level = logging.getLogger().level
    with pytest.raises(ValueError, match="ill"), rank_log(tmp_path):
        raise ValueError("this rank is ill")
    written = (tmp_path / "rank-00000.log").read_text()
    assert "rank 0 ends" in written
    assert "ValueError: this rank is ill" in written
    assert logging.getLogger().level == level
    with rank_log(tmp_path):
        say("started again")
    assert "ValueError" in (tmp_path / "rank-00000.log").read_text()
