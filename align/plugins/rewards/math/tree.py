"""An answer as a typed tree: numbers, expressions, words, lists, sets, intervals, unions, matrices, relations.

The outer structure is read here, strictly; ``grammar`` reads the leaves. So a list is never a tuple,
``(1, 2]`` never ``[1, 2]``, and a unit never a variable.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Literal

from align.plugins.rewards.math.notation import AND, OR, Unparsed
from align.plugins.rewards.math.numeral import numeral
from align.plugins.rewards.math.units import BARE_UNITS, SCALES, contradicts, denies, is_unit, unit_of

Kind = Literal["number", "expression", "words", "list", "set", "bracket", "union", "matrix", "relation"]
MOST_PARTS = 64
"""Elements of one list, set, union or matrix."""

_RELATION = re.compile(r"\\(?:le|ge|ne|approx|equiv)(?![a-zA-Z])|<|>|(?<![<>!:])=")
_NAME = re.compile(
    r"(?:\\text\{[^{}]*\}"
    r"|\\?[a-zA-Z]+'*(?:_(?:\{[^{}]*\}|\w))?(?:\^\{-1\})?(?:\([a-zA-Z0-9,. ]*\))?"
    r"|\\angle ?[A-Z]+|\|[A-Z]+\||\([a-zA-Z](?:, ?[a-zA-Z])+\)|\\frac\{[A-Z]{1,4}\}\{[A-Z]{1,4}\}"
    r"|[A-Z](?:_\{?\w+\}?)? ?: ?[A-Z](?:_\{?\w+\}?)?)"
)


@dataclass(frozen=True)
class Tree:
    """One node. text: what it was read from. brackets: ``(]`` of a bracket, the operators of a relation.

    decimals: digits behind the point of a number written with one, else None. significant: its digits without leading
    zeros. unit: of this node. certain: whether the unit is one whatever the gold is; ``wug`` is one if the gold has it.
    """

    kind: Kind
    text: str
    parts: tuple[Tree, ...] = ()
    brackets: tuple[str, ...] = ()
    number: Fraction | None = None
    decimals: int | None = None
    significant: int = 0
    unit: str = ""
    certain: bool = True


def read(text: str, depth: int = 0) -> Tree:
    """A cleaned answer as a tree. Raises Unparsed."""
    text = text.strip()
    if not depth and not re.search(r"[(\[]|\\\{", text):  # thousands; in brackets commas separate
        text = re.sub(r"(?<![\d,.])\d{1,3}(?:,\d{3})+(?![\d,])", lambda m: m[0].replace(",", ""), text)
    if (inside := re.fullmatch(r"\\text\{([-+.\d][^{}]*)\}", text)) and "\\" not in inside[1]:
        text = inside[1].strip()
    if not text or depth > 6:
        raise Unparsed("has an answer that is empty, or nested too deeply")
    return (
        _number(text)
        or _member(text, depth)
        or _list(text, depth)
        or _union(text, depth)
        or _relation(text, depth)
        or _matrix(text, depth)
        or _bracketed(text, depth)
        or _residue(text, depth)
        or _with_unit(text, depth)
        or _words(text)
        or Tree("expression", text)
    )


def _number(text: str) -> Tree | None:
    made = numeral(text)
    return made and Tree("number", text, number=made.value, decimals=made.decimals, significant=made.significant)


def _member(text: str, depth: int) -> Tree | None:
    r"""``x \in (0, 1)`` is the set."""
    name, found, rest = text.partition(r"\in")
    if not found or rest[:1].isalpha() or not _NAME.fullmatch(name.strip()):
        return None
    return read(rest, depth + 1)


def _relation(text: str, depth: int) -> Tree | None:
    r"""``x = 3``, ``1 < x \le 2``: parts and the operators between."""
    cuts = [m for m in _RELATION.finditer(text) if _depth_at(text, m.start()) == 0]
    if not cuts:
        return None
    if len(cuts) > 6:
        raise Unparsed("has too many relations")
    ends = [0, *(m.end() for m in cuts)]
    starts = [*(m.start() for m in cuts), len(text)]
    pieces = [text[a:b].strip() for a, b in zip(ends, starts, strict=True)]
    if cuts[0][0] == r"\approx" and not pieces[0]:
        return read(pieces[-1], depth + 1)
    if not all(pieces):
        if not pieces[0] and len(cuts) == 1 and cuts[0][0] == "=":
            return read(pieces[1], depth + 1)
        raise Unparsed("has a relation with one side")
    parts = tuple(_side(piece, depth) for piece in pieces)
    return Tree("relation", text, parts, tuple(m[0].replace(r"\equiv", "=") for m in cuts))


def _side(text: str, depth: int) -> Tree:
    """A side of a relation: a name stays a name, with its unit or index."""
    return Tree("expression", text) if _NAME.fullmatch(text) else read(text, depth + 1)


def is_name(tree: Tree) -> bool:
    r"""Return whether it can name an answer, left of ``=``: ``x``, ``f(2)``, ``\angle ABC``, ``\text{Area}``."""
    named = _NAME.fullmatch(tree.text) and not re.fullmatch(r"\\pi|\\infty|e|i", tree.text)
    return bool(named) and (tree.text.startswith(r"\frac") or not contradicts(tree.text))


def _list(text: str, depth: int) -> Tree | None:
    r"""A list as ``1, 2``, ``x = 1 \text{ or } x = 2`` or ``\pm 1``; ``brackets`` are the words between its parts."""
    pieces = _split(text, ",", AND, OR)
    if len(pieces) < 2:
        return _plus_minus(text, depth)
    if not all(pieces) or len(pieces) > MOST_PARTS:
        raise Unparsed("is a list with gaps, or a very long one")
    parts = [part for piece in pieces for part in _flattened(read(piece, depth + 1))]
    if _solves_one_name(parts):  # x = 1, 2 is x = 1, x = 2
        name = parts[0].parts[0]
        parts = [p if p.kind == "relation" else Tree("relation", p.text, (name, p), ("=",)) for p in parts]
    words = tuple(word for word in (AND, OR) if len(_split(text, word)) > 1)
    return Tree("list", text, tuple(parts), words)


def _flattened(tree: Tree) -> tuple[Tree, ...]:
    r"""The parts of a list, and ``x = 1, x = 2`` of ``x = \pm 1``."""
    if tree.kind == "relation" and tree.brackets == ("=",) and tree.parts[1].kind == "list":
        return tuple(Tree("relation", tree.text, (tree.parts[0], value), ("=",)) for value in tree.parts[1].parts)
    return tree.parts if tree.kind == "list" else (tree,)


def _solves_one_name(parts: Sequence[Tree]) -> bool:
    solved = [p for p in parts if p.kind == "relation" and p.brackets == ("=",) and is_name(p.parts[0])]
    names = {p.parts[0].text for p in solved}
    return (
        len(names) == 1 and parts[0] in solved and all(p in solved or p.kind in ("number", "expression") for p in parts)
    )


def _union(text: str, depth: int) -> Tree | None:
    if len(pieces := _split(text, r"\setminus")) == 2 and all(pieces):
        return Tree("union", text, tuple(read(piece, depth + 1) for piece in pieces), ("minus",))
    pieces = _split(text, r"\cup")
    if len(pieces) < 2:
        if text == r"\reals":
            return read(r"(-\infty,\infty)", depth + 1)
        return Tree("set", text) if text in (r"\emptyset", r"\{\}", r"\{ \}") else None
    if not all(pieces) or len(pieces) > MOST_PARTS:
        raise Unparsed("is a union with gaps, or a very long one")
    return Tree("union", text, tuple(read(piece, depth + 1) for piece in pieces))


_MATRIX = re.compile(
    r"[(\[]?\\begin\{([pbBv]?(?:small)?)(?:matrix|array)\}(?:\{[lcr| ]*\})?(.*)\\end\{\1(?:matrix|array)\}[)\]]?"
)


def _matrix(text: str, depth: int) -> Tree | None:
    """A matrix, perhaps times a number."""
    times, begins, _ = text.partition(r"\begin")
    factor = None
    if begins and re.search(r"\d", times):
        factor = numeral(times.strip(" ([").removesuffix(r"\cdot").strip())
    matrix = text if factor is None else text[len(times) :]
    match = _MATRIX.fullmatch(matrix)
    if match is None:
        return None
    if match[1] == "v":
        raise Unparsed("is a determinant that is not worked out")
    rows = [row for row in re.split(r"\\\\", match[2]) if row.strip()]
    cells = [[cell.strip() for cell in row.split("&")] for row in rows]
    if not cells or len({len(row) for row in cells}) != 1 or sum(map(len, cells)) > MOST_PARTS:
        raise Unparsed("is a matrix of unequal rows, or a very large one")
    parts = tuple(read(cell, depth + 1) for row in cells for cell in row)
    if factor is not None:
        parts = tuple(_times(factor.value, part) for part in parts)
    return Tree("matrix", text, parts, (str(len(cells)), str(len(cells[0]))))


def _times(factor: Fraction, part: Tree) -> Tree:
    if part.number is not None:
        return Tree("number", part.text, number=factor * part.number)
    return Tree("expression", rf"({factor.numerator})({part.text})/({factor.denominator})")


def _bracketed(text: str, depth: int) -> Tree | None:
    r"""``(a, b)``, ``[a, b)``, ``\{a, b\}``; brackets around one thing are mere grouping."""
    if text.startswith(r"\{") and text.endswith(r"\}"):
        inner = text[2:-2].strip()
        if built := re.fullmatch(r"([a-zA-Z])(?: ?\\in ?\\reals ?)? ?[|:] ?(.+)", inner):  # {x | x < 3}
            condition = read(built[2], depth + 1)
            if condition.kind == "relation" or condition.brackets in ((AND,), (OR,)):
                return condition
        pieces = _split(inner, ",")
        if not all(pieces) or len(pieces) > MOST_PARTS or re.search(r"\||:", inner):
            raise Unparsed("is a set with gaps, a very long one, or one by a condition")
        return Tree("set", text, tuple(read(piece, depth + 1) for piece in pieces))
    if text[0] not in "([" or text[-1] not in ")]" or _closes_before_end(text):
        return None
    pieces = _split(text[1:-1], ",")
    if len(pieces) == 1:
        return read(pieces[0], depth + 1) if text[0] + text[-1] == "()" and pieces[0] else None
    if not all(pieces) or len(pieces) > MOST_PARTS:
        raise Unparsed("is a tuple with gaps, or a very long one")
    return Tree("bracket", text, tuple(read(piece, depth + 1) for piece in pieces), (text[0], text[-1]))


_LETTERS = r"\\(?:pi|theta|alpha|beta|gamma|lambda|phi|infty)|(?<![a-zA-Z\\])[a-zA-Z]{1,3}"
"""Letters that a value with a unit may end in, besides a digit or a bracket: an operator wants more."""


def _residue(text: str, depth: int) -> Tree | None:
    r"""``3 \pmod{5}``: the modulus is like a unit that only a gold answer with it allows."""
    match = re.fullmatch(r"(.+?)\s*(?:\\p?mod ?\{?|\((?:\\text\{)?\\?mod\}? ?)(\d+)[})]?", text)
    if match is None:
        return None
    return replace(read(match[1], depth + 1), unit=f"mod {match[2]}", certain=False)


_ANGLE = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)(?![a-zA-Z])[^+]*$")
"""A function whose argument degrees belong to."""


def _with_unit(text: str, depth: int) -> Tree | None:
    r"""``5 \text{ km}``, ``90\text{deg}``, ``\text{dollar}5``, ``5 km``, ``3 apples``, ``2 million``."""
    if match := re.fullmatch(r"(-?)\\text\{(dollar|euro|pound|yen)\} ?(.+)", text):
        return _united(match[1] + match[3], match[2], depth)
    text = re.sub(r"(\\text\{[^{}]*)\^\{([123])\}", r"\1^\2", text)
    value = rf".*(?:[^\\a-zA-Z_^{{( ,+*/=<>-]|{_LETTERS})"
    match = re.fullmatch(rf"({value})\s*((?:\\text\{{[^{{}}]+\}}(?:\^\{{?[123]\}}?)?(?: ?/ ?| ?))+)", text)
    if match is None:
        match = re.fullmatch(r"(.*\d)\s*\((?:\\text\{)?([a-z]{2,}(?: [a-z]+){0,3})\}?\)", text)  # 9 (apples)
    if match is None:
        plain = (
            rf"(.*[\d}})%])\s*((?:square |cubic |sq\.? )?(?:{BARE_UNITS})(?:\^\{{?[123]\}}?)?|"
            r"(?<= )[a-z]{4,}(?: [a-z]{2,}){0,2})"
        )
        match = re.fullmatch(plain, text)
    if match is None or (r"\text{deg}" in match[2] and _ANGLE.search(match[1])):
        return None
    return _united(match[1], match[2], depth)


def _united(value: str, unit: str, depth: int) -> Tree | None:
    words = re.sub(r"\\text\{([^{}]*)\}", r"\1 ", unit).strip().rstrip(".")
    scale = 0
    first, _, rest = words.partition(" ")
    if first in SCALES:
        scale, words = SCALES[first], rest
    if any(map(denies, words.split())) and not is_unit(words):
        raise Unparsed("has words beside its number")
    if len(words.split()) > 4 or re.search(r"[\d=,](?<!\^[123])", re.sub(r"\^\{?([123])\}?", r"^\1", words)):
        return None
    certain = not words or is_unit(words)
    if not certain and re.search("[a-zA-Z]$", value):
        return None
    tree = read(value, depth + 1)
    if tree.unit:
        raise Unparsed("has two units")
    if scale:
        if tree.number is None:
            raise Unparsed("has words beside its number")
        tree = Tree("number", text=value + unit, number=tree.number * 10**scale)
    return replace(tree, unit=unit_of(words), certain=certain)


def _words(text: str) -> Tree | None:
    """Words and single letters: a name is compared as it is written, not as a product of letters."""
    if infinite := re.fullmatch(r"([-+]?) ?\\infty ?", text):  # a word: nothing is calculated with it
        return Tree("words", infinite[1].replace("+", "") + r"\infty")
    inner = re.sub(r"\\text\{([^{}]*)\}", r"\1", text).strip()
    marked = inner != text
    inner = re.sub(r"^(?:option|choice) (?=\(?[A-Z]\)?$)", "", inner, flags=re.I)
    if match := re.fullmatch(r"\(?([a-zA-Z])\)?\.?", inner):
        return Tree("words", match[1])
    if not marked and re.fullmatch(r"[a-zA-Z](?: ?- ?[a-zA-Z])+", inner):  # a difference
        return None
    letters = r"[a-zA-Z][a-zA-Z\d' ,.:-]*" if marked else r"[a-zA-Z][a-zA-Z' .-]*"
    if re.fullmatch(letters, inner) and (marked or " " in inner.strip() or len(inner) > 3):
        return Tree("words", " ".join(inner.rstrip(".").casefold().split()))
    if re.fullmatch(r"yes|no", inner, re.I):
        return Tree("words", inner.casefold())
    if re.fullmatch(r"\d+(?: ?: ?\d+)+", inner):  # a ratio, or a time of day
        return Tree("words", inner.replace(" ", ""))
    if match := re.fullmatch(r"(-?[0-9A-F]+(?:\.[0-9A-F]+)?)_\{?(\d+)\}?", inner):  # a numeral in a base
        return Tree("words", f"{match[1]}_{match[2]}")
    return None


def _plus_minus(text: str, depth: int) -> Tree | None:
    r"""``a \pm b`` is the list ``a + b, a - b``; \mp has the other sign each time."""
    signs = re.findall(r"\\(?:pm|mp)(?![a-zA-Z])", text)
    if not signs or _RELATION.search(text):
        return None
    if len(signs) > 1 and r"\mp" not in signs:
        raise Unparsed("has several signs that may each be either")
    made = []
    for plus_minus, minus_plus in ("+-", "-+"):
        signed = re.sub(r"\\pm(?![a-zA-Z])\s*", plus_minus, re.sub(r"\\mp(?![a-zA-Z])\s*", minus_plus, text))
        made.append(re.sub(r"(^|[({\[,])\s*\+", r"\1", signed))  # {+1} is 1
    return Tree("list", text, tuple(read(one, depth + 1) for one in made))


def _depth_at(text: str, place: int) -> int:
    depth = 0
    for c, _ in _brackets(text[:place]):
        depth += 1 if c in "([{" else -1
    return depth


def _brackets(text: str) -> Iterator[tuple[str, int]]:
    for match in re.finditer(r"[(\[{}\])]", text):
        yield match[0], match.start()


def _closes_before_end(text: str) -> bool:
    depth = 0
    for c, at in _brackets(text):
        depth += 1 if c in "([{" else -1
        if depth == 0 and at < len(text) - 1:
            return True
    return depth != 0


def _split(text: str, *separators: str) -> list[str]:
    """Pieces between separators outside all brackets. Raises Unparsed where brackets do not close."""
    pieces, depth, start, i = [], 0, 0, 0
    while i < len(text):
        if text[i] in "([{":
            depth += 1
        elif text[i] in ")]}":
            depth -= 1
            if depth < 0:
                raise Unparsed("has brackets that do not close")
        elif depth == 0 and (found := next((one for one in separators if text.startswith(one, i)), None)):
            pieces.append(text[start:i].strip())
            i = start = i + len(found)
            continue
        i += 1
    if depth:
        raise Unparsed("has brackets that do not close")
    return [*pieces, text[start:].strip()]
