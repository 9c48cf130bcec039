"""Values on the wire: JSON trees of ``[tag, content]`` that keep Python's types and can name nothing else.

    None ["none"]   True ["bool", true]   255 ["int", "0xff"]   0.5 ["float", "0x1.0000000000000p-1"]
    "a" ["str", "a"]   b"a" ["bytes", "61"]   1j ["complex", "0x0.0p+0", "0x1.0000000000000p+0"]
    [..] ["list", [..]], likewise tuple, set, frozenset   {k: v} ["dict", [[k, v], ..]]   else ["other", "its type"]

Written by hand, as importing ``json`` would double the time that a sandbox takes to start.
"""

from __future__ import annotations

from _json import encode_basestring_ascii as quoted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any

DEPTH = 100
"""Deepest nesting that is written; deeper values are ``other``."""
SEQUENCES: dict[str, Any] = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}


def encode(value: object, depth: int = DEPTH) -> str:
    """A value's JSON. Containers of a subclass (a Counter, a namedtuple) count as what they extend; scalars do not."""
    return "".join(_pieces(value, depth))


def _pieces(value: Any, depth: int) -> Iterator[str]:
    kind = type(value)
    if value is None:
        yield '["none"]'
    elif kind is bool:
        yield f'["bool",{"true" if value else "false"}]'
    elif kind is int:
        yield f'["int","{value:#x}"]'
    elif kind is float:
        yield f'["float","{value.hex()}"]'
    elif kind is complex:
        yield f'["complex","{value.real.hex()}","{value.imag.hex()}"]'
    elif kind is str:
        yield f'["str",{quoted(value)}]'
    elif kind is bytes:
        yield f'["bytes","{value.hex()}"]'
    elif depth and isinstance(value, dict):
        yield '["dict",['
        yield from _joined(
            ("[", *_pieces(k, depth - 1), ",", *_pieces(v, depth - 1), "]") for k, v in dict.items(value)
        )
        yield "]]"
    else:
        for tag, container in SEQUENCES.items() if depth else ():
            if isinstance(value, container):
                yield f'["{tag}",['
                yield from _joined(_pieces(item, depth - 1) for item in container.__iter__(value))
                yield "]]"
                return
        yield f'["other",{quoted(str(kind.__name__)[:100])}]'


def _joined(items: Iterable[Iterable[str]]) -> Iterator[str]:
    for number, pieces in enumerate(items):
        if number:
            yield ","
        yield from pieces
