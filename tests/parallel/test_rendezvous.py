"""Processes meet those of their own start, whatever earlier starts left in the store."""

import threading
from datetime import timedelta

import pytest
from torch.distributed import HashStore

from lmworks.core.errors import ParallelError
from lmworks.parallel.rendezvous import fresh_store


def start(store: HashStore, world_size: int) -> list[bytes]:
    """What each rank finds where the last one wrote its address."""
    found: dict[int, bytes] = {}

    def meet(rank: int) -> None:
        own = fresh_store(store, rank, world_size, timedelta(seconds=20))
        if rank == world_size - 1:
            before = own.check(["address"])
            own.set("address", "old" if before else "new")
        found[rank] = own.get("address")

    threads = [threading.Thread(target=meet, args=(rank,)) for rank in reversed(range(world_size))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return [found[rank] for rank in range(world_size)]


@pytest.mark.parametrize("sizes", [(3, 3), (2, 3, 1, 2)])
def test_every_start_has_a_store_of_its_own(sizes: tuple[int, ...]):
    store = HashStore()
    for size in sizes:
        assert start(store, size) == [b"new"] * size


def test_who_does_not_come_is_named():
    store = HashStore()
    store.set("asks/2", "somebody of an earlier start")
    with pytest.raises(ParallelError, match="ranks 1, 2 of 3 did not come within"):
        fresh_store(store, 0, 3, timedelta(seconds=0.1))
