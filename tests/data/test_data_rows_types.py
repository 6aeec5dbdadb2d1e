"""Rows of every type and layout: read, known by their fields, written again, converted; TRL's helpers as oracle."""

import json
import string
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_tokenizers import save

from lmworks.core.errors import DataError
from lmworks.core.messages import Message
from lmworks.data.rows.convert import convert, explicit, implicit, pair, render, unpair
from lmworks.data.rows.files import read_file, write_file
from lmworks.data.rows.layouts import parse_conversation, parse_row, write_row
from lmworks.data.rows.load import load_labeled, load_preferences, load_rows
from lmworks.data.rows.values import (
    CompletionRow,
    LabeledRow,
    PreferenceRow,
    PromptRow,
    RowFault,
    StepwiseRow,
    TextRow,
)
from lmworks.tokenization.tokenizer import load_tokenizer


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
Q, A, B = [user("q")], [assistant("a")], [assistant("b")]
TRL_ROWS = {
    "text": {"text": "some text"},
    "messages": {"messages": [{"role": "system", "content": "s"}, *Q, *A]},
    "tools": {
        "messages": [
            *Q,
            {"role": "assistant", "content": "", "tool_calls": [CALL], "reasoning_content": "hm"},
            {"role": "tool", "content": "3", "name": "add", "tool_call_id": "c1"},
            *A,
        ],
        "tools": [TOOL],
    },
    "prompt": {"prompt": "q"},
    "prompt, conversational": {"prompt": Q},
    "prompt-completion": {"prompt": "q", "completion": " a"},
    "prompt-completion, conversational": {"prompt": Q, "completion": A},
    "preference": {"prompt": "q", "chosen": " a", "rejected": " b"},
    "preference, conversational": {"prompt": Q, "chosen": A, "rejected": B},
    "implicit": {"chosen": "q a", "rejected": "q b"},
    "implicit, conversational": {"chosen": [*Q, *A], "rejected": [*Q, *B]},
    "kto": {"prompt": "q", "completion": " a", "label": True},
    "kto, conversational": {"prompt": Q, "completion": A, "label": False},
    "stepwise": {"prompt": "q", "completions": ["a", "b"], "labels": [True, False]},
    "stepwise, conversational": {"prompt": Q, "completions": [A, B], "labels": [True, False]},
    "verl": {"data_source": "gsm8k", "prompt": Q, "ability": "math",
             "reward_model": {"style": "rule", "ground_truth": "4"}, "extra_info": {"index": 1, "split": "train"}},
}  # fmt: skip
KINDS = ["language_modeling"] * 3 + ["prompt_only"] * 2 + ["prompt_completion"] * 2 + ["preference"] * 4
KINDS += ["unpaired_preference"] * 2 + ["stepwise_supervision"] * 2 + ["prompt_only"]


@pytest.mark.parametrize(("name", "kind"), list(zip(TRL_ROWS, KINDS, strict=True)))
def test_types_are_known_by_their_fields_and_written_as_they_were(name, kind):
    from trl import data_utils as trl

    row = parse_row(TRL_ROWS[name])
    assert row.kind == kind
    assert row.conversational == (name in ("messages", "tools", "verl") or "conversational" in name)
    assert write_row(row) == TRL_ROWS[name]
    if "stepwise" not in name and name != "text":  # TRL knows a text by no field, and steps by their prompt
        assert trl.is_conversational(TRL_ROWS[name]) == row.conversational


@pytest.mark.parametrize("kind", [".jsonl", ".json", ".csv", ".parquet"])
def test_every_type_survives_every_kind_of_file(kind, tmp_path):
    for name, value in TRL_ROWS.items():
        if kind == ".csv" and name == "verl":
            continue  # cells hold no objects
        row = replace(parse_row(value), extra={**parse_row(value).extra, "id": "7"})
        file = tmp_path / f"rows{kind}"
        write_file(file, [row, row])
        assert load_rows(file) == [row, row], name


