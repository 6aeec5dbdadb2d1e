"""The Jinja in which chat templates run: Hugging Face's dialect, sandboxed, and with a bound on what a template does.

Templates come with models, from strangers. Jinja's sandbox keeps them from Python's internals, but lets them loop for
days or fill the memory. Here every rendering has a budget, of which loops, calls and the texts they make are paid.
Knows no conversation and no token.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

from jinja2 import TemplateError, nodes, pass_context
from jinja2.environment import Template
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from lmworks.core.errors import TokenizerError

BUDGET = 1 << 27
"""What one rendering may spend: a unit for every character made, `_STEP` for every round of a loop and every call. A
conversation of a million tokens takes a fifth; a template that never ends is stopped after seconds."""
_STEP = 512
_LARGEST = 1 << 28
"""Product of a text's length and a number or another text's length that may meet in one call: none makes more."""
_LARGEST_TREE = 1 << 20
"""Members of members of a list."""
_SPENT = "spent so far"
"""Among the variables of a rendering; no template can spell it, nor the names of the filters below."""
_ROUNDS, _TEXT = "rounds of a loop", "text put together"
_GROWING = (
    "replace", "join", "ljust", "rjust", "center", "zfill", "expandtabs", "indent", "wordwrap", "batch", "tojson",
)  # fmt: skip
"""Methods of texts, and filters, that can make far more than they are given."""
_WRITERS = ("tojson", "string", "join", "pprint", "format", "upper", "lower", "replace", "trim", "escape", "safe")
"""Filters that write lists and mappings out."""


def run(template: Template, variables: Mapping[str, Any]) -> str:
    """Render once, within the budget.

    Raises:
        TemplateError: the template refuses, breaks a rule of the sandbox or spends too much.
    """
    return template.render({**variables, _SPENT: [0]})


@lru_cache(maxsize=16)
def compile_template(source: str) -> Template:
    """Read a template.

    Raises:
        TokenizerError: it is not valid Jinja.
    """
    extensions = ["jinja2.ext.loopcontrols", Generation]
    environment = _Environment(trim_blocks=True, lstrip_blocks=True, extensions=extensions, finalize=_written)
    environment.filters["tojson"] = _tojson
    environment.filters = {name: _paid(name, function) for name, function in environment.filters.items()}
    environment.filters |= {_ROUNDS: _rounds, _TEXT: _text}
    environment.globals |= {"raise_exception": _raise, "strftime_now": _strftime_now, "namespace": _PublicNamespace}
    del environment.globals["lipsum"]
    try:
        return environment.from_string(source)
    except (TemplateError, RecursionError) as error:
        raise TokenizerError(f"the chat template is not valid Jinja: {error}", "Fix the template") from None


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox, with a price for loops, calls and operators."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree: nodes.Template = _Priced().visit(super()._parse(source, name, filename))
        return tree

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        if getattr(__obj, "__name__", None) in _GROWING:
            _check_sizes(getattr(__obj, "__self__", ""), (*args, *kwargs.values()))
        made = super().call(__context, __obj, *args, **kwargs)
        _spend(__context, _STEP + _size(made))
        return made

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "**":
            raise SecurityError("a chat template raises no number to a power")
        if operator == "*" and (isinstance(left, str) or isinstance(right, str)):
            _check_sizes(left, [right])
        if operator == "*" and (isinstance(left, list | tuple) or isinstance(right, list | tuple)):
            raise SecurityError("a chat template multiplies texts and numbers alone")
        if operator == "%" and isinstance(left, str):
            _check_widths(left)
            _written(right)
        made = super().call_binop(context, operator, left, right)
        _spend(context, _size(made))
        return made

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        wrapped = super().wrap_str_format(value)
        if wrapped is not None:
            _check_widths(value.__self__)
        return wrapped

    @staticmethod
    def concat(parts: Iterable[str]) -> str:
        """Everything a template or a block in it printed."""
        found = list(parts)
        if sum(map(len, found)) > BUDGET:
            raise SecurityError("the chat template makes too much text")
        return "".join(found)


class _Priced(NodeTransformer):
    """Makes loops and the places where text grows pay, by filters around them."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        node.iter = _filtered(node.iter, _ROUNDS)
        return self.generic_visit(node)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        node.nodes = [_filtered(part, "string") for part in node.nodes]
        return _filtered(self.generic_visit(node), _TEXT)

    def visit_AssignBlock(self, node: nodes.AssignBlock) -> nodes.Node:
        node.filter = _filtered(node.filter, _TEXT)
        return self.generic_visit(node)


