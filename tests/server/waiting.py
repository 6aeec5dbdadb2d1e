"""What a server does a moment later than its client sees."""

import time


def until(condition, seconds=30.0):
    """Wait for `condition()` to hold.

    Raises:
        AssertionError: it did not in time.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)
