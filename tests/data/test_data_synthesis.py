"""Rows made through a scripted generator: what is kept and why not, lineage, exact resumption, failures one by one."""

import multiprocessing
import signal
from collections import Counter

import pytest
from click.testing import CliRunner
from scripted_generator import NOUNS, Logged, Scripted, config, outcomes, rows, seeds, write

from lmworks.cli.main import cli
from lmworks.core.errors import DataError
from lmworks.core.lineage import verify
from lmworks.data.acquisition.fetch import FetchConfig, fetch
from lmworks.data.rows.conversations import load_conversations
from lmworks.data.rows.load import load_rows
from lmworks.data.synthesis.grade import GraderConfig
from lmworks.data.synthesis.methods import METHODS
from lmworks.data.synthesis.synthesize import OUTCOMES, synthesize


@pytest.mark.parametrize("method", METHODS)
def test_every_method_makes_rows_with_their_lineage(method, tmp_path):
    seeds(tmp_path)
    if method == "back_translation":
        write(
            tmp_path / "seeds.jsonl", *({"text": f"All about {noun}.", "id": f"s{n}"} for n, noun in enumerate(NOUNS))
        )
    manifest = synthesize(config(tmp_path, method), Scripted(), "double")
    assert verify(tmp_path / "out") == manifest
    made = rows(tmp_path)
    assert len(load_conversations(tmp_path / "out")) == len(made) == manifest.metrics["rows"] > 0
    assert manifest.metrics["attempts"] == len(made) + len(outcomes(tmp_path))
    assert len({row["id"] for row in made}) == len(made)
    for row in made:
        lineage = row["lineage"]
        assert (lineage["method"], lineage["generator"]) == (method, "double")
        assert {parent[0] for parent in lineage["parents"]} == {"s"}
        assert ("request" in lineage) == ("instruction" in lineage["sampling_params"])
        assert all("seed" in params for params in lineage["sampling_params"].values())
    if method == "back_translation":
        assert made[0]["completion"][0]["content"] == "All about rivers."
    if method == "rejection_sampling":
        assert [row["prompt"][0]["content"] for row in made] == [
            row.prompt for row in load_rows(tmp_path / "seeds.jsonl")
        ]


def test_a_run_killed_at_any_call_goes_on_to_the_same_rows(tmp_path):
    seeds(tmp_path)
    more = {"attempts": 17, "round_size": 4}
    synthesize(config(tmp_path, "self_instruct", **more), whole := Scripted())
    expected = [(tmp_path / "out" / name).read_bytes() for name in ("conversations.jsonl", OUTCOMES)]
    (tmp_path / "out").rename(tmp_path / "first")
    for stop in range(whole.calls):
        with pytest.raises(KeyboardInterrupt):
            synthesize(config(tmp_path, "self_instruct", **more), Scripted(stop_after=stop))
        journal = tmp_path / ".out.journal.jsonl"
        with journal.open("ab") as stream:
            stream.write(b'[{"attempt": 9')  # what a kill in the middle of a write leaves
        rest = Scripted()
        synthesize(config(tmp_path, "self_instruct", **more), rest)
        assert [(tmp_path / "out" / name).read_bytes() for name in ("conversations.jsonl", OUTCOMES)] == expected
        assert rest.calls <= whole.calls - stop + 1
        assert not journal.exists()
        (tmp_path / "out").rename(tmp_path / f"again{stop}")


@pytest.mark.parametrize("last", [1, 4, 9, 14, 20])
def test_what_was_answered_before_a_kill_is_not_asked_again(last, tmp_path):
    """Single calls, two at a time: only what was under way may be asked twice."""
    seeds(tmp_path)
    made = config(tmp_path, "self_instruct", attempts=12, round_size=6, concurrency=2)
    synthesize(made, Logged(tmp_path / "whole.log"))
    expected = rows(tmp_path)
    (tmp_path / "out").rename(tmp_path / "first")
    fork = multiprocessing.get_context("fork")
    child = fork.Process(target=synthesize, args=(made, Logged(tmp_path / "log", last)))
    child.start()
    child.join(30)
    assert child.exitcode == -signal.SIGKILL
    synthesize(made, Logged(tmp_path / "log"))
    assert rows(tmp_path) == expected
    asked = Counter((tmp_path / "log").read_bytes().splitlines())
    assert asked.keys() == set((tmp_path / "whole.log").read_bytes().splitlines())
    assert asked.total() - len(asked) <= 2


def test_concurrency_changes_nothing_and_the_seed_does(tmp_path):
    seeds(tmp_path)
    made = []
    for settings in ({}, {"concurrency": 3}, {"seed": 1}):
        synthesize(config(tmp_path, "self_instruct", round_size=4, **settings), Scripted())
        made.append(rows(tmp_path))
    assert made[0] == made[1] != made[2]


@pytest.mark.parametrize("concurrency", [1, 3])
def test_failing_prompts_are_counted_and_named_and_others_go_on(concurrency, tmp_path):
    seeds(tmp_path)
    manifest = synthesize(config(tmp_path, "rejection_sampling", concurrency=concurrency), Scripted(fails=["poems"]))
    assert (manifest.metrics["kept"], manifest.metrics["failed"]) == (7, 1)
    assert manifest.notes["failed"] == ["attempt 2: TimeoutError: no answer to 'Translate'"]
    assert outcomes(tmp_path)[0]["parents"] == ["s2"]


def test_a_generator_that_is_down_stops_the_run_which_then_goes_on(tmp_path):
    seeds(tmp_path)
    made = config(tmp_path, "rejection_sampling", round_size=4)
    with pytest.raises(DataError, match=r"none of 4 prompts .*TimeoutError"):
        synthesize(made, Scripted(fails=NOUNS[4:8]))
    after = Scripted()
    assert synthesize(made, after).metrics["rows"] == 8
    assert after.calls == 1


