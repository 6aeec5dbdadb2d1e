"""Shares are met to within a row, every row is accounted for, and the same seed takes the same rows."""

from collections import Counter

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from lmworks.cli.main import cli
from lmworks.core.errors import DataError
from lmworks.data.rows.balance import balance, group_by
from lmworks.data.rows.files import write_file
from lmworks.data.rows.load import load_rows
from lmworks.data.rows.values import PromptRow

GROUPS = ["en"] * 60 + ["zh"] * 30 + ["code"] * 10


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=5),
    weights=st.lists(st.integers(1, 9), min_size=5, max_size=5),
    total=st.one_of(st.integers(1, 200), st.sampled_from(["up", "down"])),
    seed=st.integers(0, 9),
)
def test_counts_are_the_shares_and_rows_of_a_group_come_equally_often(sizes, weights, total, seed):
    groups = [name for name, size in enumerate(sizes) for _ in range(size)]
    shares = {name: weights[name] for name in range(len(sizes))}
    if total == "down" and min(size / weights[n] for n, size in enumerate(sizes)) * sum(shares.values()) < 1:
        return
    made = balance(groups, shares, total=total, seed=seed)
    often = Counter(made.order)
    assert len(made.order) == sum(account.taken for account in made.accounts)
    if not isinstance(total, str):
        assert len(made.order) == total
    for account in made.accounts:
        mine = [often[number] for number, group in enumerate(groups) if group == account.group]
        assert sum(mine) == account.taken
        assert abs(account.taken - account.wanted * len(made.order)) < 1
        assert max(mine) - min(mine) <= 1
        assert (max(mine), mine.count(0)) == (account.most_repeated, account.left_out)
        if total == "down":
            assert account.most_repeated <= 1
    assert made == balance(groups, shares, total=total, seed=seed)


def test_down_and_up_are_the_least_change():
    down, up = (balance(GROUPS, {"en": 1, "zh": 1, "code": 1}, total=how) for how in ("down", "up"))
    assert [account.taken for account in down.accounts] == [10, 10, 10]
    assert [account.left_out for account in down.accounts] == [50, 20, 0]
    assert [account.taken for account in up.accounts] == [60, 60, 60]
    assert [account.most_repeated for account in up.accounts] == [1, 2, 6]
    assert down.order != balance(GROUPS, {"en": 1, "zh": 1, "code": 1}, seed=1).order


@pytest.mark.parametrize(
    ("shares", "more", "reason"),
    [
        ({"en": 1, "zh": 1}, {}, "'code' occurs and has no share"),
        ({"en": 1, "zh": 1, "code": 1, "fr": 1}, {}, "'fr' has a share and no rows"),
        ({"en": -1, "zh": 1, "code": 1}, {}, "no weights"),
        ({"en": 0, "zh": 0, "code": 0}, {}, "no weights"),
        ({"en": 1, "zh": 1, "code": 1}, {"total": 300, "most_repeats": 4}, "come 10 times"),
        ({"en": 1, "zh": 1, "code": 1}, {"total": 0}, "0 rows would be left"),
    ],
)
def test_impossible_shares_are_named(shares, more, reason):
    with pytest.raises(DataError, match=reason):
        balance(GROUPS, shares, **more)


def test_groups_come_from_a_field_of_every_row():
    rows = [PromptRow("q", extra={"task": "math"}), PromptRow("r")]
    assert group_by(rows[:1], "task") == ["math"]
    with pytest.raises(DataError, match="row 2 has no 'task'"):
        group_by(rows, "task")


def test_groups_of_several_fields_are_balanced_together(tmp_path):
    rows = [PromptRow(f"q{n}", extra={"task": "math" if n % 3 else "code", "language": "en" if n % 2 else "zh"})
            for n in range(60)]  # fmt: skip
    groups = group_by(rows, "language", "task")
    assert Counter(groups) == {"en/math": 20, "zh/math": 20, "en/code": 10, "zh/code": 10}
    made = balance(groups, {"en/math": 4, "zh/math": 3, "en/code": 2, "zh/code": 1}, total=50)
    assert Counter(groups[n] for n in made.order) == {"en/math": 20, "zh/math": 15, "en/code": 10, "zh/code": 5}
    write_file(tmp_path / "a.jsonl", rows)
    command = ["data", "balance", str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl"), "--by", "language"]
    result = CliRunner().invoke(cli, [*command, "--by", "task"])
    assert result.exit_code == 0, result.output
    assert set(Counter(group_by(load_rows(tmp_path / "b.jsonl"), "language", "task")).values()) == {10}


def test_the_command_writes_the_rows_and_prints_the_account(tmp_path):
    source, target = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    write_file(source, [PromptRow(f"q{n}", extra={"language": group}) for n, group in enumerate(GROUPS)])

    def run(*more):
        return CliRunner().invoke(cli, ["data", "balance", str(source), str(target), "--by", "language", *more])

    result = run("--share", "en=2", "--share", "zh=2", "--share", "code=1", "--total", "50")
    assert result.exit_code == 0, result.output
    assert Counter(group_by(load_rows(target), "language")) == {"en": 20, "zh": 20, "code": 10}
    assert result.output.splitlines()[1].split() == ["en", "60", "40.0%", "20", "1", "40"]
    run()
    assert len(load_rows(target)) == 30
    assert isinstance(run("--share", "en=much").exception, DataError)
    assert isinstance(run("--total", "some").exception, DataError)
