"""Completions of a model with random logits have the form that was asked for, whatever it is."""

from __future__ import annotations

import json
import re
import time
from concurrent.futures import wait

import jsonschema
import numpy as np
import pytest
import tiny_tokenizers
from json_schemas import HARD, generated, walk
from tiny_engine import IM_END, VOCABULARY, byte_tokenizer

from lmworks.core.errors import RequestError
from lmworks.core.sampling import StructuredOutputs
from lmworks.engine.grammar.compiler import GrammarCompiler, GrammarConstraint
from lmworks.tokenization import StreamingDetokenizer, Tokenizer, load_tokenizer

ROWS = VOCABULARY + 5
"""A model has more rows than its tokenizer has tokens."""
FORMATS = ("date", "email", "ipv4", "ipv6", "uuid")
"""Those that `jsonschema` checks by their standard without further packages."""
BYTE_KINDS = ["gpt2", "llama3", "deepseek", "llama", "mistral", "gemma"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return byte_tokenizer()


@pytest.fixture(scope="module")
def compiler(tokenizer):
    compiler = GrammarCompiler(tokenizer, ROWS)
    yield compiler
    compiler.close()


def started(compiler: GrammarCompiler, **outputs: object) -> GrammarConstraint:
    constraint = compiler.compile(StructuredOutputs(**outputs)).result(timeout=20)()
    assert isinstance(constraint, GrammarConstraint)
    return constraint


def allowed(constraint: GrammarConstraint) -> set[int]:
    return set(np.flatnonzero(np.unpackbits(constraint.mask().numpy().view(np.uint8), bitorder="little")).tolist())


def fault(compiler: GrammarCompiler, **outputs: object) -> str:
    with pytest.raises(RequestError) as caught:
        compiler.compile(StructuredOutputs(**outputs)).result(timeout=20)
    return str(caught.value)


def check_schema(compiler, tokenizer, schema: dict, seed: int) -> None:
    text = tokenizer.decode(walk(started(compiler, json_schema=schema), tokenizer, seed))
    validator = jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker(FORMATS))
    errors = [error.message for error in validator.iter_errors(json.loads(text))]
    assert not errors, f"{text!r} breaks {schema}: {errors}"


def test_february_has_29_days_in_leap_years_alone(compiler, tokenizer):
    for kind, rest in (("date", ""), ("date-time", "T00:00:00Z")):
        for day, exists in (("2024-02-29", True), ("2000-02-29", True), ("1900-02-29", False), ("2023-02-29", False),
                            ("2023-04-31", False), ("0000-01-01", False), ("1999-12-31", True)):  # fmt: skip
            constraint = started(compiler, json_schema={"type": "string", "format": kind})
            text = f'"{day}{rest}"'
            assert all(constraint.accept(token) for token in tokenizer.encode(text)) is exists, text


@pytest.mark.parametrize("number", range(len(HARD)))
def test_hard_schemas_always_hold(compiler, tokenizer, number):
    for seed in range(3):
        check_schema(compiler, tokenizer, HARD[number], seed)


def test_generated_schemas_always_hold(compiler, tokenizer):
    for seed in range(30):
        check_schema(compiler, tokenizer, generated(seed), seed)


@pytest.mark.slow
def test_two_hundred_schemas_always_hold(compiler, tokenizer):
    schemas = [*HARD, *(generated(seed) for seed in range(200 - len(HARD)))]
    assert len(schemas) == 200
    for schema in schemas:
        for seed in range(5):
            check_schema(compiler, tokenizer, schema, seed)


def test_any_object_regex_choice_and_grammar(compiler, tokenizer):
    for seed in range(5):
        assert isinstance(
            json.loads(tokenizer.decode(walk(started(compiler, json_object=True), tokenizer, seed))), dict
        )
        phone = tokenizer.decode(walk(started(compiler, regex=r"^\d{3}-[a-z/]{2,4}$"), tokenizer, seed))
        assert re.fullmatch(r"[0-9]{3}-[a-z/]{2,4}", phone)
        choices = ("yes", "no", 'may "be"\n', "")
        assert tokenizer.decode(walk(started(compiler, choice=choices), tokenizer, seed)) in choices
        lark = 'start: "(" (start | /[a-c]/)* ")"'
        ebnf = 'root ::= "(" (root | [a-c])* ")"'
        for grammar in (lark, ebnf):
            text = tokenizer.decode(walk(started(compiler, grammar=grammar), tokenizer, seed))
            assert text.count("(") == text.count(")")
            assert text[0] == "("
            assert set(text) <= set("(abc)")


