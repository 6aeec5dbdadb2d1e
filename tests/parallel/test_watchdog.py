"""A rank that stalls, dies or fails is named by the others, which end in time and never hang."""

import json
import logging
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from lmworks.core.errors import ParallelError
from lmworks.parallel.config import ParallelConfig
from lmworks.parallel.heartbeats import Beat, Heartbeats, group_key, members
from lmworks.parallel.mesh import make_mesh
from lmworks.parallel.processes import run_processes
from lmworks.parallel.stragglers import Stragglers, slowest
from lmworks.parallel.waiting import diagnose
from lmworks.parallel.watchdog import Watchdog, WatchdogConfig, mesh_groups, python_stacks

QUICK = WatchdogConfig(report_after_seconds=0.6, interval_seconds=0.1)


def beat(rank: int, **changes) -> Beat:
    return Beat(rank, "node", 100 + rank, 5, 12, "forward", 40, **changes)


def heard(count: int, **later: float) -> dict[int, float]:
    return {rank: later.get(f"rank{rank}", 0.1) for rank in range(count)}


def test_who_has_begun_fewer_collectives_is_waited_for():
    key = group_key("data", [0, 1, 2])
    assert members(key) == [0, 1, 2]
    beats = {r: beat(r, collectives={key: n}, unmoved_seconds=9.0) for r, n in enumerate((7, 6, 7))}
    found = diagnose(beats, heard(3), 4.0)
    assert (found.culprits, found.waiting, found.certain) == ((1,), {0: (1,), 2: (1,)}, False)
    assert found.reason == "rank 1 (node, pid 101) is in 'forward' of step 12 for 9.0 s; waiting for rank 1: ranks 0, 2"


def test_a_rank_that_is_waited_for_and_waits_itself_is_not_the_culprit():
    data = {rank: group_key("data", ranks) for ranks in ([0, 2], [1, 3]) for rank in ranks}
    tensor = {rank: group_key("tensor", ranks) for ranks in ([0, 1], [2, 3]) for rank in ranks}
    # 0 waits for 1 in their tensor group, 2 waits for 0 in their data group, and 3 for 1.
    begun = {0: (4, 9), 1: (4, 8), 2: (5, 9), 3: (5, 9)}
    beats = {r: beat(r, collectives={data[r]: d, tensor[r]: t}) for r, (d, t) in begun.items()}
    found = diagnose(beats, heard(4), 4.0)
    assert found.culprits == (1,)
    assert found.waiting == {0: (1,), 2: (0,), 3: (1,)}


def test_without_collectives_the_rank_that_is_behind_is_waited_for():
    beats = {0: beat(0), 1: Beat(1, "node", 101, 5, 12, "data", 39)}
    assert diagnose(beats, heard(2), 4.0).culprits == (1,)


def test_all_in_one_collective_is_the_network():
    key = group_key("world", [0, 1])
    found = diagnose({r: beat(r, collectives={key: 3}) for r in (0, 1)}, heard(2), 4.0)
    assert found.culprits == ()
    assert "the network" in found.reason


def test_the_silent_and_the_failed_are_culprits_whatever_they_had_begun():
    key = group_key("world", [0, 1, 2])
    beats = {r: beat(r, collectives={key: n}) for r, n in enumerate((2, 3, 3))}
    found = diagnose(beats, heard(3, rank2=7.0), 4.0)
    assert (found.culprits, found.gone, found.certain) == ((2,), (2,), True)
    assert "rank 2 (node, pid 102), last in 'forward' of step 12, says nothing for 7.0 s: frozen" in found.reason
    beats[1] = beat(1, ended="ValueError: this rank is ill")
    beats[2] = beat(2, ended="RuntimeError: Connection closed", follows=True)
    found = diagnose(beats, heard(3, rank1=9.0, rank2=9.0), 4.0)
    assert (found.culprits, found.gone) == ((1,), ())
    assert "ended in 'forward' of step 12: ValueError: this rank is ill" in found.reason


def test_beats_survive_a_torn_file_and_a_rank_that_never_came(tmp_path: Path):
    beats = Heartbeats(tmp_path, 3)
    beats.write(beat(0))
    (tmp_path / "rank-00001.json").write_text('{"rank": 1, "ho')
    found = beats.read()
    assert found[0] == beat(0)
    assert [found[r].count for r in (1, 2)] == [-1, -1]
    assert "rank 2 never started" in diagnose(found, heard(3, rank1=9.0, rank2=9.0), 4.0).reason
    first = beats.silent(found)
    time.sleep(0.02)
    beats.write(Beat(**{**beat(0).__dict__, "count": 6}))
    later = beats.silent(beats.read())
    assert later[0] < 0.02 <= later[1] - first[1]


def test_stacks_name_the_function_a_thread_is_in():
    assert "test_stacks_name_the_function" in python_stacks()["MainThread"]


def stalled(folder: Path):
    """Rank 1 sleeps; what rank 0 reported, and every rank's log."""
    logs = []
    handler = logging.Handler(logging.ERROR)
    handler.emit = lambda record: logs.append(record.getMessage())
    logging.getLogger().addHandler(handler)
    events = []
    mesh = make_mesh(ParallelConfig(data=2, tensor=2))
    with Watchdog(folder, QUICK, mesh_groups(mesh), events.append) as dog:
        for step in (1, 2):
            dog.mark(step, "data")
            if (step, dist.get_rank()) == (2, 1):
                sleeps_on_purpose()
            dog.mark(step, "forward")
            dist.all_reduce(torch.ones(2), group=mesh.group("tensor"))
            dist.all_reduce(torch.ones(2), group=mesh.group("tokens"))
    dist.barrier()
    return logs, events, (folder / "asking").exists()


