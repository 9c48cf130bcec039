"""Comparison of an answer with the gold answer: tree against tree, type by type."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from align.plugins.rewards.math import grammar
from align.plugins.rewards.math.equality import equal, is_real, sign
from align.plugins.rewards.math.expression import (
    Term,
    add,
    divide,
    mul,
    negative,
    number,
    substitute,
    symbols,
    value_of,
)
from align.plugins.rewards.math.notation import OR, Unparsed
from align.plugins.rewards.math.reals import End, Reals
from align.plugins.rewards.math.tree import Tree, is_name

_FLIPPED = {">": "<", r"\ge": r"\le"}
_STARTS = (2, 5, 11)
"""Values of the first variable at which the ratio of two equations is taken: the next where one is zero there."""
_DECIMALS = 6
"""Significant digits that a rounded answer to an exact gold needs."""


def same(gold: Tree, answer: Tree, worked_out: bool = True) -> bool:
    """Return whether an answer equals the gold answer, in structure and in value.

    worked_out: whether a rational gold wants a number, not arithmetic. Raises Unparsed for what cannot be judged.
    The order of the cases matters: relations first, since each may hold any other kind, and leaves last.
    """
    if gold.kind == "relation" or answer.kind == "relation":
        return _relations(gold, answer, worked_out)
    if gold.unit and answer.unit and gold.unit != answer.unit:
        return False
    if not gold.unit and not answer.certain:
        raise Unparsed("has words beside its number")
    if any(tree.kind == "list" and any(map(_bounds, tree.parts)) for tree in (gold, answer)):
        ours, theirs = _set(gold), _set(answer)
        if ours is not None and theirs is not None:
            return ours.same(theirs)
        if gold.brackets != answer.brackets:
            return False
    if gold.kind == answer.kind == "list":
        return _rearranged(gold.parts, answer.parts)
    if {gold.kind, answer.kind} <= {"list", "set"}:
        return _contains(gold.parts, answer.parts) and _contains(answer.parts, gold.parts)
    if gold.kind == "set" and len(gold.parts) == 1:
        return same(gold.parts[0], answer)
    if answer.kind == "set" and len(answer.parts) == 1:
        return same(gold, answer.parts[0])
    if gold.kind == answer.kind and gold.kind in ("bracket", "matrix"):
        alike = gold.brackets == answer.brackets and len(gold.parts) == len(answer.parts)
        return alike and all(map(same, gold.parts, answer.parts))
    if "union" in (gold.kind, answer.kind):
        ours, theirs = _set(gold), _set(answer)
        return ours is not None and theirs is not None and ours.same(theirs)
    if "words" in (gold.kind, answer.kind):
        return _wording(gold) == _wording(answer)
    if not {gold.kind, answer.kind} <= {"number", "expression"}:
        return False
    return _leaves(gold, answer, worked_out)


def _wording(tree: Tree) -> str:
    """Words as written; a short one that is not marked as text looks like a product."""
    return tree.text.casefold() if tree.kind == "expression" and tree.text.isalpha() else tree.text


def check(gold: Tree) -> None:
    """Raise Unparsed where a gold answer has a leaf that nothing could be compared with."""
    for part in gold.parts:
        check(part)
    if gold.kind == "expression" and not gold.parts and not is_name(gold):
        grammar.parse(gold.text)


def _leaves(gold: Tree, answer: Tree, worked_out: bool) -> bool:
    if gold.number is not None and answer.number is not None:
        return gold.number == answer.number or _rounded(gold, answer)
    if restated := grammar.undone(answer.text) - grammar.undone(gold.text):
        raise Unparsed(f"leaves {', '.join(sorted(restated))} to be worked out")
    ours, theirs = _value(gold), _value(answer)
    right = equal(ours, theirs) or _rounded(gold, answer)
    if right and worked_out and _worked(gold) and not _worked(answer) and value_of(ours) is not None:
        raise Unparsed("leaves arithmetic to be worked out")
    return right


def _worked(tree: Tree) -> bool:
    return tree.number is not None or grammar.single_power(tree.text)


def _value(tree: Tree) -> Term:
    return grammar.parse(tree.text) if tree.number is None else number(tree.number)


def _rounded(gold: Tree, answer: Tree) -> bool:
    """Return whether one is a decimal of six digits or more, and is the other, which is none, rounded or cut off."""
    for decimal, other in ((gold, answer), (answer, gold)):
        if decimal.decimals is None or decimal.significant < _DECIMALS or other.decimals is not None:
            continue
        assert decimal.number is not None
        if decimal.number.denominator == 1:  # 10000.0 is a whole number, not a rounded one
            continue
        if other.number is not None and _ends(other.number):  # it has decimals of its own, and these are not they
            continue
        value = _value(other)
        if symbols(value) or not is_real(value):
            continue
        size = 1 if decimal.number > 0 else -1
        unit = Fraction(size, 10**decimal.decimals)
        above = sign(add(value, number(unit / 2 - decimal.number)))  # |decimal| - |value| is at most half a unit
        below = sign(add(value, number(-unit - decimal.number)))  # and more than minus one
        if above * size >= 0 and below * size < 0:
            return True
    return False


def _ends(value: Fraction) -> bool:
    """Return whether it has finitely many decimals."""
    bottom = value.denominator
    for prime in (2, 5):
        while bottom % prime == 0:
            bottom //= prime
    return bottom == 1


def _rearranged(gold: Sequence[Tree], answer: Sequence[Tree]) -> bool:
    """Return whether two lists have the same parts, each as often, in any order."""
    if len(gold) != len(answer):
        return False
    left = list(answer)
    for ours in gold:
        equals = [i for i, theirs in enumerate(left) if same(ours, theirs)]
        if not equals:
            return False
        del left[equals[0]]
    return True


def _contains(parts: Sequence[Tree], others: Sequence[Tree]) -> bool:
    """Return whether each of the others equals one of the parts. Sets are equal where it holds both ways."""
    return all(any(same(part, other) for part in parts) for other in others)


def _relations(gold: Tree, answer: Tree, worked_out: bool) -> bool:
    gold, answer = _turned(gold), _turned(answer)
    if gold.kind == "relation" and answer.kind == "relation":
        if gold.brackets == answer.brackets and all(
            _alike(ours, theirs, worked_out) for ours, theirs in zip(gold.parts, answer.parts, strict=True)
        ):
            return True
        if gold.brackets[0] == "=" and set(answer.brackets) <= {"=", r"\approx"}:
            if is_name(gold.parts[0]) and is_name(answer.parts[0]):
                named = _alike(gold.parts[0], answer.parts[0], worked_out)
                return named and _chain(gold.parts[-1], answer, worked_out)
            return len(answer.parts) == 2 and not _solved(gold) and _proportional(gold, answer)
        return gold.brackets == answer.brackets and not _solved(gold) and _proportional(gold, answer)
    if gold.kind == "relation":
        if gold.brackets[0] == r"\approx" and not is_name(gold.parts[0]):  # what is rounded behind it says no more
            return same(gold.parts[0], answer, worked_out)
        if gold.brackets[-1] == "=" and is_name(gold.parts[0]):
            return same(gold.parts[-1], answer, worked_out)
        ours, theirs = _set(gold), _set(answer)
        return ours is not None and theirs is not None and ours.same(theirs)
    if set(answer.brackets) <= {"=", r"\approx"}:
        return _chain(gold, answer, worked_out)
    ours, theirs = _set(gold), _set(answer)
    return ours is not None and theirs is not None and ours.same(theirs)


def _turned(tree: Tree) -> Tree:
    """``1 > x`` as ``x < 1``, and ``3 = x`` as ``x = 3``."""
    if tree.kind != "relation":
        return tree
    greater = all(op in _FLIPPED for op in tree.brackets)
    backwards = tree.brackets == ("=",) and is_name(tree.parts[1]) and not is_name(tree.parts[0])
    if greater or backwards:
        turned = tuple(_FLIPPED.get(op, op) for op in reversed(tree.brackets))
        return Tree("relation", tree.text, tree.parts[::-1], turned)
    return tree


def _bounds(tree: Tree) -> bool:
    return tree.kind == "relation" and bool({"<", ">", r"\le", r"\ge", r"\ne"} & set(tree.brackets))


def _alike(a: Tree, b: Tree, worked_out: bool) -> bool:
    if is_name(a) and is_name(b):
        return a.text.replace(" ", "") == b.text.replace(" ", "")
    return not is_name(a) and not is_name(b) and same(a, b, worked_out)


def _chain(gold: Tree, answer: Tree, worked_out: bool) -> bool:
    r"""``x = 1 + 1 = 2``: the last is the answer, and all that it is equated with equals it. ``a \approx b``: a is."""
    named = is_name(answer.parts[0])
    parts = list(answer.parts[1:]) if named else list(answer.parts)
    operators = list(answer.brackets[-(len(parts) - 1) :]) if len(parts) > 1 else []
    if r"\approx" in operators:
        parts = parts[: operators.index(r"\approx") + 1]
    if not parts or any(is_name(part) for part in parts):
        return False
    return same(gold, parts[-1], worked_out) and all(same(gold, part, worked_out=False) for part in parts[:-1])


def _solved(tree: Tree) -> bool:
    """Return whether it is a name and its value or bounds: such a gold wants such an answer, and no ``x^2 = 4``."""
    if not any(map(is_name, tree.parts)):
        return False
    rest = [part for part in tree.parts if not is_name(part)]
    return bool(rest) and all(not symbols(_value(part)) for part in rest if _is_leaf(part))


def _is_leaf(tree: Tree) -> bool:
    return tree.kind in ("number", "expression", "words")


def _proportional(gold: Tree, answer: Tree) -> bool:
    """Return whether left less right of one is a constant (above 0 for an inequality) times that of the other."""
    sides = (*gold.parts, *answer.parts)
    if len(gold.parts) != 2 or len(answer.parts) != 2 or any(not _is_leaf(side) or side.unit for side in sides):
        return False
    ours, theirs = (add(_value(t.parts[0]), negative(_value(t.parts[1]))) for t in (gold, answer))
    if symbols(ours) != symbols(theirs) or not symbols(ours):
        return False
    ratio = _ratio(ours, theirs)
    if ratio is None or not equal(ours, mul(ratio, theirs)):
        return False
    return gold.brackets[0] in ("=", r"\ne") or sign(ratio) > 0


def _ratio(a: Term, b: Term) -> Term | None:
    """The quotient of a and b at a point: if a is a constant times b at all, then this constant."""
    for start in _STARTS:
        point = {name: number(start + 7 * i * i) for i, name in enumerate(sorted(symbols(b)))}
        under = substitute(b, point)
        if sign(under):
            return divide(substitute(a, point), under)
    return None


def _set(tree: Tree) -> Reals | None:
    """Intervals, unions of them, finite sets and solved inequalities as sets of reals; None for all else."""
    if tree.kind == "union":
        parts = [_set(part) for part in tree.parts]
        found = [part for part in parts if part is not None]
        if len(found) < len(parts):
            return None
        return found[0].without(found[1]) if tree.brackets else Reals.union(found)
    if tree.kind == "list":
        return _either(tree)
    if tree.kind == "set":
        points = [_real(part) for part in tree.parts]
        values = [point for point in points if point is not None]
        return None if len(values) < len(points) else Reals.points(values)
    if tree.kind == "bracket" and len(tree.parts) == 2:
        low, high = (_end(part) for part in tree.parts)
        closed = tree.brackets[0] == "[", tree.brackets[1] == "]"
        if low is None or high is None or (closed[0] and low == "-") or (closed[1] and high == "+"):
            return None
        return Reals.interval(low, high, *closed)
    if tree.kind == "relation" and all(op in ("<", r"\le", r"\ne", "=") for op in tree.brackets):
        return _solution(tree)
    return None


def _either(tree: Tree) -> Reals | None:
    """The solutions of inequalities for one name with "or" between all of them, or "and"."""
    names = {part.text for relation in tree.parts for part in relation.parts if is_name(part)}
    if len(names) != 1 or len(tree.brackets) != 1 or any(part.kind != "relation" for part in tree.parts):
        return None
    found = [solution for part in tree.parts if (solution := _set(_turned(part))) is not None]
    if len(found) < len(tree.parts):
        return None
    return Reals.union(found) if tree.brackets == (OR,) else Reals.intersection(found)


def _solution(tree: Tree) -> Reals | None:
    r"""The solutions of x < 1, 0 < x < 1, x \ne 2."""
    names = [is_name(part) for part in tree.parts]
    if sum(names) != 1 or len(names) > 3 or (len(names) == 3 and not names[1]):
        return None
    at = names.index(True)
    if {r"\ne", "="} & set(tree.brackets):
        point = _real(tree.parts[1 - at]) if len(names) == 2 else None
        if point is None:
            return None
        return Reals.points([point]) if tree.brackets == ("=",) else Reals.line().without(Reals.points([point]))
    low = _end(tree.parts[at - 1]) if at else "-"
    high = _end(tree.parts[at + 1]) if at + 1 < len(names) else "+"
    if low is None or high is None:
        return None
    closed = bool(at) and tree.brackets[at - 1] == r"\le", at + 1 < len(names) and tree.brackets[at] == r"\le"
    return Reals.interval(low, high, *closed)


def _end(tree: Tree) -> End | None:
    if tree.kind == "words" and tree.text.endswith(r"\infty"):
        return "-" if tree.text[0] == "-" else "+"
    return _real(tree)


def _real(tree: Tree) -> Term | None:
    if not _is_leaf(tree) or tree.kind == "words" or tree.unit:
        return None
    value = _value(tree)
    return value if not symbols(value) and is_real(value) else None