def _filtered(node: Any, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=getattr(node, "lineno", 1))


def _paid(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that checks what it is given and charges what it makes."""
    wanted = getattr(function, "jinja_pass_arg", None)

    @pass_context
    def charged(context: Context, value: Any, *args: Any, **kwargs: Any) -> Any:
        if name in _GROWING:
            _check_sizes(value, (*args, *kwargs.values()))
        if name in _WRITERS:
            _written([value, *args])
        if name == "format":
            _check_widths(str(value))
        before = () if wanted is None else (_PASSED[wanted.name](context),)
        made = function(*before, value, *args, **kwargs)
        _spend(context, _STEP + _size(value) + _size(made))
        return made

    return charged


_PASSED: dict[str, Callable[[Context], Any]] = {
    "context": lambda context: context,
    "eval_context": lambda context: context.eval_ctx,
    "environment": lambda context: context.environment,
}


@pass_context
def _rounds(context: Context, values: Iterable[Any]) -> Iterable[Any]:
    if not isinstance(values, Sequence | Mapping):
        return _counted(context, values)
    _spend(context, _STEP * len(values))
    return values


def _counted(context: Context, values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        _spend(context, _STEP)
        yield value


@pass_context
def _text(context: Context, text: str) -> str:
    _spend(context, len(text))
    return text


def _spend(context: Context, amount: int) -> None:
    spent: list[int] = context[_SPENT]
    spent[0] += amount
    if spent[0] > BUDGET:
        raise SecurityError("the chat template does not come to an end, or makes too much text")


def _written(value: Any) -> Any:
    """The same, unless it would be a text without end: a list of lists that are one and the same, and so on."""
    inside = [value]
    for part in inside:
        if isinstance(part, list | tuple):
            inside += part
        elif isinstance(part, Mapping):
            inside += part.values()
        if len(inside) > _LARGEST_TREE:
            raise SecurityError("a list is too long to be written out by a chat template")
    return value


def _size(value: Any) -> int:
    return len(value) if isinstance(value, str | Sequence | Mapping) else 0


def _check_sizes(value: Any, others: Iterable[Any]) -> None:
    """Refuse what can make far more than there was: a text many times, a long one at many places, a wide column."""
    for other in others:
        pair = [abs(x) if isinstance(x, int | float) else max(1, _size(x)) for x in (value, other)]
        if pair[0] * pair[1] > _LARGEST:
            raise SecurityError("a text or a number is too large for what the chat template does with it")


def _check_widths(form: str) -> None:
    if re.search(r"\d{5}|%[^a-zA-Z%]*\*", form):
        raise SecurityError("a chat template formats nothing that wide")


class Generation(Extension):
    """`{% generation %}...{% endgeneration %}`: prints its body between `generation_open` and `generation_close`."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        """Turn the block into a call that wraps what it prints."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        markers: list[nodes.Expr] = [nodes.Name("generation_open", "load"), nodes.Name("generation_close", "load")]
        return nodes.CallBlock(self.call_method("_wrap", markers), [], [], body).set_lineno(line)

    def _wrap(self, opening: str, closing: str, caller: Macro) -> str:
        return opening + caller() + closing


class _PublicNamespace(Namespace):
    """Without names that Python gives a meaning to."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        for name in (given := dict(*args[1:], **kwargs)):
            _check_name(name)
        Namespace.__init__(args[0], given)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: object) -> None:
    if str(name).startswith("_"):
        raise SecurityError(f"a namespace of a chat template has no {name!r}")


def _raise(message: str) -> None:
    raise TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.datetime.now().strftime(form)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Unlike Jinja's own filter, this one does not escape HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
