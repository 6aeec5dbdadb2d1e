"""Files of rows that are awkward or hostile: every fault is named at its row, and the rows around it are read."""

import ast
import gzip
import inspect
import json
import random
from pathlib import Path

import pytest
from click.testing import CliRunner

import lmworks.data.rows
from lmworks.cli.main import cli
from lmworks.core.errors import DataError
from lmworks.data.rows.files import read_file, write_file
from lmworks.data.rows.layouts import Layout, parse_row, write_row
from lmworks.data.rows.load import load_rows
from lmworks.data.rows.rules import REMEDIES
from lmworks.data.rows.validate import validate
from lmworks.data.rows.values import RowFault, TextRow

TALK = '{"messages": [{"role": "user", "content": "%s"}, {"role": "assistant", "content": "a"}]}'
FAULTS = {
    b'{"text": "a\\ud83d"}': "lone surrogate",
    b'{"text": "a", "\\udc00": 1}': "lone surrogate",
    b'{"text": "a", "score": NaN}': "no number",
    b'{"text": "a", "score": -Infinity}': "no number",
    b'{"text": "a", "score": ' + b"9" * 5000 + b"}": "no number",
    b'{"text": "a", "meta": ' + b"[" * 101 + b"]" * 101 + b"}": "nesting",
    b'{"text": "a", "meta": ' + b'{"a":' * 50_000 + b"1" + b"}" * 50_000 + b"}": "nesting",
    b'{"text": "a", "text": "b"}': "name twice",
    b'{"text": "a\xff"}': "encoding",
    b'{"text": "a\x00"}': "malformed",
    b'\xef\xbb\xbf{"text": "a"}': "malformed",
    b'{"text": "a"} {"text": "b"}': "malformed",
    b"[1]": "malformed",
    b"null": "malformed",
}


@pytest.mark.parametrize(("line", "rule"), FAULTS.items(), ids=lambda value: repr(value)[:40])
def test_a_faulty_line_is_named_and_the_next_is_read(line, rule, tmp_path):
    (tmp_path / "r.jsonl").write_bytes(b'{"text": "first"}\r\n\n' + line + b'\n{"text": "last", "score": 1}')
    found = validate([tmp_path / "r.jsonl"])
    assert [(one.place.number, one.rule) for one in found.errors] == [(3, rule)]
    assert found.rows[tmp_path / "r.jsonl"] == 3
    assert rule in REMEDIES


def test_a_faulty_row_of_a_list_is_named_and_the_next_is_read(tmp_path):
    (tmp_path / "r.json").write_text('[{"text": "a", "text": "b"},\n{"text": "\\ud800"},\n{"text": NaN},\n{"text": 3}]')
    rules = [(one.place.number, one.rule) for one in validate([tmp_path / "r.json"]).errors]
    assert rules == [(1, "name twice"), (2, "lone surrogate"), (3, "no number"), (4, "malformed")]
    (tmp_path / "r.json").write_text('[{"text": 3},\n{"text": oops},\n{"text": "c"}]')
    errors = validate([tmp_path / "r.json"]).errors
    assert [one.place.number for one in errors] == [1, 2]
    assert errors[1].message.endswith("nothing behind it was read")


def test_what_is_fine_stays_fine(tmp_path):
    deep = '{"text": "a \\ud83d\\ude00 \\\\ud800", "meta": ' + "[" * 98 + "]" * 98 + "}"
    lists = json.dumps({"text": "b", "meta": [[1]] * 300})
    (tmp_path / "r.jsonl").write_text(f"\ufeff{deep}\r\n{lists}\n" + '{"text": "c\u2028d\x85e"}\n', encoding="utf-8")
    assert [row.text for row in load_rows(tmp_path / "r.jsonl")] == ["a 😀 \\ud800", "b", "c\u2028d\x85e"]


