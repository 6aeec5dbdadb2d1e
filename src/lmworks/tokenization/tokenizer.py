"""The tokenizer every package uses: text to ids and back, conversations to ids with the assistant's part marked.

A thin layer over the `tokenizers` library. Text never becomes a special token: only a chat template's own
markers do. Knows no model.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

import tokenizers

from lmworks.core.errors import TokenizerError
from lmworks.core.messages import Message
from lmworks.tokenization.chat_template import RenderedChat, SpecialToken, render_chat
from lmworks.tokenization.decoding import TokenDecoder, token_decoder
from lmworks.tokenization.definition import TokenizerDefinition, token_text
from lmworks.tokenization.folder import ROLES, TOKENIZER, read_folder, write_folder
from lmworks.tokenization.gguf import read_gguf
from lmworks.tokenization.plain_text import model_kind, plain_spec, without_prefix
from lmworks.tokenization.spaces import clean_up

MAX_UNUSED_ROWS = 1024
"""Embedding tables are padded to round sizes; more spare rows than this mean another tokenizer's weights."""


@dataclass(frozen=True)
class EncodedChat:
    """A conversation as tokens."""

    token_ids: list[int]
    assistant_mask: tuple[bool, ...]
    """Per token, whether the assistant says it."""


class Tokenizer:
    """Text to token ids and back.

    Args:
        definition: what `read_folder` and `read_gguf` return.

    Raises:
        TokenizerError: the definition is not a valid tokenizer.
    """

    def __init__(self, definition: TokenizerDefinition) -> None:
        self.definition = definition
        spec, renamed = plain_spec(definition.spec)
        self._backend = _backend(spec)
        self._ids = self._backend.get_vocab(with_added_tokens=True)
        self._ids |= {token: self._ids.pop(name) for name, token in renamed.items()}
        self._renamed = frozenset(renamed.values())
        if not self._ids:
            raise TokenizerError("the tokenizer's vocabulary is empty", "Restore it or make the tokenizer anew")
        added = definition.spec.get("added_tokens") or ()
        self.special_tokens = tuple(
            SpecialToken(t["content"], t.get("lstrip", False), t.get("rstrip", False))
            for t in added
            if t.get("special")
        )
        self.special_token_ids = frozenset(self._ids[t.content] for t in self.special_tokens)
        self.bos_token_id = self._role_id("bos_token")
        own_end = self._role_id("eos_token")
        ends = [*([] if own_end is None else [own_end]), *definition.eos_token_ids]
        self.eos_token_ids: tuple[int, ...] = tuple(dict.fromkeys(ends))
        """Tokens that end a document or a turn, the tokenizer's own `eos_token` first."""

    @property
    def chat_template(self) -> str | None:
        """Jinja source, or None."""
        return self.definition.chat_template

    @cached_property
    def vocab_size(self) -> int:
        """One more than the largest token id."""
        return max(self._ids.values()) + 1

    @cached_property
    def adds_bos(self) -> bool:
        """Whether a text begins with `bos`: what `add_bos_token` says, else what the post-processor does."""
        said = self.definition.config.get("add_bos_token")
        if said is not None or self.bos_token_id is None:
            return bool(said)
        processor = self.definition.spec.get("post_processor") or {}
        for step in (processor, *processor.get("processors", ())):
            first: dict[str, Any] = next(iter(step.get("single", ())), {})
            token: str = first.get("SpecialToken", {}).get("id") or next(iter(step.get("cls", ())), "")
            if self._ids.get(token) == self.bos_token_id:
                return True
        return False

    @cached_property
    def fingerprint(self) -> str:
        """Sixteen hex digits over the tokenizer and its chat template."""
        content = json.dumps([dict(self.definition.spec), self.chat_template], sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()[:16]

    def token_id(self, token: str) -> int | None:
        """The id of a vocabulary entry such as `<|im_end|>`, or None."""
        return self._ids.get(token)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text. Special tokens spelled in it are plain text, and none is added.

        Raises:
            TokenizerError: the text holds half a surrogate pair, which has no UTF-8 form.
        """
        try:
            ids: list[int] = self._backend.encode(text, add_special_tokens=False).ids
        except TypeError:
            _check_text(text)
            raise
        return ids

    def encode_words(self, text: str) -> list[tuple[int, ...]]:
        """`encode` of a text, by the words it is cut into before its pieces are merged; added tokens are left out.

        Raises:
            TokenizerError: the text holds half a surrogate pair, which has no UTF-8 form.
        """
        _check_text(text)
        encoding = self._backend.encode(text, add_special_tokens=False)
        # Words are numbered anew behind each added token, which itself has no number.
        groups = groupby(zip(encoding.ids, encoding.word_ids, strict=True), key=lambda token: token[1])
        return [tuple(i for i, _ in group) for word, group in groups if word is not None]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of each text, on all cores."""
        try:
            return [e.ids for e in self._backend.encode_batch_fast(list(texts), add_special_tokens=False)]
        except TypeError:
            for text in texts:
                _check_text(text)
            raise

    def encodings(self, texts: Sequence[str]) -> list[tokenizers.Encoding]:
        """As `encode_batch`, with each token's place in its text."""
        for text in texts:
            _check_text(text)
        return self._backend.encode_batch(list(texts), add_special_tokens=False)

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of token ids; bytes that are not UTF-8 become U+FFFD, ids outside the vocabulary nothing.

        What encoding put before the first word is no part of it: `▁Hello` is `Hello` here, ` Hello` after a token.
        """
        skipped = self.special_token_ids if skip_special_tokens else ()
        known = [i for i in ids if i not in skipped and i in self]
        text = b"".join(self.token_bytes(i, first=at == 0) for at, i in enumerate(known)).decode("utf-8", "replace")
        character, times = self.strip
        for _ in range(times):
            text = text.removeprefix(character)
        return clean_up(text) if self.cleans_up else text

    def __contains__(self, token_id: int) -> bool:
        """Whether there is a token of this id."""
        return token_id in self._tokens

    def token_bytes(self, token_id: int, first: bool = False) -> bytes:
        """The bytes of one token inside a text, or at its beginning; empty for an id outside the vocabulary.

        Raises:
            TokenizerError: the tokenizer turns sequences into text in a way that single tokens do not show.
        """
        if first:
            return self._decoder.decode(self._tokens[token_id], first=True) if token_id in self else b""
        found = self._bytes.get(token_id)
        if found is None:
            found = self._decoder.decode(self._tokens[token_id], first=False) if token_id in self else b""
            self._bytes[token_id] = found
        return found

    @property
    def strip(self) -> tuple[str, int]:
        """A character, and how many of it a decoded text loses at its beginning."""
        return self._decoder.strip

    @cached_property
    def cleans_up(self) -> bool:
        """Whether decoded text loses its spaces before punctuation.

        Only where the folder asks for it, as `transformers` 5 does; never for byte-pair encoding, whose spaces are
        the text's own.
        """
        asked = bool(self.definition.config.get("clean_up_tokenization_spaces"))
        return asked and model_kind(self.definition.spec) != "BPE"

    @cached_property
    def _tokens(self) -> dict[int, str]:
        tokens = {i: token for token, i in self._ids.items()}
        for entry in self.definition.spec.get("added_tokens") or ():
            token_id = self._ids[entry["content"]]
            # Of these the library shows what its normalizer makes: `▁x` for `x`.
            if entry.get("normalized") and entry["content"] not in self._renamed:
                tokens[token_id] = self._backend.id_to_token(token_id) or entry["content"]
        return tokens

    @cached_property
    def _decoder(self) -> TokenDecoder:
        return token_decoder(self.definition.spec.get("decoder"))

    @cached_property
    def _bytes(self) -> dict[int, bytes]:
        """Of the tokens that were asked for: to decode a whole vocabulary takes as long as to read it."""
        return {}

    @cached_property
    def _later_backend(self) -> tokenizers.Tokenizer:
        """Encodes text that follows a special token: some tokenizers begin only a whole text as a new word."""
        spec = without_prefix(self.definition.spec)
        return self._backend if spec is None else _backend(plain_spec(spec)[0])

    def render_chat(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool = False,
        *,
        continue_final_message: bool = False,
        inputs: Mapping[str, Any] | None = None,
    ) -> RenderedChat:
        """A conversation as text, with the assistant's part of it; arguments as in `chat_template.render_chat`.

        Raises:
            TokenizerError: there is no chat template, or it fails on these messages.
        """
        if self.chat_template is None:
            raise TokenizerError("the tokenizer has no chat template", "Tune the model on conversations first")
        named = {role: text for role in ROLES if (text := token_text(self.definition.config.get(role))) is not None}
        return render_chat(
            self.chat_template,
            messages,
            special_tokens=self.special_tokens,
            variables=named,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            inputs=inputs,
        )

    def encode_chat(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool = False,
        *,
        continue_final_message: bool = False,
        inputs: Mapping[str, Any] | None = None,
    ) -> EncodedChat:
        """A conversation as tokens. A token is the assistant's when it begins inside an assistant span.

        Arguments are as in `chat_template.render_chat`.

        Raises:
            TokenizerError: there is no chat template, or it fails on these messages.
        """
        chat = self.render_chat(
            messages, add_generation_prompt, continue_final_message=continue_final_message, inputs=inputs
        )
        ids: list[int] = []
        starts: list[int] = []
        begin = 0
        # The library, too, cuts at special tokens first and encodes what lies between on its own.
        for start, end in (*chat.special_spans, (len(chat.text), len(chat.text))):
            if begin < start:
                _check_text(chat.text[begin:start])
                backend = self._later_backend if begin else self._backend
                encoding = backend.encode(chat.text[begin:start], add_special_tokens=False)
                ids += encoding.ids
                starts += [begin + offset for offset, _ in encoding.offsets]
            if start < end:
                token = chat.text[start:end]
                ids.append(self._ids[token] if token in self._ids else self._ids[token.strip()])
                starts.append(start)
            begin = end
        edges = [edge for span in chat.assistant_spans for edge in span]
        # After an odd number of edges a span is open.
        return EncodedChat(ids, tuple(bisect_right(edges, start) % 2 == 1 for start in starts))

    def with_chat_template(self, template: str, eos_tokens: Sequence[str] = ()) -> Tokenizer:
        """The same tokenizer with another chat template, whose turns end with `eos_tokens`.

        Raises:
            TokenizerError: an end token is not in the vocabulary.
        """
        missing = [t for t in eos_tokens if t not in self._ids]
        if missing:
            raise TokenizerError(f"the vocabulary lacks the tokens {missing}", "Use a tokenizer that has them")
        ends = dict.fromkeys([*self.eos_token_ids, *(self._ids[t] for t in eos_tokens)])
        definition = self.definition
        return Tokenizer(TokenizerDefinition(definition.spec, definition.config, template, tuple(ends)))

    def save(self, folder: Path | str) -> None:
        """Write the files of a Hugging Face tokenizer folder."""
        definition = self.definition
        write_folder(
            TokenizerDefinition(definition.spec, definition.config, definition.chat_template, self.eos_token_ids),
            Path(folder),
        )

    def _role_id(self, role: str) -> int | None:
        token = token_text(self.definition.config.get(role))
        if token is None:
            return None
        if token not in self._ids:
            raise TokenizerError(f"{role} {token!r} is not in the vocabulary", "Fix tokenizer_config.json")
        return self._ids[token]


def _backend(spec: Mapping[str, Any]) -> tokenizers.Tokenizer:
    try:
        backend = tokenizers.Tokenizer.from_str(json.dumps(spec))
    except Exception as error:  # noqa: BLE001 - the library raises bare Exception
        raise TokenizerError(f"tokenizer.json is damaged: {error}", "Restore it or make the tokenizer anew") from None
    backend.encode_special_tokens = True
    return backend


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        problem = f"the text holds {text[error.start]!r} at character {error.start}, half a surrogate pair"
        raise TokenizerError(problem, "Send valid Unicode") from None


def load_tokenizer(path: Path | str) -> Tokenizer:
    """Load a tokenizer from a Hugging Face folder or its `tokenizer.json`, a GGUF file, or a folder with one of them.

    Raises:
        TokenizerError: nothing readable is there, or the tokenizer is of an unknown kind.
        CheckpointError: the GGUF file is damaged.
    """
    path = Path(path)
    if path.name == TOKENIZER and path.is_file():
        path = path.parent
    if path.is_dir() and not (path / TOKENIZER).exists() and len(files := list(path.glob("*.gguf"))) == 1:
        path = files[0]
    definition = read_gguf(path) if path.suffix == ".gguf" else read_folder(path)
    try:
        return Tokenizer(definition)
    except TokenizerError as error:
        raise TokenizerError(f"{path}: {error.problem}", error.remedy) from None


def check_compatible(tokenizer: Tokenizer, vocab_size: int) -> None:
    """Refuse a tokenizer that cannot belong to weights with `vocab_size` embedding rows.

    Raises:
        TokenizerError: token ids without a row, or far more rows than tokens.
    """
    spare = vocab_size - tokenizer.vocab_size
    if spare < 0:
        problem = f"the tokenizer has {tokenizer.vocab_size} tokens, the weights only {vocab_size} embedding rows"
    elif spare > MAX_UNUSED_ROWS:
        problem = f"the tokenizer's {tokenizer.vocab_size} tokens leave {spare} of {vocab_size} embedding rows unused"
    else:
        return
    raise TokenizerError(problem, "Use the tokenizer the model was trained with")