@pytest.mark.parametrize(
    ("layout", "value", "kind"),
    [
        ("sharegpt", {"conversations": [{"from": "system", "value": "s"}, {"from": "human", "value": "q"},
                      {"from": "gpt", "value": "a"}], "id": 3}, TextRow),
        ("sharegpt", {"conversations": [{"from": "human", "value": "q"},
                      {"from": "function_call", "value": '{"name": "add", "arguments": {"a": 1}}'},
                      {"from": "observation", "value": "1"}, {"from": "gpt", "value": "a"}],
                      "tools": json.dumps([TOOL])}, TextRow),
        ("sharegpt", {"conversations": [{"from": "human", "value": "q"}], "chosen": {"from": "gpt", "value": "a"},
                      "rejected": {"from": "gpt", "value": "b"}}, PreferenceRow),
        ("alpaca", {"instruction": "i", "input": "", "output": "o", "system": "s", "history": [["a", "b"]]},
         CompletionRow),
        ("alpaca", {"instruction": "i", "input": "", "chosen": "o", "rejected": "p"}, PreferenceRow),
        ("openai", {"messages": [*Q, {"role": "assistant", "content": "", "tool_calls": [
            {**CALL, "function": {"name": "add", "arguments": '{"a": 1}'}}]}], "tools": [TOOL]}, TextRow),
        ("openai", {"input": {"messages": Q, "tools": [TOOL]}, "preferred_output": A, "non_preferred_output": B},
         PreferenceRow),
    ],
)  # fmt: skip
def test_other_layouts_are_read_and_written_again(layout, value, kind):
    row = parse_row(value)
    assert type(row) is kind
    assert write_row(row, layout) == value
    assert parse_row(write_row(row)) == row


def test_openai_texts_become_values():
    value = {"messages": [{"role": "developer", "content": [{"type": "text", "text": "s"}]}, *Q,
                          {"role": "assistant", "content": "a", "reasoning": "hm", "weight": 1}]}  # fmt: skip
    system, _, answer = parse_conversation(value)
    assert (system.role, system.content) == ("system", "s")
    assert answer.reasoning_content == "hm"


