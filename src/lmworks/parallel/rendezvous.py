"""Where the processes of one start of a run meet, apart from those of earlier starts.

torchrun keeps one store for all restarts, in which the addresses of ended processes stay: who reads them before the
successor has written its own waits for a process that is gone. Knows no process group.
"""

from __future__ import annotations

import time
import uuid
from datetime import timedelta

from torch.distributed.distributed_c10d import PrefixStore, Store

from lmworks.core.errors import ParallelError

_PAUSE = 0.01
"""Seconds between looks for ranks that have come."""


def fresh_store(store: Store, rank: int, world_size: int, timeout: timedelta) -> Store:
    """The part of a store that nobody wrote in before this start. All ranks call it.

    Each rank asks under a name that it has just made up, and only the first rank of this start answers that.

    Raises:
        ParallelError: a rank has not come in time, named on the first.
    """
    if rank:
        own = uuid.uuid4().hex
        store.set(f"asks/{rank}", own)
        start = store.get(f"answer/{own}").decode()
        store.set(f"came/{start}/{rank}", "")
        return PrefixStore(start, store)
    start, awaited = uuid.uuid4().hex, set(range(1, world_size))
    ends = time.monotonic() + timeout.total_seconds()
    while awaited:
        for other in sorted(awaited):
            if store.check([f"asks/{other}"]):  # perhaps an earlier start's question, which this answer does no harm
                store.set(f"answer/{store.get(f'asks/{other}').decode()}", start)
        awaited = {other for other in awaited if not store.check([f"came/{start}/{other}"])}
        if awaited and time.monotonic() > ends:
            raise ParallelError(
                f"ranks {', '.join(map(str, sorted(awaited)))} of {world_size} did not come within {timeout}",
                "Look at their hosts and logs",
            )
        time.sleep(_PAUSE)
    return PrefixStore(start, store)
