"""Rows made through a scripted generator: what is kept and why not, lineage, exact resumption, failures one by one."""

import json
import multiprocessing
import os
import signal
from collections import Counter
from random import Random

import pytest
from click.testing import CliRunner

from lmworks.cli.main import cli
from lmworks.core.errors import DataError
from lmworks.core.generation import CompletionOutput, RequestOutput
from lmworks.core.lineage import verify
from lmworks.data.acquisition.fetch import FetchConfig, fetch
from lmworks.data.rows.conversations import load_conversations
from lmworks.data.rows.load import load_rows
from lmworks.data.synthesis.grade import GraderConfig
from lmworks.data.synthesis.methods import METHODS
from lmworks.data.synthesis.synthesize import OUTCOMES, SynthesizeConfig, synthesize

NOUNS = [
    "rivers",
    "bridges",
    "poems",
    "planets",
    "engines",
    "spices",
    "painters",
    "storms",
    "numbers",
    "insects",
    "harbors",
    "violins",
]
VERBS = [
    "Describe",
    "Compare",
    "Translate",
    "Count",
    "Draw",
    "Explain",
    "Rank",
    "Defend",
    "Imagine",
    "Summarize",
    "Question",
    "Classify",
]


class Logged:
    """Answers as `Scripted` does; writes down what was asked, and dies by SIGKILL in the middle of a call."""

    def __init__(self, log, last=None):
        self.inner, self.log, self.last = Scripted(), log, last

    def chat(self, conversations, sampling_params):
        with self.log.open("ab", buffering=0) as stream:
            for conversation in conversations:
                stream.write(json.dumps([conversation[-1].content, sampling_params.seed]).encode() + b"\n")
        outputs = self.inner.chat(conversations, sampling_params)
        if self.last is not None and len(self.log.read_bytes().splitlines()) >= self.last:
            os.kill(os.getpid(), signal.SIGKILL)
        return outputs


class Scripted:
    """Answers as a pure function of request, seed and number; counts calls; fails where told."""

    def __init__(self, fails=(), stop_after=None, script=None):
        self.calls, self.fails, self.stop_after, self.script = 0, fails, stop_after, script

    def chat(self, conversations, sampling_params):
        self.calls += 1
        if self.stop_after is not None and self.calls > self.stop_after:
            raise KeyboardInterrupt
        outputs = []
        for conversation in conversations:
            request = conversation[-1].content
            if any(word in request for word in self.fails):
                raise TimeoutError(f"no answer to {request[:9]!r}")
            texts = [self.answer(request, sampling_params.seed, n) for n in range(sampling_params.n)]
            outputs.append(RequestOutput("r", request, (), tuple(CompletionOutput(text, (), "stop") for text in texts)))
        return outputs

    def generate(self, prompts, sampling_params):
        raise AssertionError("conversations are asked")

    def answer(self, request, seed, n):
        if self.script is not None:
            return self.script(request, n)
        random = Random(f"{request}{seed}{n}")
        if "nothing else" in request:
            return f"1. {random.choice(VERBS)} {random.choice(NOUNS)} for {random.choice(NOUNS)} {random.random()}"
        return f"An answer {n} to: {request}"


def write(file, *rows):
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return file


def seeds(folder, count=8, **more):
    rows = [{"prompt": f"{verb} the {NOUNS[n]} now", "id": f"s{n}", **more} for n, verb in enumerate(VERBS[:count])]
    return write(folder / "seeds.jsonl", *rows)


def config(folder, method, **more):
    more.setdefault("inputs", (folder / "seeds.jsonl",))
    return SynthesizeConfig(method=method, output=folder / "out", **more)


def rows(folder):
    return [json.loads(line) for line in (folder / "out/conversations.jsonl").read_text().splitlines()]


def outcomes(folder):
    return [json.loads(line) for line in (folder / "out" / OUTCOMES).read_text().splitlines()]


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


