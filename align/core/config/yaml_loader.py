"""Strict YAML, as run files use it: the 1.2 core schema, every value with its line, nothing dangerous.

``1e-5`` is a number and ``no`` is text; in YAML 1.1, PyYAML's own dialect, it is the other way round. Duplicate keys,
tags, NaN, endless nesting and aliases that multiply are refused.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Any

import yaml
from yaml import MappingNode, Node, ScalarNode, SequenceNode

from align.core.plugin_system.registry import Path, dotted
from align.schemas.errors import AlignError, Problem

DEPTH = 32
NODES = 20_000

_TAG = "tag:yaml.org,2002:"
_PLAIN = {
    "null": re.compile(r"~|null|Null|NULL|"),
    "bool": re.compile(r"true|True|TRUE|false|False|FALSE"),
    "int": re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+"),
    "float": re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"),
    "not-finite": re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"),
}


def _plain_lines(text: str) -> bool:
    """Return True for several lines that a block can hold as they are, and ends with one line end."""
    lines = text.split("\n")
    flush = all(line == line.strip() and line.isprintable() for line in lines)
    return flush and len(lines) > 2 and bool(lines[0]) and lines[-1] == "" and bool(lines[-2])


def _plain_tag(text: str) -> str:
    """Return the tag of an unquoted scalar by YAML 1.2's core schema."""
    return _TAG + next((kind for kind, pattern in _PLAIN.items() if pattern.fullmatch(text)), "str")


@dataclass
class Document:
    """Plain values (dict, list, str, int, float, bool, None), the line of each path, and what was refused."""

    values: Any = None
    lines: dict[Path, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


def read(text: str, source: str) -> Document:
    """Parse one document. ``source`` names it in messages.

    What is wrong with single values is gathered in ``problems``. Raises AlignError when there is no telling the values.
    """
    try:
        node = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        fix = "indent with spaces" if "'\\t'" in (error.problem or "") else ""
        where = f"{source} line {mark.line + 1}" if mark else source
        raise AlignError(f"is not YAML: {error.problem or error.context}", fix, where=where) from None
    except yaml.reader.ReaderError as error:
        where = f"{source} line {text.count(chr(10), 0, error.position) + 1}"
        raise AlignError(f"holds the character U+{error.character:04X}", "remove it", where=where) from None
    builder = _Builder(source)
    if node is not None:
        builder.document.values = builder.value(node, ())
    return builder.document


def write(values: Any) -> str:
    """Plain values as YAML that ``read`` gives back unchanged and a YAML 1.1 reader takes alike."""
    text: str = yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1_000_000)
    return text


class _Loader(yaml.SafeLoader):
    depth = 0  # of the node being composed

    def compose_node(self, parent: Node | None, index: int) -> Node | None:
        self.depth += 1
        if self.depth > DEPTH:
            raise yaml.MarkedYAMLError(problem=f"nested deeper than {DEPTH}", problem_mark=self.get_mark())
        node: Node | None = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def resolve(self, kind: type[Node], value: Any, implicit: Any) -> str:
        if kind is ScalarNode:
            return _plain_tag(value) if implicit[0] else _TAG + "str"
        return _TAG + ("seq" if kind is SequenceNode else "map")


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)  # list items stand indented under their key

    def represent_str(self, data: str) -> ScalarNode:
        """Plain lines stand as they are; line ends of every other sort are escaped, or they would be folded."""
        style = '"' if re.search("[\n\r\x85\u2028\u2029]", data) else None
        style = "|" if _plain_lines(data) else style
        return self.represent_scalar(_TAG + "str", data, style)

    def resolve(self, kind: type[Node], value: Any, implicit: Any) -> str:
        """Quote what either dialect would take for something else than text."""
        tag: str = super().resolve(kind, value, implicit)  # type: ignore[no-untyped-call]
        return _plain_tag(value) if kind is ScalarNode and implicit[0] and tag == _TAG + "str" else tag


_Dumper.add_representer(str, _Dumper.represent_str)


class _Builder:
    """Nodes to values by hand: PyYAML's constructor keeps no lines and knows no bounds."""

    def __init__(self, source: str) -> None:
        self.source, self.document, self.nodes = source, Document(), 0

    def refuse(self, path: Path, what: str, fix: str) -> None:
        """Note a problem at a path whose line is known."""
        where = f"{self.source} line {self.document.lines[path]}"
        self.document.problems.append(Problem(f"{where}: {dotted(path)}" if path else where, what, fix))

    def value(self, node: Node, path: Path) -> Any:
        """The value of a node and all below it."""
        line = node.start_mark.line + 1
        self.nodes += 1
        if self.nodes > NODES or len(path) > DEPTH:
            # An alias shares its node: a few lines can stand for billions of values, or for themselves.
            what, fix = "is too much, its aliases (*name) written out", "write out what is meant"
            raise AlignError(what, fix, where=f"{self.source} line {line}")
        self.document.lines.setdefault(path, line)
        if isinstance(node, MappingNode) and node.tag == _TAG + "map":
            return self.mapping(node, path)
        if isinstance(node, SequenceNode) and node.tag == _TAG + "seq":
            return [self.value(item, (*path, i)) for i, item in enumerate(node.value)]
        if isinstance(node, ScalarNode) and node.tag.removeprefix(_TAG) in {*_PLAIN, "str"}:
            return self.scalar(node.value, node.tag.removeprefix(_TAG), path)
        return self.refuse(path, f"has the tag {node.tag!r}", "remove the tag: run files hold plain values")

    def mapping(self, node: MappingNode, path: Path) -> dict[str, Any]:
        """A mapping each of whose keys is text and stands once."""
        values: dict[str, Any] = {}
        for key, item in node.value:
            line, name = key.start_mark.line + 1, key.value
            if not isinstance(name, str):
                self.refuse(path, f"has a list or mapping for a key on line {line}", "write a word")
            elif name in values:
                self.refuse((*path, name), f"stands a second time on line {line}", "remove one of them")
            else:
                self.document.lines[(*path, name)] = line
                values[name] = self.value(item, (*path, name))
        return values

    def scalar(self, text: str, kind: str, path: Path) -> str | int | float | bool | None:
        """A leaf."""
        if kind == "bool":
            return text.lower() == "true"
        if kind == "int" and len(text) < 100:
            return int(text, 0 if text[:2] in ("0o", "0x") else 10)
        if kind == "float" and math.isfinite(float(text)):
            return float(text)
        if kind in ("int", "float", "not-finite"):
            self.refuse(path, f"is {text[:20]}; must be a finite number", "write one of ordinary size")
        elif kind == "str" and re.search("[\ud800-\udfff]", text):
            self.refuse(path, "holds half a surrogate pair, which is no text", "write the character itself")
        elif kind == "str":
            return text
        return None
