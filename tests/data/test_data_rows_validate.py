"""Faults of rows for tuning are found, each at its line and under its rule; sound files have none."""

import json
import re

import pytest
from click.testing import CliRunner
from tiny_tokenizers import save

from lmworks.cli.main import cli
from lmworks.core.errors import DataError
from lmworks.data.rows.load import load_rows
from lmworks.data.rows.validate import validate


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def calls(name="add", arguments=None, **more):
    inner = {"name": name, "arguments": {"a": 1} if arguments is None else arguments}
    return {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": inner, **more}]}


TOOL = {"type": "function", "function": {"name": "add", "parameters": {
    "type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"],
    "additionalProperties": False}}}  # fmt: skip
Q, A, B = [user("q")], [assistant("a")], [assistant("b")]


def talk(*turns, **more):
    return {"messages": list(turns), **more}


SOUND = [
    talk(user("q"), assistant("a"), id=1, source="x"),
    talk(user("r"), calls(id="c"), {"role": "tool", "content": "", "tool_call_id": "c"}, assistant("a"), tools=[TOOL]),
    talk({"role": "system", "content": "s"}, user("t"), assistant("a")),
]
ROWS = {
    "two users": (talk(user("q"), user("r"), assistant("a")), "role order", "cannot follow 'user'"),
    "late system": (talk(user("q"), {"role": "system", "content": "s"}, assistant("a")), "role order", "system"),
    "empty turn": (talk(user(" "), assistant("a")), "empty turn", r"turn 0 \(user\) is empty"),
    "no answer": (talk(user("q")), "nothing to learn", "no turn of the assistant"),
    "slip in a field": (talk(*Q, *A, licence="MIT"), "unknown field", "'license'"),
    "slip in a turn": (talk(*Q, {**A[0], "tool_call": 1}), "unknown field", "'tool_calls'"),
    "no such tool": (talk(*Q, calls("ad"), tools=[TOOL]), "tool call", "did you mean 'add'"),
    "wrong type": (talk(*Q, calls(arguments={"a": "x"}), tools=[TOOL]), "tool call", "a: 'x' is not of type"),
    "missing argument": (talk(*Q, calls(arguments={}), tools=[TOOL]), "tool call", "'a' is a required property"),
    "no object": (talk(*Q, calls(arguments="oops"), tools=[TOOL]), "tool call", "no JSON object"),
    "no call": (talk(*Q, calls(id="c"), {"role": "tool", "content": "1", "tool_call_id": "d"}, tools=[TOOL]),
                "tool call", "nobody made"),
    "bad schema": (talk(*Q, *A, tools=[{"function": {"name": "f", "parameters": {"type": "objekt"}}}]),
                   "tool schema", "no JSON Schema"),
    "no name": (talk(*Q, *A, tools=[{"type": "function"}]), "tool schema", "function with a name"),
    "user calls": (talk({**calls(), "role": "user"}, *A, tools=[TOOL]), "tool call", "only the assistant"),
    "other type": ({"prompt": "q", "completion": "a"}, "mixed types", "prompt_completion row"),
    "other form": ({"text": "a"}, "mixed forms", "row of texts"),
}  # fmt: skip


def write(file, *rows):
    file.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return file


def test_sound_rows_have_no_findings(tmp_path):
    found = validate([write(tmp_path / "r.jsonl", *SOUND)])
    assert found.findings == []
    assert dict(next(iter(found.kinds.values()))) == {"language_modeling": 3}


@pytest.mark.parametrize("name", ROWS)
def test_a_fault_is_found_at_its_line_and_alone(name, tmp_path):
    row, rule, message = ROWS[name]
    errors = validate([write(tmp_path / "r.jsonl", *SOUND, "", row)]).errors
    assert [(error.place.number, error.rule) for error in errors] == [(5, rule)]
    assert re.search(message, errors[0].message)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([{"prompt": "q", "chosen": "a", "rejected": "a"}], [(1, "chosen equals rejected", True)]),
        ([{"chosen": "ab", "rejected": "cd"}], [(1, "no prompt", True)]),
        ([talk(*Q, *A), talk(*Q, *A, id=2)], [(2, "repeated row", False)]),
        ([talk(*Q, calls())], [(1, "undeclared tools", False)]),
        ([{"text": "a", "mood": 1}], [(1, "carried field", False)]),
        ([{"prompt": "q", "completion": "a", "label": "yes"}], [(1, "label", True)]),
        ([{"prompt": "q", "completion": c, "label": True} for c in "ab"], [(1, "unbalanced labels", True)]),
        ([{"prompt": "q", "completion": c, "label": c == "a"} for c in "abc"], [(1, "unbalanced labels", False)]),
        ([{"prompt": "q", "completion": "a", "label": b} for b in (True, False)], [(2, "contradiction", True)]),
        ([{"prompt": "q", "chosen": "a", "rejected": "b"}, {"chosen": "ra", "rejected": "rb"}],
         [(2, "mixed forms", False)]),
        ([], [(1, "no rows", True)]),
        (["{", "[1]"], [(1, "malformed", True), (2, "malformed", True)]),
        ([{"prompt": Q, "completions": [A, B], "labels": [True, False]}], []),
    ],
)  # fmt: skip
def test_findings_of_several_rows(rows, expected, tmp_path):
    found = validate([write(tmp_path / "r.jsonl", *rows)]).findings
    assert [(one.place.number, one.rule, one.serious) for one in found] == expected


