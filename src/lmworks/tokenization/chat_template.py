"""Conversations to text: one rendering for training, evaluation and serving. Knows no vocabulary.

A template is untrusted input and runs in Jinja's sandbox. So are messages: a message that spells a special
token must not become one. Special tokens inside messages are therefore replaced by stand-in characters
before rendering and restored after it, which tells the template's own markers from quoted ones whatever
the template does with the text. The same trick marks `{% generation %}` blocks.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from jinja2 import TemplateError
from jinja2.exceptions import SecurityError

from lmworks.core.errors import TokenizerError
from lmworks.core.messages import Message
from lmworks.tokenization.template_environment import compile_template, run

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""The default template. It adds no system prompt."""

Span = tuple[int, int]


@dataclass(frozen=True)
class SpecialToken:
    """A token that stands for itself in a template's text."""

    content: str
    lstrip: bool = False
    """The token swallows white space on its left."""
    rstrip: bool = False

    @property
    def pattern(self) -> str:
        """Regular expression of the token in a text."""
        return (r"\s*" if self.lstrip else "") + re.escape(self.content) + (r"\s*" if self.rstrip else "")


@dataclass(frozen=True)
class RenderedChat:
    """A conversation as text. Spans are `(start, end)` in characters."""

    text: str
    assistant_spans: tuple[Span, ...]
    """What the model has to produce: each assistant turn with its end-of-turn marker, without the line end after it.
    Empty for a prompt (`add_generation_prompt`)."""
    special_spans: tuple[Span, ...] = ()
    """The template's own special tokens; the same strings quoted in a message are not among them."""


def render_chat(
    template: str,
    messages: Sequence[Message],
    *,
    special_tokens: Sequence[SpecialToken],
    variables: Mapping[str, str] | None = None,
    add_generation_prompt: bool = False,
    continue_final_message: bool = False,
    inputs: Mapping[str, Any] | None = None,
) -> RenderedChat:
    """Render a conversation and find what the assistant says in it.

    Where the template has `{% generation %}` blocks they are the assistant's spans. Elsewhere a span is what
    an assistant message adds to the rendering of everything before it.

    Args:
        template: Jinja source in Hugging Face's dialect.
        messages: the conversation.
        special_tokens: the tokenizer's special tokens.
        variables: names the template may use, such as `bos_token`.
        add_generation_prompt: end with the opening of an assistant turn.
        continue_final_message: end with the last message's words, so that it can be continued.
        inputs: what the asker says besides messages: `tools`, `documents`, switches of the template. Special tokens
            spelled in it are text, as they are in messages.

    Raises:
        TokenizerError: the template is invalid or refuses the conversation, or does not show the message to be
            continued, or, when spans are wanted, it renders the beginning of a conversation differently once more
            turns follow.
    """
    renderer = _Renderer(template, messages, special_tokens, variables or {}, inputs or {})
    if continue_final_message:
        return renderer.opened()
    full = renderer.render(len(messages), add_generation_prompt)
    if add_generation_prompt:
        return RenderedChat(full.text, (), full.special_spans)
    if renderer.marks_generation:
        return full
    return RenderedChat(full.text, tuple(renderer.turns(full)), full.special_spans)