FAULTS = {
    "lossy weight": ({"messages": [*Q, {**A[0], "weight": 0}]}, "turn weight"),
    "image": ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}, *A]}, "not text"),
    "slip in a turn": ({"messages": [{"role": "user", "contant": "q"}]}, "unknown field"),
    "label of text": ({"prompt": "q", "completion": "a", "label": "yes"}, "label"),
    "labels of numbers": ({"prompt": "q", "completions": ["a"], "labels": [1]}, "label"),
    "labels of another length": ({"prompt": "q", "completions": ["a"], "labels": []}, "label"),
    "mixed forms": ({"prompt": "q", "completion": A}, "mixed forms"),
    "another prompt": ({"prompt": "z", "chosen": [*Q, *A], "rejected": [*Q, *B]}, "mixed forms"),
    "tools": ({"prompt": "q", "tools": "[oops"}, "malformed"),
    "call": ({"conversations": [{"from": "function_call", "value": "oops"}]}, "tool call"),
    "legacy": ({"messages": [*Q, {"role": "function", "content": "1"}]}, "malformed"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_cannot_be_held_is_refused(name):
    value, rule = FAULTS[name]
    with pytest.raises(RowFault) as caught:
        parse_row(value)
    assert caught.value.rule == rule


def test_a_layout_that_cannot_say_a_row_refuses_it(tmp_path):
    with_reasoning = parse_row({"messages": [*Q, {**A[0], "reasoning_content": "hm"}]})
    for layout, row in {
        "sharegpt": with_reasoning,
        "alpaca": with_reasoning,
        "openai": parse_row(TRL_ROWS["kto"]),
        "trl": TextRow("x", extra={"text": "clash"}),
    }.items():
        with pytest.raises(RowFault, match=layout):
            write_row(row, layout)
    with pytest.raises(DataError, match="row 2: the layout 'alpaca'"):
        write_file(
            tmp_path / "x.jsonl", [parse_row(TRL_ROWS["prompt-completion, conversational"]), with_reasoning], "alpaca"
        )
    with pytest.raises(DataError, match=r"row 1 would not read back the same from \.csv"):
        write_file(tmp_path / "x.csv", [PromptRow("q", extra={"score": 3})])
    assert not list(tmp_path.iterdir())


def test_a_prompt_repeated_beside_conversations_is_implicit():
    row = parse_row({"prompt": "q", "chosen": [*Q, *A], "rejected": [*Q, *B]})
    assert explicit(row) == parse_row(TRL_ROWS["preference, conversational"])


texts = st.text(string.ascii_letters + " \n,é中", min_size=1, max_size=12)
answers = st.lists(texts, min_size=1, max_size=3).map(lambda parts: [assistant(part) for part in parts[:1]])
dialogs = st.lists(st.tuples(texts, texts), min_size=0, max_size=2).flatmap(
    lambda pairs: texts.map(lambda last: [t for q, a in pairs for t in (user(q), assistant(a))] + [user(last)])
)


def plain(row):
    return {key: value for key, value in write_row(row).items() if key in ("prompt", "chosen", "rejected")}


@settings(max_examples=60, deadline=None)
@given(prompt=dialogs, chosen=answers, rejected=answers)
def test_preferences_convert_as_trl_does_and_back(prompt, chosen, rejected):
    from trl import data_utils as trl

    row = parse_row({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    assert pair(unpair(row)) == [row]
    if chosen == rejected:
        with pytest.raises(RowFault, match="begin alike"):
            implicit(replace(row, chosen=row.chosen * 2, rejected=row.rejected * 2))
        return
    assert explicit(implicit(row)) == row
    assert plain(explicit(implicit(row))) == trl.maybe_extract_prompt(write_row(implicit(row)))


@settings(max_examples=60, deadline=None)
@given(prompt=texts, chosen=texts, rejected=texts)
def test_prompts_of_texts_are_extracted_as_trl_does(prompt, chosen, rejected):
    from trl import data_utils as trl

    row = parse_row({"chosen": prompt + chosen, "rejected": prompt + rejected})
    first = next((n for n, (a, b) in enumerate(zip(row.chosen, row.rejected, strict=False)) if a != b), None)
    if first is not None:  # where one begins the other, TRL leaves out a character more
        assert plain(explicit(row)) == trl.maybe_extract_prompt(write_row(row))
    assert explicit(row).prompt + explicit(row).chosen == row.chosen


@settings(max_examples=40, deadline=None)
@given(prompt=dialogs, answer=texts)
def test_conversations_and_completions_become_each_other(prompt, answer):
    row = parse_row({"prompt": prompt, "completion": [assistant(answer)], "id": 1})
    (whole,) = convert([row], "language_modeling")
    assert write_row(whole)["messages"] == [*prompt, assistant(answer)]
    assert convert([whole], "prompt_completion") == [row]
    for layout in ("alpaca", "trl"):
        assert parse_row(write_row(row, layout)) == row
    for layout in ("sharegpt", "openai", "trl"):
        assert parse_row(write_row(whole, layout)) == whole


def test_unpairing_is_trls(tmp_path):
    import datasets
    from trl import data_utils as trl

    rows = [parse_row({**TRL_ROWS["preference"], "id": n}) for n in range(3)]
    theirs = trl.maybe_unpair_preference_dataset(datasets.Dataset.from_list([write_row(row) for row in rows]))
    ours = [write_row(row) for row in convert(rows, "unpaired_preference")]
    assert sorted(map(str, map(sorted_items, ours))) == sorted(map(str, map(sorted_items, theirs)))
    assert convert(convert(rows, "unpaired_preference"), "preference") == rows


def sorted_items(row):
    return sorted(row.items())


@pytest.mark.parametrize(
    ("row", "kind"),
    [("prompt-completion", "language_modeling"), ("kto", "prompt_completion"), ("stepwise", "unpaired_preference"),
     ("prompt-completion", "prompt_only"), ("text", "prompt_completion")],
)  # fmt: skip
def test_lossy_conversions_are_refused(row, kind):
    with pytest.raises(DataError, match=r"row 1: .* without loss"):
        convert([parse_row(TRL_ROWS[row])], kind)


def test_labeled_answers_without_partner_are_named():
    good = LabeledRow("q", "a", True)
    with pytest.raises(DataError, match="row 3 is not followed"):
        convert([good, replace(good, label=False), good, replace(good, label=False, prompt="z")], "preference")
    with pytest.raises(DataError, match="mixed"):
        convert([good, PreferenceRow("q", "a", "b")], "preference")


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chat")
    template = (
        "{% if tools %}[{{ tools | length }}]{% endif %}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}"
        "<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    save("llama3", folder, template)
    return folder


@pytest.mark.parametrize("name", [name for name in TRL_ROWS if "stepwise" not in name and name != "verl"])
def test_chat_templates_are_applied_as_trl_does(name, chat):
    import transformers
    from trl import data_utils as trl

    row = parse_row(TRL_ROWS[name])
    theirs = trl.maybe_apply_chat_template(
        TRL_ROWS[name], transformers.AutoTokenizer.from_pretrained(chat), tools=TRL_ROWS[name].get("tools")
    )
    assert write_row(render(row, load_tokenizer(chat))) == {k: v for k, v in theirs.items() if k != "tools"}


def test_steps_have_no_template(chat):
    with pytest.raises(RowFault, match="steps"):
        render(parse_row(TRL_ROWS["stepwise, conversational"]), load_tokenizer(chat))


def test_files_that_others_write_are_read(tmp_path):
    import pyarrow
    from pyarrow import parquet

    rows = [TRL_ROWS["tools"], TRL_ROWS["messages"]]  # Arrow gives every turn the fields of all of them
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "m.parquet")
    assert load_rows(tmp_path / "m.parquet")[1] == parse_row(TRL_ROWS["messages"])
    (tmp_path / "k.csv").write_text('prompt,completion,label\r\n"a\nb",c,True\r\nd,e,FALSE\r\n', encoding="utf-8-sig")
    assert load_labeled(tmp_path / "k.csv") == [LabeledRow("a\nb", "c", True), LabeledRow("d", "e", False)]
    assert [found.place.number for found in read_file(tmp_path / "k.csv")] == [2, 4]
    (tmp_path / "l.json").write_text('[\n {"text": "a"},\n {"text":\n "b"},\n {"text": "c"}\n]')
    assert [found.place.number for found in read_file(tmp_path / "l.json")] == [2, 3, 5]


BROKEN = {
    "no list.json": ('{"text": "a"}', "Wrap the rows"),
    "open.json": ('[{"text": "a"}', "comma or ]"),
    "more.json": ('[{"text": "a"}] x', "text follows"),
    "bad.json": ('[{"text": oops}]', "not JSON"),
    "twice.json": ('[\n{"text": "a", "text": "b"}]', ":2: .*comes twice"),
    "quote.csv": ('text\n"a"b\n', "not CSV"),
    "rows.parquet": ("PAR1", "Parquet"),
    "x.xml": ("<a/>", "no known kind"),
    "empty.csv": ("", "no rows"),
    "cells.csv": ("text,id\na\n", "1 cells under 2 names"),
    "twice.jsonl": ('{"text": "a", "text": "b"}', "comes twice"),
    "cell.csv": ("messages\n[oops\n", "not JSON"),
    "label.csv": ("prompt,completion,label\na,b,1\n", "not true or false"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_are_named_errors(name, tmp_path):
    content, reason = BROKEN[name]
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=reason):
        load_rows(tmp_path / name)


def write(file, *rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_preferences_load_with_prompts_taken_out(tmp_path):
    file = write(tmp_path / "p.jsonl", TRL_ROWS["preference, conversational"], TRL_ROWS["implicit, conversational"])
    turns = (Message(role="user", content="q"),)
    assert [row.prompt for row in load_preferences(file)] == [turns, turns]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (TRL_ROWS["kto"], "unpaired_preference row has no 'chosen'"),
        ({"prompt": "q", "chosen": "a", "rejected": "a"}, "the same"),
        ({"prompt": "q", "chosen": "a", "rejected": " "}, "'rejected' is empty"),
        ({"prompt": Q, "chosen": A, "rejected": Q}, "cannot follow"),
        ({"chosen": "ab", "rejected": "cd"}, "share no beginning"),
    ],
)
def test_unsound_preferences_are_named_by_line(row, reason, tmp_path):
    with pytest.raises(DataError, match=rf"p\.jsonl:2: .*{reason}"):
        load_preferences(write(tmp_path / "p.jsonl", TRL_ROWS["preference"], row))
    with pytest.raises(DataError, match="has no 'completion' with a 'label'"):
        load_labeled(write(tmp_path / "k.jsonl", TRL_ROWS["preference"]))


def test_stepwise_rows_hold_their_steps():
    row = parse_row(TRL_ROWS["stepwise"])
    assert row == StepwiseRow("q", ("a", "b"), (True, False))
    assert row.contents == {"prompt": "q", "completions[0]": "a", "completions[1]": "b"}


TURNS = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]


@pytest.mark.parametrize("value", [
    {"conversations": TURNS, "kto_tag": False},
    {"instruction": "q", "input": "", "output": "a", "kto_tag": False},
])  # fmt: skip
def test_answers_tagged_as_bad_are_not_answers_to_learn(value):
    """LLaMA-Factory's label for KTO makes a row what `label` makes it."""
    asked, answer = ({"role": role, "content": text} for role, text in (("user", "q"), ("assistant", "a")))
    assert parse_row(value) == parse_row({"prompt": [asked], "completion": [answer], "label": False})
    assert write_row(parse_row(value), "alpaca" if "output" in value else "sharegpt") == value
    with pytest.raises(RowFault, match="'kto_tag' is 'false'"):
        parse_row({**value, "kto_tag": "false"})


@pytest.mark.parametrize("media", [{"images": ["a.png"]}, {"image": "a.png"}, {"videos": [{"path": "b.mp4"}]}])
def test_rows_with_more_than_text_are_refused(media):
    with pytest.raises(RowFault, match="only text"):
        parse_row({"conversations": TURNS, **media})
    assert parse_row({"conversations": TURNS, **{field: [] for field in media}})


def test_conversations_of_messages_are_read():
    """Many files keep `role` and `content` under ShareGPT's name."""
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    assert parse_row({"conversations": messages}) == parse_row({"conversations": TURNS})