def test_other_settings_do_not_go_on_with_a_journal(tmp_path):
    seeds(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        synthesize(config(tmp_path, "self_instruct"), Scripted(stop_after=1))
    with pytest.raises(DataError, match=r"other settings \(seed\)"):
        synthesize(config(tmp_path, "self_instruct", seed=1), Scripted())
    seeds(tmp_path, 7)
    with pytest.raises(DataError, match=r"other settings \(inputs\)"):
        synthesize(config(tmp_path, "self_instruct"), Scripted())


def test_one_seed_asked_again_is_asked_by_another_seed_of_chance(tmp_path):
    seeds(tmp_path, 3)
    made = config(tmp_path, "rejection_sampling", attempts=9)
    synthesize(made, Logged(tmp_path / "log"))
    assert len(set((tmp_path / "log").read_bytes().splitlines())) == 9


def test_the_stage_names_its_model_and_its_mistakes(tmp_path, monkeypatch):
    from lmworks.core.errors import ConfigError
    from lmworks.pipeline.synthesize_rows import SynthesizeRowsConfig, synthesize_rows

    seeds(tmp_path, 2)
    given = {"method": "rejection_sampling", "inputs": (tmp_path / "seeds.jsonl",), "output": tmp_path / "out"}
    for more in ({"url": "http://h/v1"}, {"served_model": "m"}, {"model": tmp_path, "url": "http://h/v1"}):
        with pytest.raises(ConfigError, match="Give"):
            synthesize_rows(SynthesizeRowsConfig(**given, **more))
    asked = []

    def answer(self, conversations, sampling_params):
        asked.append(self._headers["Authorization"])
        return Scripted().chat(conversations, sampling_params)

    monkeypatch.setattr("lmworks.client.http_generator.HttpGenerator.chat", answer)
    monkeypatch.setenv("MY_KEY", "secret")
    more = {"url": "http://h/v1", "served_model": "m", "api_key_variable": "MY_KEY", "concurrency": 2}
    manifest = synthesize_rows(SynthesizeRowsConfig(**given, **more))
    assert set(asked) == {"Bearer secret"}
    assert rows(tmp_path)[0]["lineage"]["generator"] == "m at http://h/v1"
    assert "secret" not in manifest.to_json()


def test_what_is_like_the_pool_or_the_round_is_a_duplicate(tmp_path):
    seeds(tmp_path, 4)
    told = iter(
        ["Tell me about whales and seals", "Tell me about the whales and seals", "Describe the rivers now please"]
    )
    manifest = synthesize(
        config(tmp_path, "self_instruct", attempts=3),
        Scripted(script=lambda request, n: next(told) if "nothing else" in request else "fine"),
    )
    assert (manifest.metrics["kept"], manifest.metrics["duplicate"]) == (1, 2)
    assert [one["reason"].split()[-1] for one in outcomes(tmp_path)] == ["0", "s0"]


def test_a_number_of_rows_ends_the_run_and_nothing_is_an_error(tmp_path):
    seeds(tmp_path)
    manifest = synthesize(config(tmp_path, "rejection_sampling", num_rows=3, round_size=2), Scripted())
    assert (manifest.metrics["rows"], manifest.metrics["surplus"]) == (3, 1)
    with pytest.raises(DataError, match=r"no attempt gave a row .8 unusable; the first: length"):
        synthesize(config(tmp_path, "self_instruct"), Scripted(script=lambda request, n: "x"))


@pytest.mark.parametrize(
    ("row", "method", "reason"),
    [({"text": "t"}, "paraphrase", "no request"), ({"prompt": "p"}, "back_translation", "no text"),
     ({"messages": [{"role": role, "content": "x"} for role in ("user", "assistant", "user")]},
      "back_translation", "no text")],
)  # fmt: skip
def test_inputs_without_a_beginning_are_named(row, method, reason, tmp_path):
    write(tmp_path / "seeds.jsonl", row)
    with pytest.raises(DataError, match=rf"row 1 .*{reason}"):
        synthesize(config(tmp_path, method), Scripted())


def test_eda_needs_no_generator_and_the_command_runs_it(tmp_path):
    seeds(tmp_path, completion="done")
    arguments = [
        "data",
        "synthesize",
        "--method",
        "eda",
        "--inputs",
        tmp_path / "seeds.jsonl",
        "--output",
        tmp_path / "out",
    ]
    result = CliRunner().invoke(cli, [*map(str, arguments)])
    assert result.exit_code == 0, result.output
    assert "rows" in result.output
    assert rows(tmp_path)[0]["lineage"]["generator"] == ""
    seeds(tmp_path)
    with pytest.raises(DataError, match="needs a generator"):
        synthesize(config(tmp_path, "eda"))


@pytest.mark.slow
def test_a_real_model_makes_rows_through_the_engine(tmp_path):
    from lmworks.engine import LLM

    fetch(FetchConfig(name="smollm2-135m-instruct", output=tmp_path / "smollm2"))
    model = next((tmp_path / "smollm2").glob("*.gguf"))
    seeds(tmp_path, 4)
    settings = config(
        tmp_path, "evol_instruct", round_size=4, instruction_sampling={"max_tokens": 60},
        response_sampling={"max_tokens": 24, "n": 2}, cut_off="keep", graders=(GraderConfig(name="words", least=3),),
    )  # fmt: skip
    manifest = synthesize(settings, LLM(model), "SmolLM2-135M-Instruct")
    assert manifest.metrics["attempts"] == 4
    made = rows(tmp_path)
    assert made
    assert all(row["lineage"]["verdicts"][0]["grade"] >= 3 for row in made)
    assert len(load_conversations(tmp_path / "out")) == len(made)