def test_odd_characters_and_written_calls_are_worth_a_look(tmp_path):
    rows = ['{"text": "a\\u0000"}', '{"text": "caf\ufffd"}', '{"text": "tab\\tend\\n"}']
    (tmp_path / "t.jsonl").write_text("\n".join(rows))
    assert [(one.place.number, one.rule) for one in validate([tmp_path / "t.jsonl"]).findings] == [
        (1, "odd character"), (2, "odd character")
    ]  # fmt: skip
    (tmp_path / "m.jsonl").write_text((TALK % "q").replace('"a"', '"<tool_call>{}</tool_call>"'))
    assert [one.rule for one in validate([tmp_path / "m.jsonl"]).findings] == ["call as text"]


def test_compressed_files_are_read_and_written(tmp_path):
    rows = [TextRow("a", extra={"id": str(n)}) for n in range(3)]
    for name in ("r.jsonl.gz", "r.json.gz", "r.CSV.gz"):
        write_file(tmp_path / name, rows)
        assert gzip.decompress((tmp_path / name).read_bytes())
        assert load_rows(tmp_path / name) == rows
    before = (tmp_path / "r.jsonl.gz").read_bytes()
    write_file(tmp_path / "r.jsonl.gz", rows)
    assert (tmp_path / "r.jsonl.gz").read_bytes() == before
    (tmp_path / "cut.jsonl.gz").write_bytes(before[:-9])
    with pytest.raises(DataError, match=r"damaged|decompressed"):
        load_rows(tmp_path / "cut.jsonl.gz")
    for name in ("r.parquet.gz", "r.gz", "r.jsonl.rar"):
        (tmp_path / name).write_bytes(before)
        with pytest.raises(DataError, match="no known kind"):
            load_rows(tmp_path / name)


def test_lines_under_the_name_of_a_list_are_read(tmp_path):
    (tmp_path / "r.json").write_text((TALK % "q") + "\n" + (TALK % "r") + "\n")
    assert len(load_rows(tmp_path / "r.json")) == 2
    (tmp_path / "r.json").write_text(json.dumps(json.loads(TALK % "q"), indent=1))
    with pytest.raises(DataError, match=r"Wrap the rows in \[ \]"):
        load_rows(tmp_path / "r.json")
    (tmp_path / "r.json").write_text(" \n")
    assert [one.rule for one in validate([tmp_path / "r.json"]).findings] == ["no rows"]


@pytest.mark.parametrize("name", ["r.jsonl", "r.json", "r.csv"])
def test_other_encodings_are_named(name, tmp_path):
    (tmp_path / name).write_bytes((TALK % "q").encode("utf-16"))
    with pytest.raises(DataError, match="is UTF-16"):
        load_rows(tmp_path / name)


SCHEMAS = {
    "remote": ({"properties": {"a": {"$ref": "http://127.0.0.1:9/schema.json"}}}, "cannot be checked"),
    "endless": ({"$ref": "#"}, "refers to itself without end"),
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_schemas_of_strangers_ask_no_host_and_end(name, tmp_path, monkeypatch):
    import urllib.request

    monkeypatch.setattr(urllib.request, "urlopen", lambda *_: pytest.fail("another host was asked"))
    schema, message = SCHEMAS[name]
    call = {"function": {"name": "f", "arguments": {"a": 1}}}
    row = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "", "tool_calls": [call]}],
           "tools": [{"type": "function", "function": {"name": "f", "parameters": schema}}]}  # fmt: skip
    (tmp_path / "r.jsonl").write_text(json.dumps(row))
    (finding,) = validate([tmp_path / "r.jsonl"]).errors
    assert finding.rule == "tool call"
    assert message in finding.message


def test_half_a_character_is_not_written(tmp_path):
    with pytest.raises(DataError, match="half a character"):
        write_file(tmp_path / "r.jsonl", [TextRow("a\ud800")])
    with pytest.raises(DataError, match="do not fit the columns"):
        write_file(tmp_path / "r.parquet", [TextRow("a", extra={"score": 10**40})])
    assert not list(tmp_path.iterdir())