class _Renderer:
    """Renders beginnings of one conversation with the same stand-ins."""

    def __init__(
        self,
        template: str,
        messages: Sequence[Message],
        special_tokens: Sequence[SpecialToken],
        variables: Mapping[str, str],
        inputs: Mapping[str, Any],
    ) -> None:
        self.template, self.variables = compile_template(template), variables
        self.marks_generation = re.search(r"\{%-?\s*generation\b", template) is not None
        self.roles = [message.role for message in messages]
        plain = [_with_thinking(message.to_template()) for message in messages]
        longest_first = sorted((t for t in special_tokens if t.content), key=lambda t: -len(t.content))
        quoted = re.compile("|".join(re.escape(t.content) for t in longest_first) or r"(?!)")
        given = {"messages": plain, **inputs}
        everything = template + json.dumps(given, ensure_ascii=False)
        unused = _unused_characters(everything)
        # Looked up in the messages, not in their JSON, where escapes could hide a token.
        found = sorted({match for text in _texts(given) for match in quoted.findall(text)})
        try:
            self.open, self.close, self.cut = next(unused), next(unused), next(unused)
            stand_ins = {token: next(unused) for token in found}
        except StopIteration:
            raise TokenizerError(
                "the conversation uses every private-use character of Unicode", "Remove some of them"
            ) from None
        self.restored = {stand_in: token for token, stand_in in stand_ins.items()}
        self.messages = [_substitute(m, quoted, stand_ins) for m in plain]
        self.inputs = {name: _substitute(value, quoted, stand_ins) for name, value in inputs.items()}
        reserved = "".join([self.open, self.close, *self.restored])
        self.pieces = re.compile("|".join([f"[{reserved}]", *(t.pattern for t in longest_first)]))

    def render(self, count: int, add_generation_prompt: bool) -> RenderedChat:
        """The first `count` messages."""
        return self._restore(self._raw(count, add_generation_prompt))

    def opened(self) -> RenderedChat:
        """All messages, up to the end of the last one's content."""
        last = self.messages[-1]
        self.messages[-1] = {**last, "content": last["content"] + self.cut + " "}
        text, found, after = self._raw(len(self.messages), False).rpartition(self.cut)
        if not after.startswith(" ") and last["content"].strip():
            text = text.rstrip()  # as the template, which trims, would have had it without the cut
        if not found:
            raise TokenizerError(
                "the chat template does not show the content of the last message, so it cannot be continued",
                "Let a new message begin",
            )
        rendered = self._restore(text)
        return RenderedChat(rendered.text, (), rendered.special_spans)

    def _raw(self, count: int, add_generation_prompt: bool) -> str:
        """The template's text of the first `count` messages, with stand-ins and markers."""
        try:
            return run(
                self.template,
                {
                    "tools": None,
                    "documents": None,
                    **self.variables,
                    **self.inputs,
                    "messages": self.messages[:count],
                    "add_generation_prompt": add_generation_prompt,
                    "generation_open": self.open,
                    "generation_close": self.close,
                },
            )
        except SecurityError as error:
            raise TokenizerError(f"the chat template is not run: {error}", "Use a template that is safe") from None
        except TemplateError as error:
            raise TokenizerError(
                f"the chat template refuses the conversation: {error}", "Change the messages"
            ) from None
        except (
            TypeError,
            ValueError,
            LookupError,
            AttributeError,
            ArithmeticError,
            RecursionError,
            MemoryError,
        ) as error:
            raise TokenizerError(
                f"the chat template fails: {type(error).__name__}: {error}", "Fix the template"
            ) from None

    def _restore(self, raw: str) -> RenderedChat:
        """The text with quoted tokens put back, and where its markers stand."""
        text: list[str] = []
        spans: list[Span] = []
        specials: list[Span] = []
        length = begun = last = 0
        for match in self.pieces.finditer(raw):
            before, piece = raw[last : match.start()], match[0]
            last = match.end()
            text.append(before)
            length += len(before)
            if piece == self.open:
                begun = length
            elif piece == self.close:
                spans.append((begun, length))
            else:
                restored = self.restored.get(piece)
                if restored is None:
                    specials.append((length, length + len(piece)))
                text.append(restored or piece)
                length += len(restored or piece)
        return RenderedChat("".join([*text, raw[last:]]), tuple(spans), tuple(specials))

    def turns(self, full: RenderedChat) -> Iterator[Span]:
        """The span of each assistant message, as what it adds to the text before it."""
        for i, role in enumerate(self.roles):
            if role != "assistant":
                continue
            before = self.render(i, True)
            after = full if i + 1 == len(self.roles) else self.render(i + 1, False)
            if not (full.text.startswith(after.text) and after.text.startswith(before.text)):
                raise TokenizerError(
                    f"the chat template renders the conversation up to message {i} differently once it goes on, "
                    "so the assistant's words cannot be told apart",
                    "Use a template with {% generation %} blocks around assistant turns",
                )
            start, end = len(before.text), len(after.text)
            ends = [e for s, e in after.special_spans if s >= start]
            if ends and not after.text[ends[-1] :].strip():
                end = ends[-1]
            yield start, end


def _with_thinking(message: dict[str, Any]) -> dict[str, Any]:
    """Under both names that templates know: gpt-oss reads `thinking`, the others `reasoning_content`."""
    reasoning = message.get("reasoning_content")
    return message if reasoning is None else {"thinking": reasoning, **message}


def _unused_characters(text: str) -> Iterator[str]:
    """Noncharacters, then private-use characters, that `text` does not contain."""
    used = set(text)
    for code in chain(range(0xFDD0, 0xFDF0), range(0xE000, 0xF900), range(0xF0000, 0xFFFFE)):
        if chr(code) not in used:
            yield chr(code)


def _texts(value: Any) -> Iterator[str]:
    """Every string inside a JSON-like value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _texts(key)
            yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)


def _substitute(value: Any, quoted: re.Pattern[str], stand_ins: Mapping[str, str]) -> Any:
    """The same value with the tokens in its strings replaced."""
    if isinstance(value, str):
        return quoted.sub(lambda match: stand_ins[match[0]], value) if stand_ins else value
    if isinstance(value, Mapping):
        return {_substitute(k, quoted, stand_ins): _substitute(v, quoted, stand_ins) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_substitute(item, quoted, stand_ins) for item in value]
    return value
