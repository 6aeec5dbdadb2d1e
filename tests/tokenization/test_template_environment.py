"""Chat templates from strangers: what runs away is stopped within seconds and little memory, what is sound is not."""

import pytest

from lmworks.core.errors import TokenizerError
from lmworks.core.messages import Message
from lmworks.tokenization.chat_template import render_chat

DOUBLED = "{% set ns = namespace(s='ab') %}{% for i in range(60) %}{% set ns.s = WHAT %}{% endfor %}{{ ns.s }}"
RUNAWAYS = [
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{% for i in range(99999) %}{% set x = range(99999) | list %}{% endfor %}",
    "{% for i in range(99999) %}{{ 'a' * 100000 }}{% endfor %}",
    "{% set s = 'a' * 9000000 %}{% for i in range(9999) %}{{ s }}{% endfor %}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    DOUBLED.replace("WHAT", "ns.s + ns.s"),
    DOUBLED.replace("WHAT", "ns.s ~ ns.s"),
    DOUBLED.replace("WHAT", "[ns.s, ns.s]"),
    DOUBLED.replace("WHAT", "ns.s | replace('a', ns.s)"),
    DOUBLED.replace("{% set ns.s = WHAT %}", "{% set t %}{{ ns.s }}{{ ns.s }}{% endset %}{% set ns.s = t %}"),
    "{{ 'a' * 10000000000 }}",
    "{{ [1] * 10000000 }}",
    "{{ 10000000 * [1] }}",
    "{{ 10000000000 * 'a' }}",
    "{{ 10 ** 10 ** 10 }}",
    "{{ 'x'.ljust(9999999999) }}",
    "{{ 'x' | center(9999999999) }}",
    "{{ '%9999999999d' % 1 }}",
    "{{ '%*d' % (999999999, 1) }}",
    "{{ '%999999999d' | format(1) }}",
    "{{ '{:9999999999}'.format(1) }}",
    "{{ ('a' * 100000).replace('a', 'b' * 100000) }}",
    "{{ range(99999) | join('a' * 100000) }}",
    "{{ range(99999) | map('string') | map('center', 10000) | list | length }}",
    "{{ [1] | tojson(indent=999999999) }}",
]
ESCAPES = [
    "{{ messages.__class__.__mro__ }}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{{ self.__init__.__globals__ }}",
    "{{ dict.mro() }}",
    "{{ namespace(__class__=1) }}",
    "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
    "{{ messages.append(1) }}",
    "{% include 'x' %}",
]


def rendered(template: str) -> str:
    return render_chat(
        template, [Message(role="user", content="hi")], special_tokens=(), add_generation_prompt=True
    ).text


@pytest.mark.parametrize("template", RUNAWAYS + ESCAPES)
def test_nothing_runs_away_or_escapes(template):
    with pytest.raises(TokenizerError):
        rendered(template)


@pytest.mark.parametrize("template", ["{{" + "(" * 3000 + "1" + ")" * 3000 + "}}", "{{" + "-" * 20000 + "1}}"])
def test_a_template_too_deep_to_be_read_is_named(template):
    with pytest.raises(TokenizerError, match="not valid Jinja"):
        rendered(template)


def test_what_templates_do_is_affordable():
    template = (
        "{% macro show(m) %}{{ m.role ~ ': ' ~ m.content | trim }}{% endmacro %}{% for m in messages %}"
        "{% set ns = namespace(n=loop.index0 * 2 % 7) %}{{ show(m) }}{{ '%d' % ns.n + '=' * 3 }}"
        "{{ '{:>4}'.format(loop.index) }}{{ {'a': [m.role]} | tojson(indent=2) }}\n{% endfor %}"
    )
    messages = [Message(role="user", content="word " * 200)] * 5000
    text = render_chat(template, messages, special_tokens=(), add_generation_prompt=True).text
    assert text.count("user: word word") == 5000


def test_a_million_tokens_and_large_numbers_are_affordable():
    template = (
        "{{ 1700000000 % 86400 * 3 }}{% for m in messages %}{{ m.role ~ (m.content | trim) ~ '\\n' }}{% endfor %}"
    )
    messages = [Message(role="user", content="word " * 500_000)] * 2
    text = render_chat(template, messages, special_tokens=(), add_generation_prompt=True).text
    assert len(text) > 4_900_000