BAD = {
    "": "length", "word": "length", "w " * 200: "length", "Sorry, I cannot do that": "refusal",
    "The rewritten prompt is this one": "talk about the task", "describe the RIVERS now": "unchanged",
    "很抱歉，我做不到": "refusal", "half of it \ud83d is lost": "length",
}  # fmt: skip


@pytest.mark.parametrize("text", BAD)
def test_unusable_instructions_are_kept_with_their_reason(text, tmp_path):
    seeds(tmp_path, 2)

    def script(request, n):
        return text if "rivers" in request and "nothing else" in request else "Tell a long story of whales"

    synthesize(config(tmp_path, "evol_instruct"), Scripted(script=script))
    (outcome,) = outcomes(tmp_path)
    assert (outcome["status"], outcome["reason"].split(":")[0]) == ("unusable", BAD[text])


def test_one_of_a_list_is_taken_and_tasks_beyond_text_are_left_out(tmp_path):
    seeds(tmp_path)
    told = iter(["1. Tell a tale of whales\n2. Write a song of salt\n3. More", "Describe what this picture shows us",
                 "请描述这张图片里有什么"])  # fmt: skip

    def script(request, n):
        return next(told) if "nothing else" in request else "fine"

    synthesize(config(tmp_path, "self_instruct", attempts=3), Scripted(script=script))
    assert [row["prompt"][0]["content"] for row in rows(tmp_path)] == ["Tell a tale of whales"]
    assert [one["reason"].partition(":")[0] for one in outcomes(tmp_path)] == ["more than text"] * 2


NO_ANSWERS = {
    "": "empty", " \n": "empty", "…!?": "no words", "Sorry, that is beyond me.": "refusal",
    "I can’t do that": "refusal",
    "Well, I am sorry to say that nobody knows.": "refusal", "对不起，我不能回答。": "refusal", "\udc00 x": "empty",
}  # fmt: skip


@pytest.mark.parametrize("text", NO_ANSWERS)
def test_responses_that_answer_nothing_are_kept_out_with_their_reason(text, tmp_path):
    seeds(tmp_path, 2)

    def script(request, n):
        return text if "rivers" in request else "Sorry for the length: " + "word " * 80

    synthesize(config(tmp_path, "rejection_sampling"), Scripted(script=script))
    (outcome,) = outcomes(tmp_path)
    assert (outcome["status"], outcome["reason"].split(":")[0]) == ("unusable", NO_ANSWERS[text])
    assert len(rows(tmp_path)) == 1


class CutOff(Scripted):
    """Ends its first answer, and every one that says so, at the most tokens allowed."""

    def chat(self, conversations, sampling_params):
        return [
            RequestOutput("r", "", (1, 2, 3), tuple(
                CompletionOutput(f"{'cut' if n == 0 or 'poems' in c[-1].content else 'whole'} {n}", (4,) * 5,
                                 "length" if n == 0 or "poems" in c[-1].content else "stop")
                for n in range(sampling_params.n)))
            for c in conversations
        ]  # fmt: skip


def test_answers_that_were_cut_off_are_dropped_unless_asked_for(tmp_path):
    seeds(tmp_path, 4)
    sampling = {"n": 2, "temperature": 1.0}
    manifest = synthesize(config(tmp_path, "rejection_sampling", response_sampling=sampling), CutOff())
    assert [row["completion"][0]["content"] for row in rows(tmp_path)] == ["whole 1"] * 3
    assert outcomes(tmp_path)[0]["reason"].startswith("cut off")
    assert {name: manifest.metrics[name] for name in ("requests", "prompt_tokens", "completion_tokens")} == {
        "requests": 4, "prompt_tokens": 12, "completion_tokens": 40,
    }  # fmt: skip
    (tmp_path / "out").rename(tmp_path / "first")
    synthesize(config(tmp_path, "rejection_sampling", response_sampling=sampling, cut_off="keep"), CutOff())
    assert [row["lineage"]["cut_off"] for row in rows(tmp_path)] == [True] * 4


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


