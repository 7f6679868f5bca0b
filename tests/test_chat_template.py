"""Prompts from chat templates: transformers' text on any messages, the same on any day, and one line where a template fails."""

from __future__ import annotations

import datetime
import json

import pytest
from test_tokenizer import train_bpe

from jaxrl_ml.models import chat_template
from jaxrl_ml.tokenizer import Tokenizer
from jaxrl_ml.types import UserError

LOOP = "{% for m in messages %}<|{{ m.role }}|>BODY<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
QUESTION = [{"role": "user", "content": "How many?"}]


def hf(template: str | dict[str, str]):
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=train_bpe("bytes"), bos_token="<|bos|>", eos_token="<|end|>")
    tokenizer.chat_template = template
    return tokenizer


def tokenizer(template: str | dict[str, str]) -> Tokenizer:
    return Tokenizer(hf(template), [1])


def loop(body: str) -> str:
    return LOOP.replace("BODY", body)


def rendered(template: str | dict[str, str], messages=QUESTION, day: str = "2026-11-30") -> str:
    made = tokenizer(template)
    return chat_template.render(made._template, messages, made._hf.special_tokens_map, datetime.date.fromisoformat(day))


def refusal(template: str | dict[str, str], messages=QUESTION) -> str:
    with pytest.raises(UserError) as caught:
        tokenizer(template).encode_prompts([messages])
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 700
    return str(caught.value)


CONVERSATION = [
    {"role": "system", "content": " Be brief.\n"},
    {"role": "user", "content": "Ä <b> & \"x\" 'y' 数\n\n 1 "},
    {"role": "assistant", "content": "2", "reasoning": "hm", "tool_calls": None},
    {"role": "user", "content": "And\tnow?"},
]
TEMPLATES = {
    "plain": loop("{{ m.content }}"),
    "trimmed": loop("{{ m.content | trim }}"),
    "json": loop("{{ m.content | tojson }}"),
    "words": loop("{{ m.content.split() | join(' ') }}"),
    "reasoning": loop("{% if m.reasoning_content %}<think>{{ m.thinking }}</think>{% endif %}{{ m.content }}"),
    "blocks": "\n  {% if true %}\n x{% endif %}\n{%- generation -%}a{% endgeneration %}\n" + loop("{{ m['content'] }}") + "\n",
    "tokens": "{{ bos_token }}{{ eos_token }}{% if tools is not none %}!{% endif %}{% if documents %}!{% endif %}"
    + loop("{{ m.content }}{% if m.tool_calls is defined %}!{% endif %}"),
    "named": {"default": loop("{{ m.content }}"), "tool_use": "other"},
    "constructs": "{% set ns = namespace(n=0) %}{% macro f(x) %}{% set ns.n = ns.n + 1 %}{{ x }}{% endmacro %}"
    + loop("{{ f(m.content) }}{% if loop.last %}{% break %}{% endif %}"),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_prompts_are_those_of_transformers(name):
    for messages in (CONVERSATION, CONVERSATION[1:], CONVERSATION[1:2], tuple(CONVERSATION[:2])):
        expected = hf(TEMPLATES[name]).apply_chat_template(list(messages), add_generation_prompt=True, return_dict=False)
        assert tokenizer(TEMPLATES[name]).encode_prompts([messages]) == [expected]


DATED = "{% if strftime_now is defined %}{% set today = strftime_now('%d %b %Y, %H:%M:%S') %}{% endif %}{{ today }}"
MACRO = "{% macro now() %}{{ strftime_now('%d %b %Y, %H:%M:%S') }}{% endmacro %}{{ now() }}"


@pytest.mark.parametrize("template", [DATED, MACRO])
def test_the_date_is_the_tokenizers_and_not_the_clocks(template, monkeypatch):
    from transformers.utils import chat_template_utils

    class Clock(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            raise AssertionError("a template read the clock")

    monkeypatch.setattr(chat_template_utils, "datetime", Clock)
    template += loop("{{ m.content }}")
    made = tokenizer(template).on_day("2024-02-29")
    text = made.decode(made.encode_prompts([QUESTION]))[0]
    assert text.startswith("29 Feb 2024, 00:00:00<|user|>How many?")
    assert made.on_day("2025-01-02").encode_prompts([QUESTION]) != made.encode_prompts([QUESTION])
    assert made.on_day(None).day == made.day == datetime.date(2024, 2, 29)
    assert tokenizer(template).day == datetime.date.today()  # where nobody chose one
    with pytest.raises(UserError, match="chat_date='yesterday' is not a day"):
        made.on_day("yesterday")


@pytest.mark.parametrize(
    "drawn", ["{{ ['a', 'b'] | random }}", "{% if false %}{{ 'ab' | random }}{% endif %}", "{{ lipsum(n=1) }}"]
)
def test_templates_that_draw_at_random_are_refused(drawn):
    assert "differ from time to time" in refusal(drawn + loop("{{ m.content }}"))


@pytest.mark.parametrize(
    ("template", "named"),
    [
        ("{{ 1 + 'x' }}", "TypeError"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{{ messages[7].content }}", "has no element 7"),
        ("{{ messages[0].content.x.y }}", "has no attribute 'x'"),
        ("{{ nothing.x }}", "'nothing' is undefined"),
        ("{{ now() }}", "'now' is undefined"),
        ("{{ strftime_now() }}", "TypeError"),
        ("{{ strftime_now(5) }}", "TypeError"),
        ("{{ 'é'.encode('ascii') }}", "UnicodeEncodeError"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
        ("{{ messages.__class__.mro() }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{{ range(10 ** 9) }}", "OverflowError"),
        ("{% for i in range(99999) %}{% for j in range(99999) %}{{ 'x' * 999 }}{% endfor %}{% endfor %}", "characters"),
        ("{{ raise_exception('no\n  tools') }}", "refuses messages with roles ['user']: no tools"),
        ("{% if %}", "cannot be compiled"),
        ("{{ 'x' | no_such_filter }}", "cannot be compiled"),
        ("{{ " + "(" * 5000 + "}}", "cannot be compiled"),
        ({"rag": "x", "tool_use": "y"}, "chat templates have 'rag', 'tool_use', not 'default': rename"),
        ({}, "chat templates have no name, not 'default'"),
    ],
)
def test_a_template_that_fails_is_one_line(template, named):
    assert named in refusal(template)
    assert tokenizer(template).encode_prompts(["plain text"])  # which needs no template


PARTS = "{% for part in m.content %}{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}"
UNGUARDED = "{% for part in m.content %}{{ part['text'] }}{% endfor %}"


@pytest.mark.parametrize("body", [PARTS, UNGUARDED, "", "{{ m.text }}", "{{ m.content[:4] }}", "{{ m.content | upper }}"])
def test_a_prompt_without_the_users_text_is_refused(body):
    assert "leaves out the text of the user's message, 'How many?'" in refusal(loop(body))


def test_content_may_be_a_list_of_parts_where_the_template_wants_one():
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "How many?"}, {"type": "image"}, {"type": "text", "text": " So"}]}
    ]
    assert "How many? So" in rendered(loop(PARTS), messages)
    assert "leaves out" in refusal(loop("{{ m.content[0].text }}"), messages)