def sleeps_on_purpose():
    time.sleep(2.5)


def test_a_stalled_rank_is_named_with_the_stacks_of_all_and_the_run_goes_on(tmp_path: Path):
    by_rank = run_processes(stalled, 4, tmp_path)
    events = [event for _, events, _ in by_rank for event in events]
    assert [len(events) for _, events, _ in by_rank] == [1, 0, 0, 0]
    (event,) = events
    assert (event["step"], event["finding"], event["ranks"]) == (2, "hang", [1])
    assert event["waiting"]["0"] == [1]
    assert "rank 1" in event["reason"]
    assert "is in 'data' of step 2" in event["reason"]
    assert set(event["stacks"]) == {"0", "1", "2", "3"}
    assert "sleeps_on_purpose" in event["stacks"]["1"]["MainThread"]
    assert "all_reduce" in event["stacks"]["0"]["MainThread"]
    for logs, _, asking in by_rank:
        assert any("rank 1" in line and "no progress in step 2" in line for line in logs)
        assert not asking


def one_of(folder: Path, how: str):
    """A program of four ranks; rank 2 ends as told in step 3."""
    events = []
    mesh = make_mesh(ParallelConfig(data=4))
    with Watchdog(folder, QUICK, mesh_groups(mesh), events.append) as dog:
        for step in (1, 2, 3):
            dog.mark(step, "forward")
            time.sleep(0.3)
            if (step, dist.get_rank()) == (3, 2):
                if how == "fails":
                    raise ValueError("this rank is ill")
                os.kill(os.getpid(), signal.SIGKILL if how == "killed" else signal.SIGSTOP)
            dist.all_reduce(torch.ones(2))


def program(folder: Path, how: str, rank: int) -> None:
    for stream in (1, 2):
        os.dup2(os.open(folder / f"said-{rank}", os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=4)
    try:
        one_of(folder, how)
    except ParallelError as error:
        os.write(1, f"named: {error}\n".encode())
        os._exit(3)


def ended(folder: Path, how: str) -> tuple[list[int | None], list[str]]:
    """Exit statuses and outputs of the four ranks; the survivors have 20 seconds."""
    context = multiprocessing.get_context("forkserver")
    ranks = [context.Process(target=program, args=(folder, how, rank), daemon=True) for rank in range(4)]
    for rank in ranks:
        rank.start()
    deadline = time.monotonic() + 20
    for rank in (0, 1, 3):
        ranks[rank].join(max(0.0, deadline - time.monotonic()))
    statuses = [rank.exitcode for rank in ranks]
    for rank in ranks:
        rank.kill()
        rank.join()
        rank.close()
    return statuses, [(folder / f"said-{rank}").read_text() for rank in range(4)]


def test_survivors_of_a_killed_rank_name_it(tmp_path: Path):
    statuses, said = ended(tmp_path, "killed")
    assert statuses == [3, 3, -9, 3]
    for rank in (0, 1, 3):
        assert "named: step 3 cannot be finished: rank 2 (" in said[rank]
        assert "last in 'forward' of step 3, is gone: its process was killed" in said[rank]
    assert json.loads((tmp_path / "rank-00000.json").read_text())["follows"] is True


def test_survivors_of_a_frozen_rank_give_it_up_from_inside_the_collective(tmp_path: Path):
    statuses, said = ended(tmp_path, "frozen")
    assert [statuses[r] for r in (0, 1, 3)].count(1) >= 1, "the first to give up ends itself"
    assert all(statuses[r] in (1, 3) for r in (0, 1, 3)), "the others may meet its broken connection first"
    for rank in (0, 1, 3):
        assert "step 3 cannot be finished: rank 2 (" in said[rank]
        assert "says nothing for" in said[rank]


def test_a_rank_that_fails_by_itself_is_named_with_its_error(tmp_path: Path):
    with pytest.raises(ParallelError) as error:
        run_processes(one_of, 4, tmp_path, "fails")
    assert "this rank is ill" in str(error.value)


def shares():
    """Two steps in which rank 2 is slow to read and the others wait for it."""
    table = Stragglers(dist.group.WORLD, ("data", "backward"), torch.device("cpu"))
    slow = dist.get_rank() == 2
    for _ in range(2):
        table.add("data", 0.3 if slow else 0.1)
        table.add("backward", 0.5 if slow else 0.7)
        table.add("unknown", 9.0)
    found = table.compare(2)
    return found.sentence(), found.seconds, table.compare(1).seconds


def test_the_straggler_of_some_steps_is_the_same_on_all_ranks():
    by_rank = run_processes(shares, 4)
    sentence, seconds, emptied = by_rank[0]
    assert all(found == by_rank[0] for found in by_rank)
    assert sentence == "rank 2 is slowest: 0.300 s a step in 'data', 0.200 s over the median"
    assert seconds["backward"] == pytest.approx([0.7, 0.7, 0.5, 0.7])
    assert emptied == {"data": [0.0] * 4, "backward": [0.0] * 4}


def test_of_two_ranks_the_one_that_was_late_first_is_slow():
    found = slowest({"data": [0.1, 0.4], "forward": [0.2, 0.2], "backward": [0.9, 0.6]})
    assert (found.rank, found.phase) == (1, "data")
    assert found.behind_seconds == pytest.approx(0.3)
