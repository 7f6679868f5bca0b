"""Whether a config's fields hold values of the types that they declare: nothing else tells those of a config file apart.

In: a dataclass of settings. Out: nothing, or a UserError of one line. Types are Any, a class, a Literal, `tuple[X, ...]`, and
unions of these. A float may be whole; a text is no tuple of texts, though it has items.
"""

from __future__ import annotations

from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from jaxrl_ml.types import UserError

_NAMES = {int: "a whole number", float: "a number", bool: "True or False", str: "a text", type(None): "None"}
_SHOWN = 60  # characters of a value: a task may be the value


def check_kinds(config: Any, name: str = "") -> None:
    """Raises UserError for the first field of a dataclass that is not of its type; told as `name.field`."""
    prefix = name and f"{name}."
    for field, kind in get_type_hints(type(config)).items():
        value = getattr(config, field)
        if not _is(value, kind):
            told, shown = _told(kind), " ".join(repr(value)[: _SHOWN + 1].split())
            shown = shown if len(shown) <= _SHOWN else shown[:_SHOWN] + "…"
            hint = "; one item alone is written (item,)" if "tuple" in told and not isinstance(value, tuple) else ""
            raise UserError(f"{prefix}{field}={shown} must be {told}{hint}")


def _is(value: Any, kind: Any) -> bool:
    origin, parts = get_origin(kind), get_args(kind)
    if kind is Any:
        return True
    if origin is Literal:
        return isinstance(value, str) and value in parts
    if origin in (Union, UnionType):
        return any(_is(value, part) for part in parts)
    if origin is tuple:
        return isinstance(value, tuple) and all(_is(item, parts[0]) for item in value)
    if kind in (int, float):
        return isinstance(value, (int, kind)) and not isinstance(value, bool)
    return isinstance(value, kind)


def _told(kind: Any) -> str:
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Literal:
        return "one of " + ", ".join(parts)
    if origin in (Union, UnionType):
        return " or ".join(map(_told, parts))
    if origin is tuple:
        return f"a tuple (of {_told(parts[0])})"
    return _NAMES.get(kind, kind.__name__)