def test_every_rule_that_validation_names_has_its_remedy(tmp_path):
    named = set()
    for file in Path(inspect.getfile(lmworks.data.rows)).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("RowFault", "Finding"):
                named |= {one.value for one in node.args[:2] if isinstance(one, ast.Constant) and one.value in REMEDIES}
    assert named == set(REMEDIES)
    (tmp_path / "r.jsonl").write_text("[1]\n[2]\n")
    result = CliRunner().invoke(cli, ["data", "validate", str(tmp_path / "r.jsonl")])
    assert result.exit_code == 1
    assert result.output.count(REMEDIES["malformed"]) == 1


def test_fields_of_other_names_are_given_ours(tmp_path):
    row = {"frage": "q", "antwort": "a", "id": "7"}
    (tmp_path / "r.jsonl").write_text(json.dumps(row) + "\n" + json.dumps({**row, "prompt": "x"}))
    command = ["data", "convert", str(tmp_path / "r.jsonl"), str(tmp_path / "o.jsonl"), "--field", "prompt=frage"]
    result = CliRunner().invoke(cli, [*command, "--field", "completion=antwort"])
    assert "r.jsonl:2: one of ['completion', 'prompt'] is there under both" in str(result.exception)
    (tmp_path / "r.jsonl").write_text(json.dumps(row))
    assert CliRunner().invoke(cli, [*command, "--field", "completion=antwort"]).exit_code == 0
    assert json.loads((tmp_path / "o.jsonl").read_text()) == {"prompt": "q", "completion": "a", "id": "7"}
    assert "names no two fields" in str(CliRunner().invoke(cli, [*command, "--field", "completion"]).exception)


FIELDS = [
    "messages", "conversations", "prompt", "completion", "chosen", "rejected", "label", "labels", "completions", "text",
    "instruction", "input", "output", "system", "history", "tools", "kto_tag", "chat", "query", "response", "question",
    "answer", "instances",
]  # fmt: skip


TEXTS = [
    "q", "a ", "\n\nHuman: x\n\nAssistant:", "\n\nHuman: x\n\nAssistant: y", "", "[", "\0",
    '<tool_call>{"name": "f"}</tool_call>', "USER: a\nASSISTANT: <functioncall> {}",
]  # fmt: skip


def anything(chance, depth=0):
    """A value that may be right, wrong or hostile."""
    kind = chance.random()
    if kind < 0.35:
        return chance.choice(TEXTS)
    if kind < 0.5 or depth > 3:
        return chance.choice([None, True, False, 0, 2.5, 10**30])
    if kind < 0.9:
        return [any_turn(chance, depth + 1) for _ in range(chance.randrange(4))]
    return {chance.choice([*FIELDS, "type", "name"]): anything(chance, depth + 1) for _ in range(chance.randrange(4))}


def any_turn(chance, depth):
    content = chance.choice(["hi", "", anything(chance, depth)])
    if chance.random() < 0.5:
        return {"role": chance.choice(["user", "assistant", "system", "tool", 3]), "content": content}
    turn = {"from": chance.choice(["human", "gpt", "function_call", "observation", None]), "value": content}
    return turn if chance.random() < 0.8 else {**turn, "tool_calls": anything(chance, depth)}


@pytest.mark.parametrize("seed", range(3))
def test_no_row_whatever_it_holds_ends_a_validation(seed, tmp_path):
    chance = random.Random(seed)
    rows = [{chance.choice(FIELDS): anything(chance) for _ in range(chance.randrange(1, 6))} for _ in range(600)]
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = validate([tmp_path / "r.jsonl"])
    assert {one.rule for one in found.findings} <= set(REMEDIES)
    assert len({one.place.number for one in found.errors}) < found.rows[tmp_path / "r.jsonl"] == 600
    for one in read_file(tmp_path / "r.jsonl"):
        for layout in Layout.__args__:
            try:
                written = write_row(row := one.row(), layout)
            except RowFault:
                continue
            assert parse_row(json.loads(json.dumps(written))) == row
