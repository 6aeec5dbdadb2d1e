"""Degrees are checked against the processes there are, and errors name value, rule and remedy."""

import pytest

from lmworks.core.errors import ConfigError, ParallelError
from lmworks.parallel.config import ParallelConfig, rows_per_rank


@pytest.mark.parametrize(
    ("degrees", "world_size", "expected"),
    [
        ({}, 1, (1, 1)),
        ({"data": -1}, 8, (8, 1)),
        ({"shard": -1, "tensor": 2}, 8, (1, 4)),
        ({"data": 2, "shard": -1, "tensor": 2}, 16, (2, 4)),
        ({"data": -1, "pipeline": 2, "context": 2}, 4, (1, 1)),
        ({"data": 2, "shard": 2, "expert": 4}, 4, (2, 2)),
    ],
)
def test_open_degrees_take_what_is_left(degrees, world_size, expected):
    config = ParallelConfig(**degrees).resolve(world_size)
    assert (config.data, config.shard) == expected
    assert config.world_size == world_size
    assert config.batch_degree == config.data * config.shard


@pytest.mark.parametrize(
    ("degrees", "world_size", "words"),
    [
        ({"data": 4}, 8, ("data 4", "4 ranks", "8 processes", "data: -1")),
        ({"tensor": 3, "data": -1}, 8, ("3", "does not divide", "8 processes", "multiple of 3")),
        ({"data": -1, "shard": -1}, 8, ("data and shard are both -1",)),
        ({"data": 2, "expert": 4}, 2, ("expert 4", "data x shard x context = 2", "divisor")),
        ({"data": 2, "cpu_offload": True}, 2, ("cpu_offload", "shard is 1")),
        ({"shard": 2, "gradient_compression": "powersgd"}, 2, ("powersgd", "shard 2", "shard: 1")),
        ({"tensor": 2, "data": 2, "gradient_compression": "bfloat16"}, 4, ("bfloat16", "tensor 2")),
    ],
)
def test_what_does_not_fit_is_refused_with_the_remedy(degrees, world_size, words):
    with pytest.raises(ParallelError) as error:
        ParallelConfig(**degrees).resolve(world_size)
    for word in words:
        assert word in str(error.value)


def test_degrees_are_positive_numbers():
    for values in ({"tensor": 0}, {"data": -2}, {"zero_stage": 4}, {"tenser": 2}):
        with pytest.raises(ConfigError, match=next(iter(values))):
            ParallelConfig.parse(values)


def test_rows_divide_among_readers():
    config = ParallelConfig(data=2, shard=2, tensor=2)
    assert rows_per_rank(32, config) == 8
    with pytest.raises(ParallelError, match="30 rows of a step do not divide among data x shard = 4 ranks"):
        rows_per_rank(30, config)
