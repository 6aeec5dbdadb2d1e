"""What a generator says is looked at: what is no instruction or no answer gives no row, and graders choose the best."""

import pytest
from scripted_generator import Scripted, config, outcomes, rows, seeds, write

from lmworks.core.errors import DataError
from lmworks.core.generation import CompletionOutput, RequestOutput
from lmworks.data.synthesis.grade import GraderConfig
from lmworks.data.synthesis.synthesize import synthesize

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