def test_the_weight_that_would_balance_labels_is_named(tmp_path):
    rows = [{"prompt": "q", "completion": str(n), "label": n < 2} for n in range(6)]
    (finding,) = validate([write(tmp_path / "k.jsonl", *rows)]).findings
    assert "2 desirable and 4 undesirable" in finding.message
    assert "desirable_weight = 2" in finding.message


def test_prompts_that_splits_share_are_found_whatever_the_form(tmp_path):
    train = write(tmp_path / "train.jsonl", talk(user("One  Two"), assistant("a")), talk(user("b"), assistant("a")))
    test = write(tmp_path / "test.jsonl", {"prompt": [user("one two")], "completion": B})
    (finding,) = validate([train, test]).errors
    assert (finding.rule, finding.place.file, finding.message) == ("shared prompt", test, f"asks the same as {train}:1")


def test_lengths_are_those_of_the_rendered_row(tmp_path):
    from lmworks.tokenization.tokenizer import load_tokenizer

    save("llama3", tmp_path / "t", "{% for m in messages %}<|user|>{{ m.content }}<|end|>{% endfor %}")
    tokenizer = load_tokenizer(tmp_path / "t")
    file = write(tmp_path / "r.jsonl", talk(user("hello there"), assistant("well")))
    count = len(tokenizer.encode("<|user|>hello there<|end|><|user|>well<|end|>"))
    assert not validate([file], tokenizer, count).findings
    (finding,) = validate([file], tokenizer, count - 1).errors
    assert finding.message == f"{count} tokens, above {count - 1}"
    odd = write(tmp_path / "o.jsonl", talk({"role": "system", "content": "s"}, user("q"), assistant("a")))
    save("llama3", tmp_path / "u", "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}")
    assert [one.rule for one in validate([odd], load_tokenizer(tmp_path / "u"), 9).errors] == ["chat template"]
    with pytest.raises(DataError, match="without a tokenizer"):
        validate([file], None, 5)


def run(*arguments):
    return CliRunner().invoke(cli, ["data", *map(str, arguments)])


def test_the_command_prints_a_table_and_its_status_tells(tmp_path):
    good, bad = write(tmp_path / "g.jsonl", *SOUND), write(tmp_path / "b.jsonl", *(row for row, *_ in ROWS.values()))
    result = run("validate", good)
    assert (result.exit_code, result.output.splitlines()[-1]) == (0, "0 errors, 0 notes")
    result = run("validate", bad, "--show", 2)
    assert result.exit_code == 1
    assert f"{bad}:1" in result.output
    assert "more; --show lists them" in result.output
    assert f"{bad}: {len(ROWS)} rows" in result.output


def test_the_command_converts_or_writes_nothing(tmp_path):
    source = write(tmp_path / "a.jsonl", {"instruction": "i", "input": "x", "output": "o"})
    assert run("convert", source, tmp_path / "b.parquet").exit_code == 0
    assert load_rows(tmp_path / "b.parquet") == load_rows(source)
    assert (
        run("convert", source, tmp_path / "c.json", "--kind", "language_modeling", "--layout", "sharegpt").exit_code
        == 0
    )
    assert json.loads((tmp_path / "c.json").read_text())[0]["conversations"][0] == {"from": "human", "value": "i\n\nx"}
    for wrong in (["--layout", "sharegpt"], ["--kind", "preference"], ["--layout", "sharegp"], ["--kind", "kto"]):
        assert isinstance(run("convert", source, tmp_path / "d.jsonl", *wrong).exception, DataError)
    assert not (tmp_path / "d.jsonl").exists()