def test_what_templates_leave_out_on_purpose_is_no_error():
    thinking = [*QUESTION, {"role": "assistant", "content": "<think>hm</think>2"}, *QUESTION]
    assert "hm" not in rendered(loop("{{ m.content.split('</think>')[-1] }}"), thinking)
    for content in ("", " \n", None):
        assert rendered(loop("{{ m.content }}"), [*QUESTION, {"role": "user", "content": content}])
    silent = "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"
    assert rendered(silent) == "How many?"
    system = [{"role": "system", "content": "Be brief."}, *QUESTION]
    assert "the system's message, 'Be brief.': set system_prompt to None" in refusal(silent, system)


@pytest.mark.parametrize(
    "prompt", [None, 5, [], {}, ["text"], [["role", "user"]], {"role": "user", "content": "x"}, [QUESTION]]
)
def test_what_is_no_list_of_messages_is_refused(prompt):
    assert "a prompt must be a text or a list of messages" in refusal(loop("{{ m.content }}"), prompt)


def test_a_template_sees_plain_values_only():
    class Text(str):
        def secret(self):
            return "leaked"

    assert "no attribute 'secret'" in refusal(loop("{{ m.content.secret() }}"), [{"role": "user", "content": Text("x")}])
    assert "TypeError" in refusal(loop("{{ m.content }}"), [{"role": "user", "content": object()}])
    assert json.dumps(QUESTION) in rendered("{{ messages | tojson }}")
