"""Conversations: every layout gives the same messages, faults name their line, rows learn the assistant alone."""

import json
from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch

from lmworks.core.errors import DataError
from lmworks.core.messages import Message
from lmworks.data.rows.conversations import ConversationRows, load_conversations

EXPECTED = [Message(role="user", content="Hi"), Message(role="assistant", content="Hello")]
LAYOUTS = {
    "chat": {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]},
    "sharegpt": {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
    "alpaca": {"instruction": "Hi", "input": "", "output": "Hello"},
    "prompt": {"prompt": "Hi", "completion": "Hello"},
    "response": {"prompt": "Hi", "response": "Hello"},
    "prompt as messages": {
        "prompt": [{"role": "user", "content": "Hi"}],
        "completion": [{"role": "assistant", "content": "Hello"}],
    },
}


def write(path, *rows):
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8"
    )
    return path


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_messages(tmp_path, layout):
    assert load_conversations(write(tmp_path / "c.jsonl", LAYOUTS[layout])) == [EXPECTED]


def test_a_json_list_and_a_source_folder_are_read(tmp_path):
    (tmp_path / "c.json").write_text(json.dumps([LAYOUTS["alpaca"], LAYOUTS["chat"]]))
    assert load_conversations(tmp_path / "c.json") == [EXPECTED, EXPECTED]
    write(tmp_path / "conversations.jsonl", LAYOUTS["chat"])
    assert load_conversations(tmp_path) == [EXPECTED]


def test_input_and_system_are_kept(tmp_path):
    row = {"instruction": "Add", "input": "1 2", "output": "3", "system": "Be brief"}
    messages = load_conversations(write(tmp_path / "c.jsonl", row))[0]
    assert [(m.role, m.content) for m in messages] == [
        ("system", "Be brief"),
        ("user", "Add\n\n1 2"),
        ("assistant", "3"),
    ]


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


FAULTS = {
    "not json": ("{oops", "not JSON"),
    "not an object": ("[1]", "a list, not an object"),
    "unknown layout": ({"q": 1}, "no known layout"),
    "unknown role": ({"messages": [{"role": "robot", "content": "x"}]}, "robot"),
    "unknown sender": ({"conversations": [{"from": "alien", "value": "x"}]}, "alien"),
    "no content": ({"messages": [{"role": "user"}]}, "'content' is required"),
    "two users": ({"messages": [user("a"), user("b"), assistant("c")]}, r"turn 1 \('user'\) cannot follow 'user'"),
    "assistant first": ({"messages": [assistant("a")]}, "first turn is 'assistant'"),
    "nothing to learn": ({"messages": [user("a"), assistant("  ")]}, "nothing to learn"),
    "no turns": ({"messages": []}, "no turns"),
    "messages no list": ({"messages": "hi"}, "'messages' is a str"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_name_file_and_line(tmp_path, fault):
    row, reason = FAULTS[fault]
    with pytest.raises(DataError, match=rf"c\.jsonl:3: .*{reason}"):
        load_conversations(write(tmp_path / "c.jsonl", LAYOUTS["chat"], "", row))


def test_many_faults_are_counted(tmp_path):
    with pytest.raises(DataError, match=r"9 bad conversations: .*:5: .*and 4 more"):
        load_conversations(write(tmp_path / "c.jsonl", *["{"] * 9))


def test_missing_empty_and_foreign_files_are_refused(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        load_conversations(tmp_path / "none.jsonl")
    with pytest.raises(DataError, match="no conversations"):
        load_conversations(write(tmp_path / "c.jsonl", ""))
    (tmp_path / "latin.jsonl").write_bytes(b'{"prompt": "caf\xe9"}')
    with pytest.raises(DataError, match="not UTF-8"):
        load_conversations(tmp_path / "latin.jsonl")


@dataclass
class Encoded:
    token_ids: list[int]
    assistant_mask: list[bool]


class ByteChat:
    """`\\x01` text `\\x02` for each turn; an assistant's text and end mark are its own."""

    def encode_chat(self, messages, *, inputs=None):
        ids, mask = [], []
        for message in messages:
            text = list(message.content.encode())
            ids += [1, *text, 2]
            mine = message.role == "assistant"
            mask += [False, *[mine] * (len(text) + 1)]
        return Encoded(ids, mask)


def talk(question, answer):
    return [Message(role="user", content=question), Message(role="assistant", content=answer)]


CONVERSATIONS = [talk(f"q{i}", "a" * (i % 7 + 1)) for i in range(20)]


def test_only_the_assistant_is_learnt_and_documents_stay_apart():
    batch = ConversationRows([talk("hi", "yo")], ByteChat(), 50, 0).rows(0, 1)
    ids = [1, *b"hi", 2, 1, *b"yo", 2]
    assert batch.input_ids.tolist() == ids[:-1]
    assert batch.targets.tolist() == ids[1:]
    assert batch.loss_weights.tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert batch.cu_seqlens.tolist() == [0, 7]


def test_an_epoch_holds_every_conversation_once_within_the_row_length():
    rows = ConversationRows(CONVERSATIONS, ByteChat(), 25, 3)
    for epoch in range(2):
        seen = []
        for r in range(rows.rows_per_epoch):
            batch = rows.rows(epoch * rows.rows_per_epoch + r, 1)
            assert batch.num_tokens <= 25
            bounds = batch.cu_seqlens.tolist()
            seen += [bytes(batch.input_ids[b:e].tolist()) for b, e in pairwise(bounds)]
        assert sorted(seen) == sorted(bytes(ByteChat().encode_chat(c).token_ids[:-1]) for c in CONVERSATIONS)


def test_rows_are_a_function_of_seed_and_number():
    rows = ConversationRows(CONVERSATIONS, ByteChat(), 25, 3)
    again = ConversationRows(CONVERSATIONS, ByteChat(), 25, 3)
    far = again.rows(50, 2)
    whole = rows.rows(48, 4)
    assert torch.equal(whole.input_ids[-far.num_tokens :], far.input_ids)
    assert torch.equal(again.rows(0, 3).input_ids, rows.rows(0, 3).input_ids)
    other = ConversationRows(CONVERSATIONS, ByteChat(), 25, 4)
    assert not torch.equal(other.rows(0, 3).input_ids[:20], rows.rows(0, 3).input_ids[:20])


def test_long_conversations_are_cut_or_dropped_and_counted():
    rows = ConversationRows([talk("q", "a" * 30), talk("q" * 30, "a"), talk("q", "a")], ByteChat(), 10, 0)
    assert (rows.num_truncated, rows.num_dropped, len(rows)) == (1, 1, 2)
    assert rows.targets_per_epoch == 7 + 2
    assert max(rows.rows(r, 1).num_tokens for r in range(rows.rows_per_epoch)) <= 10
    with pytest.raises(DataError, match="none of 1 conversations"):
        ConversationRows([talk("q" * 30, "a")], ByteChat(), 10, 0)


def test_a_conversation_without_targets_is_named():
    class Deaf(ByteChat):
        def encode_chat(self, messages, *, inputs=None):
            chat = super().encode_chat(messages, inputs=inputs)
            return Encoded(chat.token_ids, [False] * len(chat.token_ids)) if messages[0].content == "q1" else chat

    with pytest.raises(DataError, match="conversation 1 "):
        ConversationRows(CONVERSATIONS, Deaf(), 25, 0)
