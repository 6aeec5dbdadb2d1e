"""Rows as single data sets have them: each read as the row that it is, with nothing learnt that is not to be learnt."""

import json

import pytest

from lmworks.data.rows.convert import explicit
from lmworks.data.rows.files import write_file
from lmworks.data.rows.layouts import parse_row, write_row
from lmworks.data.rows.load import load_rows
from lmworks.data.rows.values import LabeledRow, RowFault


def turn(role, content, **more):
    return {"role": role, "content": content, **more}


Q, A, B = turn("user", "q"), turn("assistant", "a"), turn("assistant", "b")
CALL = {"type": "function", "function": {"name": "f", "arguments": {"a": "it's 1"}}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
HERMES_SYSTEM = (
    f"Calls go in <tool_call></tool_call>, tools stand in <tools></tools>: <tools>[{json.dumps(TOOL)}]</tools>"
)
ROWS = {
    "HH": ({"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"},
           {"chosen": [Q, A], "rejected": [Q, B]}),
    "HH, explicit": ({"prompt": "\n\nHuman: q\n\nAssistant:", "chosen": " a", "rejected": " b", "response": "r"},
                     {"prompt": [Q], "chosen": [A], "rejected": [B], "response": "r"}),
    "HH, whole": ({"text": "\n\nHuman: q\n\nAssistant: a"}, {"messages": [Q, A]}),
    "LLaMA-Factory KTO": ({"messages": [Q, A], "label": False}, {"prompt": [Q], "completion": [A], "label": False}),
    "classes are no labels": ({"messages": [Q, A], "label": "math"}, {"messages": [Q, A], "label": "math"}),
    "LLaMA-Factory 1": (
        {"chosen_messages": [{**Q, "content": [{"type": "text", "value": "q"}], "loss_weight": 0.0},
                             {**A, "loss_weight": 1.0}], "rejected_messages": [Q, B]},
        {"chosen": [Q, A], "rejected": [Q, B]},
    ),
    "parts": (
        {"messages": [Q, turn("assistant", [{"type": "reasoning", "value": "hm"}, {"type": "text", "text": "a"},
                                            {"type": "tool_call", "value": json.dumps(CALL["function"])}])]},
        {"messages": [Q, turn("assistant", "a", reasoning_content="hm", tool_calls=[CALL])]},
    ),
    "calls without a function": ({"messages": [Q, turn("assistant", None, tool_calls=[CALL["function"]])]},
                                 {"messages": [Q, turn("assistant", "", tool_calls=[CALL])]}),
    "Hermes": (
        {"conversations": [
            {"from": "system", "value": HERMES_SYSTEM}, {"from": "human", "value": "q"},
            {"from": "gpt", "value": f"So:\n<tool_call>\n{json.dumps(CALL['function'])}\n</tool_call>"},
            {"from": "tool", "value": "<tool_response>\n1\n</tool_response>\n<tool_response>2</tool_response>"},
            {"from": "gpt", "value": "a"}]},
        {"messages": [turn("system", HERMES_SYSTEM), Q, turn("assistant", "So:", tool_calls=[CALL]),
                      turn("tool", "1"), turn("tool", "2"), A], "tools": [TOOL]},
    ),
    "a tag is no call": ({"conversations": [{"from": "human", "value": "q"},
                                            {"from": "gpt", "value": "<tool_call>is a tag</tool_call>"}]},
                         {"messages": [Q, turn("assistant", "<tool_call>is a tag</tool_call>")]}),
    "Glaive": (
        {"system": f"SYSTEM: You have these functions -\n{json.dumps(TOOL['function'])}\n",
         "chat": "USER: q\n\n\nASSISTANT: <functioncall> {\"name\": \"f\", \"arguments\": '{\"a\": \"it\\'s 1\"}'} "
                 "<|endoftext|>\n\n\nFUNCTION RESPONSE: {\"x\": 1}\n\n\nASSISTANT: a <|endoftext|>\n\n\n"},
        {"messages": [Q, turn("assistant", "", tool_calls=[CALL]), turn("tool", '{"x": 1}'), A], "tools": [TOOL]},
    ),
    "Glaive without functions": ({"system": "SYSTEM: Be kind.\n", "chat": "USER: q\n\n\nASSISTANT: a <|endoftext|>"},
                                 {"messages": [turn("system", "Be kind."), Q, A]}),
    "Orca pairs": ({"system": "s", "question": "q", "chosen": "a", "rejected": "b"},
                   {"prompt": [turn("system", "s"), Q], "chosen": [A], "rejected": [B]}),
    "Dolly": ({"instruction": "i", "context": "c", "response": "a", "category": "x"},
              {"prompt": [turn("user", "i\n\nc")], "completion": [A], "category": "x"}),
    "Alpaca, with the text of its template": ({"instruction": "q", "input": "", "output": "a", "text": "q and a"},
                                              {"prompt": [Q], "completion": [A], "text": "q and a"}),
    "MS-Swift": ({"query": "q", "response": "a", "history": [["x", "y"]]},
                 {"prompt": [turn("user", "x"), turn("assistant", "y"), Q], "completion": [A]}),
    "Self-Instruct": ({"id": "s", "instruction": "q", "instances": [{"input": "", "output": "a"}]},
                      {"prompt": [Q], "completion": [A], "id": "s"}),
    "UltraFeedback, binarized": (
        {"prompt": "q", "prompt_id": "1", "chosen": [Q, A], "rejected": [Q, B], "messages": [Q, A],
         "score_chosen": 8.5},
        {"chosen": [Q, A], "rejected": [Q, B], "prompt_id": "1", "messages": [Q, A], "score_chosen": 8.5}),
    "UltraFeedback, Argilla's": ({"instruction": "q", "chosen_response": "a", "rejected_response": "b"},
                                 {"prompt": [Q], "chosen": [A], "rejected": [B]}),
    "StackExchange": ({"question": "q", "response_j": "a", "response_k": "b"},
                      {"prompt": [Q], "chosen": [A], "rejected": [B]}),
    "two names of one field": ({"prompt": "q", "chosen_response": "a", "response_j": "c", "rejected": "b"},
                               {"prompt": "q", "chosen": "a", "rejected": "b", "response_j": "c"}),
    "LMSYS-Chat": ({"conversation": [Q, A], "model": "x"}, {"messages": [Q, A], "model": "x"}),
    "roles in other case": ({"messages": [{**Q, "role": "User"}, {**A, "role": "ASSISTANT"}]}, {"messages": [Q, A]}),
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_rows_of_known_data_sets_say_what_they_mean(name, tmp_path):
    value, expected = ROWS[name]
    row = parse_row(value)
    assert write_row(row) == expected
    for kind in (".jsonl", ".parquet"):
        write_file(tmp_path / f"r{kind}", [row])
        assert load_rows(tmp_path / f"r{kind}") == [row]


REFUSED = {
    "OpenAssistant, a message": ({"message_id": "1", "parent_id": None, "text": "t", "role": "prompter"}, "of a tree"),
    "OpenAssistant, a tree": ({"message_tree_id": "1", "prompt": {"text": "t", "replies": []}}, "of a tree"),
    "several answers": ({"instruction": "q", "instances": [{"input": "", "output": "a"}] * 2}, "holds 2 answers"),
    "a label of numbers": ({"messages": [Q, A], "label": 0}, "not true or false"),
    "a label of nothing": ({"messages": [Q], "label": True}, "no answer to anything"),
    "an unlearnt answer": ({"messages": [Q, A, Q, {**A, "loss_weight": 0.0}]}, "message 3 .assistant. has loss_weight"),
    "a learnt question": ({"messages": [{**Q, "loss_weight": 1.0}, A]}, "message 0 .user. has loss_weight"),
    "an image": ({"messages": [turn("user", [{"type": "image", "image": "x"}]), A]}, "part of type 'image'"),
    "reasoning twice": ({"messages": [Q, turn("assistant", [{"type": "thinking", "thinking": "x"}], thinking="y")]},
                        "'reasoning_content' twice"),
    "Glaive, broken": ({"system": "SYSTEM: {", "chat": "USER: q"}, "not JSON"),
    "no speaker": ({"system": "", "chat": "q"}, "begin with a speaker"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_row_can_say_is_refused_by_name(name):
    value, message = REFUSED[name]
    with pytest.raises(RowFault, match=message):
        parse_row(value)


def test_tools_of_every_layout_go_into_every_kind_of_file(tmp_path):
    row = parse_row({"messages": [Q, turn("assistant", "", tool_calls=[CALL]), turn("tool", "1"), A], "tools": [TOOL]})
    for layout in ("trl", "openai", "sharegpt"):
        for kind in (".jsonl", ".parquet", ".csv"):
            write_file(tmp_path / f"r{kind}", [row], layout)
            assert load_rows(tmp_path / f"r{kind}") == [row]


def test_turns_of_sharegpt_stand_in_any_field_as_for_trl():
    import copy

    from trl import data_utils as trl

    value = {"prompt": [{"from": "user", "value": "q"}], "chosen": [{"from": "assistant", "value": "a"}],
             "rejected": [{"from": "assistant", "value": "b"}]}  # fmt: skip
    assert write_row(parse_row(value)) == trl.maybe_convert_to_chatml(copy.deepcopy(value))


def test_dialogs_of_hh_part_where_their_last_answers_begin():
    """In one text they would part in the middle of the answers, which begin alike."""
    row = explicit(
        parse_row({"chosen": "\n\nHuman: q\n\nAssistant: I do", "rejected": "\n\nHuman: q\n\nAssistant: I am"})
    )
    assert [turn.content for turn in row.prompt] == ["q"]
    assert (row.chosen[0].content, row.rejected[0].content) == ("I do", "I am")


def test_answers_to_a_dialog_are_labeled_as_any():
    row = parse_row({"prompt": "\n\nHuman: q\n\nAssistant:", "completion": " a", "label": True})
    assert isinstance(row, LabeledRow)
    assert (row.prompt[0].content, row.completion[0].content) == ("q", "a")
