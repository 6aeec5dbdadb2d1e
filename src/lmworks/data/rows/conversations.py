"""Conversations: read from disk with every fault named by its line, and packed whole into rows.

Only what the assistant says is learnt. The rows are packed once and visited in a new order each epoch, so
row `r` is a pure function of the seed and `r`. Knows tokenizers only by `encode_chat`; knows no model and
no trainer.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from lmworks.core.errors import DataError
from lmworks.core.messages import Message
from lmworks.core.progress import bar
from lmworks.data.rows.layouts import conversation
from lmworks.data.rows.load import load_as
from lmworks.data.rows.values import Row
from lmworks.data.shuffle import permutation
from lmworks.nn.batch import Batch, next_token_document, pack

FILE = "conversations.jsonl"


class Conversation(list[Message]):
    """The turns of a conversation with the tools that it declares.

    Args:
        messages: the turns.
        tools: functions in OpenAI's schema.
    """

    def __init__(self, messages: Iterable[Message], tools: Sequence[Mapping[str, Any]] = ()) -> None:
        super().__init__(messages)
        self.tools = tuple(tools)


def load_conversations(path: Path | str) -> list[list[Message]]:
    """Read every conversation of a source artifact or of a `.jsonl`, `.json`, `.csv` or `.parquet` file.

    Returns:
        A `Conversation` each, which holds the tools that the row declares.

    Raises:
        DataError: the file is unreadable, a row is malformed or untrainable, or there is none; up to five
            faults are listed with their line (or row) numbers.
    """
    path = Path(path)
    return load_as(path / FILE if path.is_dir() else path, _conversation, "conversations")


def _conversation(row: Row) -> list[Message]:
    return Conversation(conversation(row), row.tools)


class EncodedChat(Protocol):
    """A conversation as tokens."""

    @property
    def token_ids(self) -> Sequence[int]:
        """The rendered conversation's ids."""
        ...

    @property
    def assistant_mask(self) -> Sequence[bool]:
        """For each token, whether the assistant wrote it."""
        ...


class ChatEncoder(Protocol):
    """What is needed of a tokenizer."""

    def encode_chat(self, messages: Sequence[Message], *, inputs: Mapping[str, Any] | None = None) -> EncodedChat:
        """Render and encode a conversation; `inputs` are further values for the template."""
        ...


class ConversationRows:
    """Rows of at most `sequence_length` tokens, each made of whole conversations.

    A conversation that is too long is cut at its end as long as something the assistant says remains
    (`num_truncated`), and is left out otherwise (`num_dropped`).

    Args:
        conversations: validated messages.
        tokenizer: renders and encodes a conversation with its chat template.
        sequence_length: most tokens in a row.
        seed: chooses the packing and the order of the rows.

    Raises:
        DataError: a conversation gives no token to learn from (named by its number), or none is left.
    """

    def __init__(
        self, conversations: Sequence[Sequence[Message]], tokenizer: ChatEncoder, sequence_length: int, seed: int
    ) -> None:
        assert sequence_length > 0, "a row needs at least one token"
        self.sequence_length, self._seed = sequence_length, seed
        self.num_truncated = self.num_dropped = 0
        self._documents: list[tuple[Sequence[int], Sequence[bool]]] = []
        with bar("encode conversations", len(conversations)) as progress:
            for number, messages in enumerate(conversations):
                tools = messages.tools if isinstance(messages, Conversation) else ()
                inputs = {"tools": [dict(tool) for tool in tools]} if tools else None
                self._add(number, tokenizer.encode_chat(messages, inputs=inputs))
                progress.advance()
        if not self._documents:
            raise DataError(
                f"none of {len(conversations)} conversations has an assistant token within {sequence_length} tokens",
                "Raise sequence_length or give shorter conversations",
            )
        self._rows = self._pack()

    def _add(self, number: int, chat: EncodedChat) -> None:
        token_ids, mask = chat.token_ids, chat.assistant_mask
        if not any(mask[1:]):  # the first token is never predicted
            raise DataError(
                f"conversation {number} (counted from 0) gives no token to learn from: it shows no assistant text",
                "Remove it, or use a chat template that renders assistant turns",
            )
        room = self.sequence_length + 1  # the last token is only a target
        if len(token_ids) > room:
            token_ids, mask = token_ids[:room], mask[:room]
            if not any(mask[1:]):
                self.num_dropped += 1
                return
            self.num_truncated += 1
        self._documents.append((token_ids, mask))

    def _pack(self) -> list[list[int]]:
        """Documents of each row: longest first, each into the emptiest row if it fits there, else a new one."""
        order = permutation(len(self._documents), self._seed, 0)
        lengths = {int(n): len(self._documents[n][0]) - 1 for n in order}
        rows: list[list[int]] = []
        emptiest: list[tuple[int, int]] = []  # (tokens used, row)
        for document in sorted(lengths, key=lambda n: -lengths[n]):
            used, row = emptiest[0] if emptiest else (self.sequence_length, -1)
            if used + lengths[document] <= self.sequence_length:
                rows[row].append(document)
                heapq.heapreplace(emptiest, (used + lengths[document], row))
            else:
                heapq.heappush(emptiest, (lengths[document], len(rows)))
                rows.append([document])
        return rows

    def __len__(self) -> int:
        """Conversations that are learnt from."""
        return len(self._documents)

    @property
    def rows_per_epoch(self) -> int:
        """Rows in one pass over the conversations."""
        return len(self._rows)

    @property
    def targets_per_epoch(self) -> int:
        """Assistant tokens learnt in one pass."""
        return sum(sum(mask[1:]) for _, mask in self._documents)

    def rows(self, start: int, count: int) -> Batch:
        """Rows `start … start+count-1` of the endless stream as one batch."""
        assert start >= 0, "rows are counted from 0"
        assert count > 0, "a batch holds at least one row"
        documents = []
        for number in range(start, start + count):
            epoch, place = divmod(number, len(self._rows))
            if epoch != self._epoch[0]:
                self._epoch = (epoch, permutation(len(self._rows), self._seed, epoch + 1).tolist())
            for document in self._rows[self._epoch[1][place]]:
                token_ids, mask = self._documents[document]
                documents.append(next_token_document(token_ids, [float(learnt) for learnt in mask]))
        return pack(documents)

    _epoch: tuple[int, list[int]] = (-1, [])
    """The epoch of the last row made, and the order of its rows."""