def test_paraphrases_keep_numbers_and_answers(tmp_path):
    write(
        tmp_path / "seeds.jsonl",
        {"prompt": "Add 17 and 4", "completion": "21"},
        {"prompt": "Add 9 to 3", "completion": "12"},
    )

    def script(request, n):
        return "What is the sum of 17 and 4?" if "17" in request else "What is nine and 3?"

    synthesize(config(tmp_path, "paraphrase"), Scripted(script=script))
    assert [row["completion"][0]["content"] for row in rows(tmp_path)] == ["21"]
    assert "lacks 9" in outcomes(tmp_path)[0]["reason"]


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


def test_graders_choose_the_best_answer_and_reject(tmp_path):
    write(
        tmp_path / "seeds.jsonl", {"prompt": "What is 2+2?", "answer": "4"}, {"prompt": "What is 1+1?", "answer": ["2"]}
    )

    def script(request, n):
        if "How good" in request:
            return f"{4 if 'three words' in request else 3}"
        return ["it is 4", "it is 4 three words", "5"][n]

    graders = (GraderConfig(name="contains", least=1), GraderConfig(name="judge", least=3))
    sampling = {"n": 3, "temperature": 1.0}
    synthesize(
        config(tmp_path, "rejection_sampling", graders=graders, response_sampling=sampling), Scripted(script=script)
    )
    (row,) = rows(tmp_path)
    assert row["completion"][0]["content"] == "it is 4 three words"
    assert [(v["grader"], v["grade"]) for v in row["lineage"]["verdicts"]] == [("contains", 1.0), ("judge", 4.0)]
    (other,) = outcomes(tmp_path)
    assert (other["status"], other["parents"][0]) == ("rejected", row_of(tmp_path, 1))
    untouched = Scripted()
    with pytest.raises(DataError, match="no text in the field 'solution'"):
        synthesize(
            config(tmp_path, "rejection_sampling", graders=(GraderConfig(name="f1", least=1, field="solution"),)),
            untouched,
        )
    assert untouched.calls == 0


def test_an_answer_that_could_not_be_judged_failed_and_is_not_called_bad(tmp_path):
    seeds(tmp_path, 4)
    judge = (GraderConfig(name="judge", least=1),)

    class Judge(Scripted):
        def chat(self, conversations, sampling_params):
            if any("How good" in c[-1].content and "poems" in c[-1].content for c in conversations):
                raise TimeoutError("busy")
            return super().chat(conversations, sampling_params)

    script = Judge(script=lambda request, n: "4" if "How good" in request else "fine")
    synthesize(config(tmp_path, "rejection_sampling", graders=judge), script)
    (outcome,) = outcomes(tmp_path)
    assert (outcome["status"], outcome["reason"]) == ("failed", "the judge: TimeoutError: busy")


def test_a_longer_answer_is_not_a_better_one(tmp_path):
    seeds(tmp_path, 1)
    answers = ["好的，这座桥很长", "one two three four five six seven eight nine ten", "short"]

    def script(request, n):
        return f"{5 if answers[0] in request else 4}" if "How good" in request else answers[n]

    graders = (GraderConfig(name="words", least=5), GraderConfig(name="judge", least=3))
    sampling = {"n": 3, "temperature": 1.0}
    synthesize(
        config(tmp_path, "rejection_sampling", graders=graders, response_sampling=sampling), Scripted(script=script)
    )
    (row,) = rows(tmp_path)
    assert row["completion"][0]["content"] == answers[0]
    assert [verdict["grade"] for verdict in row["lineage"]["verdicts"]] == [7.0, 5.0]


def row_of(folder, number):
    from lmworks.data.synthesis.seeds import read_seeds

    return read_seeds(config(folder, "rejection_sampling"))[number].id


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
