"""Renders chat messages with the Jinja template of a tokenizer: a function of the messages and of one fixed day.

Templates come with a model and are not trusted. They run in transformers' sandbox, see plain JSON values only, and may not draw
at random. Any error is a UserError of one line. A prompt that lacks the text of a user or system message is refused.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime, time
from typing import Any

from jinja2 import Template, TemplateError, nodes

from jaxrl_ml.types import UserError, one_line, require

_MAX_CHARACTERS = 10_000_000  # of a rendered prompt: more than any model reads, so that an endless template ends
_REASONING = ("reasoning_content", "thinking", "reasoning")  # the names that transformers takes for one field
_REMEDY = "fix the template, or use a prompt format that returns text"


def compiled(source: str | Mapping[str, str], compile: Callable[[str], Template]) -> Template:
    """The compiled chat template; of several named ones that called `default`, which transformers takes.

    compile: transformers' compiler. Raises UserError for a template that is no Jinja, and for one that draws at random.
    """
    if not isinstance(source, str):
        names = ", ".join(sorted(map(repr, source))) or "no name"
        require(
            "default" in source,
            f"the tokenizer's chat templates have {names}, not 'default': rename the one to use in its files",
        )
        source = source["default"]
    try:
        template = compile(source)
        tree = template.environment.parse(source)
    except Exception as error:  # hostile templates exhaust the parser's recursion, among others
        raise UserError(f"the chat template cannot be compiled: {one_line(error)}; {_REMEDY}") from error
    drawn = [f"the filter {node.name}" for node in tree.find_all(nodes.Filter) if node.name == "random"]
    drawn += [f"the function {node.name}" for node in tree.find_all(nodes.Name) if node.name == "lipsum"]
    require(not drawn, f"the chat template uses {', '.join(drawn[:1])}, so prompts would differ from time to time; {_REMEDY}")
    return template


def render(template: Template, messages: Any, special_tokens: Mapping[str, Any], day: date) -> str:
    """The prompt's text, as transformers renders it with add_generation_prompt, `strftime_now` giving the start of `day`.

    Raises UserError where `messages` are no list of messages, the template fails on them, or their text is not in the prompt.
    """
    listed = isinstance(messages, list | tuple) and len(messages) > 0 and all(isinstance(m, Mapping) for m in messages)
    require(listed, f"a prompt must be a text or a list of messages with role and content, not {messages!r:.60}")
    roles = [message.get("role") for message in messages]
    try:
        plain = json.loads(json.dumps([{key: value for key, value in m.items() if value is not None} for m in messages]))
        variables = {
            **special_tokens,
            "messages": [_with_reasoning(message) for message in plain],
            "tools": None,
            "documents": None,
            "add_generation_prompt": True,
            "strftime_now": datetime.combine(day, time()).strftime,
        }
        text, size = [], 0
        for piece in template.generate(variables):
            text.append(piece)
            size += len(piece)
            require(size <= _MAX_CHARACTERS, f"the chat template writes over {_MAX_CHARACTERS:,} characters; {_REMEDY}")
    except UserError:
        raise
    except TemplateError as error:
        raise UserError(f"the chat template refuses messages with roles {roles}: {one_line(error)}; {_REMEDY}") from error
    except Exception as error:  # a template may do anything that an expression of Python can
        told = f"{type(error).__name__}: {one_line(error)}"
        raise UserError(f"the chat template fails on messages with roles {roles}: {told}; {_REMEDY}") from error
    rendered = "".join(text)
    _require_texts(plain, rendered)
    return rendered


def _with_reasoning(message: dict[str, Any]) -> dict[str, Any]:
    """A message whose reasoning has the names by which transformers lets templates read it."""
    reasoning = next((message[key] for key in _REASONING if key in message), None)
    return message if reasoning is None else {"thinking": reasoning, **message, "reasoning_content": reasoning}


def _require_texts(messages: Sequence[Mapping[str, Any]], rendered: str) -> None:
    """Raises UserError where a user's or the system's text is not in the prompt, but for white space and JSON's escapes.

    Only these roles are looked for: templates leave out the thinking of earlier assistant turns on purpose.
    """
    for message in messages:
        role, content = message.get("role"), message.get("content", "")
        if role not in ("user", "system"):
            continue
        parts = [part.get("text", "") for part in content if isinstance(part, dict)] if isinstance(content, list) else [content]
        for text in map(str, parts):
            if text.strip() in rendered or _squeezed(text) in _squeezed(rendered):
                continue
            if _squeezed(json.dumps(text, ensure_ascii=False)[1:-1]) in _squeezed(rendered):
                continue
            hint = "it may want the content as a list of parts, [{'type': 'text', 'text': ...}]" if text is content else _REMEDY
            hint = "set system_prompt to None and put its text into the user's message" if role == "system" else hint
            raise UserError(f"the chat template leaves out the text of the {role}'s message, {text.strip()[:40]!r}: {hint}")


def _squeezed(text: str) -> str:
    return "".join(text.split())