@pytest.mark.parametrize("kind", tiny_tokenizers.KINDS)
@pytest.mark.parametrize("begins_text", [True, False])
def test_every_kind_of_tokenizer_writes_what_was_asked(tmp_path, kind, begins_text):
    tiny_tokenizers.save(kind, tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    ends = tokenizer.eos_token_ids or (tokenizer.token_id("[SEP]"),)
    compiler = GrammarCompiler(tokenizer, tokenizer.vocab_size, ends)

    def written(seed: int, **outputs: object) -> str:
        constraint = compiler.compile(StructuredOutputs(**outputs), begins_text).result(timeout=20)()
        tokens: list[int] = []
        rng = np.random.default_rng(seed)
        while not constraint.finished and len(tokens) < 500:
            choices = sorted(allowed(constraint))
            over = [i for i in choices if i in ends or tokenizer.token_bytes(i)[-1:] in (b'"', b"}", b"]")]
            tokens.append(int(rng.choice(over if over and len(tokens) > 20 else choices)))
            assert constraint.accept(tokens[-1])
        detokenizer = StreamingDetokenizer(tokenizer, continues=not begins_text)
        return detokenizer.add([t for t in tokens if t not in ends]) + detokenizer.finish()

    pattern = r"the( [a-z]{1,9}){2}" if begins_text else r" the( [a-z]{1,9}){2}"
    for seed in range(5):
        assert re.fullmatch(pattern, written(seed, regex=pattern))
        if kind in BYTE_KINDS:
            assert isinstance(json.loads(written(seed, json_object=True)), dict)
    compiler.close()


def test_the_constraint_follows_accepts_and_rollbacks(compiler, tokenizer):
    constraint = started(compiler, regex="abc+")
    a, b, c = tokenizer.encode("abc")
    assert allowed(constraint) == {a}
    assert not constraint.accept(b)
    assert not constraint.accept(IM_END)
    assert not constraint.accept(ROWS - 1), "a row without a token"
    assert constraint.accept(a)
    assert constraint.accept(b)
    before = allowed(constraint)
    assert constraint.accept(c)
    assert allowed(constraint) == {c, *tokenizer.eos_token_ids}
    assert constraint.accept(c)
    assert constraint.accept(IM_END)
    assert constraint.finished
    assert allowed(constraint) == set(tokenizer.eos_token_ids)
    assert not constraint.accept(c)
    constraint.rollback(3)
    assert not constraint.finished
    assert allowed(constraint) == before == {c}
    constraint.rollback(2)
    assert allowed(constraint) == {a}


def test_after_the_form_is_complete_only_the_end_may_follow(compiler, tokenizer):
    constraint = started(compiler, choice=("ab",))
    assert all(constraint.accept(token) for token in tokenizer.encode("ab"))
    assert constraint.finished
    assert allowed(constraint) == set(tokenizer.eos_token_ids)
    constraint.rollback(1)
    assert allowed(constraint) == set(tokenizer.encode("b"))


def test_completions_of_one_grammar_do_not_share_their_place(compiler, tokenizer):
    factory = compiler.compile(StructuredOutputs(regex="[ab]{2}")).result(timeout=20)
    first, second = factory(), factory()
    a = tokenizer.encode("a")[0]
    assert first.accept(a)
    assert first.accept(a)
    assert first.finished
    assert not second.finished
    assert compiler.compile(StructuredOutputs(regex="[ab]{2}")).result() is factory, "found among the compiled"


def test_no_special_token_inside_a_text(compiler):
    inside = started(compiler, regex=".*")
    assert allowed(inside) & set(range(3)) == set(byte_tokenizer().eos_token_ids)


def test_whitespace_between_values_is_bounded(compiler, tokenizer):
    constraint = started(compiler, json_schema={"type": "array", "items": {"type": "integer"}})
    assert constraint.accept(tokenizer.encode("[")[0])
    space, line = tokenizer.encode(" ")[0], tokenizer.encode("\n")[0]
    assert constraint.accept(line)
    accepted = 0
    while constraint.accept(space):
        accepted += 1
    assert 4 <= accepted <= 32
    assert not constraint.accept(line)


@pytest.mark.parametrize(
    ("outputs", "words"),
    [
        ({"json_schema": {"properties": {"a": {"items": {"uniqueItems": True}}}}}, "json_schema/properties/a/items/u"),
        ({"json_schema": {"anyOf": [{}, {"not": {}}]}}, "json_schema/anyOf/1/not"),
        ({"json_schema": {"type": "string", "format": "color"}}, "json_schema/format"),
        ({"json_schema": {"$ref": "#/$defs/none"}}, "leads nowhere"),
        ({"json_schema": {"$ref": "http://example.com/s"}}, "outside the schema"),
        ({"json_schema": {"items": [{}]}}, "prefixItems"),
        ({"json_schema": '{"type": '}, "not JSON"),
        ({"json_schema": "[" * 100_000}, "not JSON"),
        ({"json_schema": "7"}, "object or a boolean"),
        ({"json_schema": {"type": "strin"}}, "strin"),
        ({"json_schema": {"properties": 3}}, "must be an object"),
        ({"json_schema": {"anyOf": {}}}, "list of schemas"),
        ({"json_schema": {"type": "integer", "minimum": 5, "maximum": 3}}, "minimum"),
        ({"json_schema": {"enum": []}}, "structured_outputs"),
        ({"json_schema": {"$ref": "#"}}, "satisfies"),
        ({"json_schema": {"type": "integer", "multipleOf": 10**9}}, "multipleOf"),
        ({"json_schema": {"pattern": "a\\"}}, "json_schema/pattern ends with a backslash"),
        ({"json_schema": {"patternProperties": {"a\\": {}}}}, "json_schema/patternProperties ends with a backslash"),
        ({"regex": "(?=a)b"}, "look-around"),
        ({"regex": "(a"}, "unclosed"),
        ({"regex": "a\\\\\\"}, "backslash that escapes nothing"),
        ({"regex": "a" * 100_000}, "characters"),
        ({"grammar": "start: nothing"}, "nothing"),
        ({"grammar": "root ::= ("}, "Expected"),
        ({"grammar": 'start: %json {"not": {}}'}, "not"),
        ({"grammar": '{"grammars": 3}'}, "grammar"),
        ({"choice": ()}, "choice"),
    ],
)  # fmt: skip
def test_what_cannot_be_kept_is_refused_by_its_place(compiler, outputs, words):
    assert words in fault(compiler, **outputs)


def deep_schema() -> dict:
    schema: dict = {}
    for _ in range(10_000):
        schema = {"items": schema}
    return schema


HOSTILE = {
    "nested schema": lambda: {"json_schema": deep_schema()},
    "chain of references": lambda: {
        "json_schema": {
            "$ref": "#/$defs/0",
            "$defs": {str(i): {"properties": {"a": {"$ref": f"#/$defs/{(i + 1) % 1999}"}}} for i in range(1999)},
        }
    },
    "many properties": lambda: {"json_schema": {"properties": {str(i): {} for i in range(100_000)}}},
    "chain of rules": lambda: {"grammar": "start: r0\n" + "".join(f'r{i}: r{i + 1} "a"\n' for i in range(50_000))},
    "permitted chain of rules": lambda: {
        "grammar": "start: r0\n" + "".join(f'r{i}: r{i + 1} "a"\n' for i in range(1990)) + 'r1990: "a"'
    },
    "chain inside a list": lambda: {
        "grammar": json.dumps({"grammars": [{"lark_grammar": "".join(f"r{i}: r{i + 1}\n" for i in range(20_000))}]})
    },
    "nested brackets": lambda: {"grammar": "start: " + "(" * 50_000 + '"a"' + ")" * 50_000},
    "nested groups": lambda: {"regex": "(" * 4000 + "a" + ")" * 4000},
    "counted counts": lambda: {"regex": "((a{1,1000}){1,1000}b){1,1000}"},
    "exponential backtracking": lambda: {"regex": "(a+)+" * 100 + "b"},
    "exponential states": lambda: {"regex": "(a|b)*a(a|b){200}"},
    "left recursion": lambda: {"grammar": 'start: start start | "a" | '},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_requests_end_quickly_and_hurt_nobody(compiler, tokenizer, name):
    began = time.monotonic()
    future = compiler.compile(StructuredOutputs(**HOSTILE[name]()))
    wait([future], timeout=15)
    if future.exception() is None:
        constraint = future.result()()
        for token in tokenizer.encode("a" * 50):
            constraint.mask()
            constraint.accept(token)
    else:
        assert isinstance(future.exception(), RequestError)
        assert len(str(future.exception())) < 600
    assert time.monotonic() - began < 10
    assert started(compiler, regex="ok").accept(tokenizer.encode("o")[0])


def test_a_grammar_that_takes_too_long_fails_alone(tokenizer, monkeypatch):
    compiler = GrammarCompiler(tokenizer, ROWS, timeout_seconds=0.2)
    real = compiler._factory

    def slow(outputs, begins_text):
        if outputs.regex == "slow":
            time.sleep(0.6)
        return real(outputs, begins_text)

    monkeypatch.setattr(compiler, "_factory", slow)
    stuck = compiler.compile(StructuredOutputs(regex="slow"))
    with pytest.raises(RequestError, match=r"longer than 0\.2 seconds"):
        stuck.result(timeout=5)
    assert compiler.compile(StructuredOutputs(regex="quick")).result(timeout=5)
    compiler.close()


@pytest.mark.parametrize("grammar", ['start: item*\nitem: "a" | item item', 'start: x\nx: "a" | "a" x x | x x x'])
def test_a_grammar_that_outgrows_its_bounds_ends_the_completion_with_a_reason(compiler, tokenizer, grammar):
    constraint = started(compiler, grammar=grammar)
    a = tokenizer.encode("a")[0]
    began, count = time.thread_time(), 0
    while a in allowed(constraint) and constraint.accept(a):
        count += 1
        assert count < 5000
    assert time.thread_time() - began < 2
    assert constraint.fault
    assert constraint.finished
    assert allowed(constraint) == set(tokenizer.eos_token_ids)
