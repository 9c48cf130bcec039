"""Whether an answer says what the gold answer says: tree against tree, type by type."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from align.plugins.rewards.math import leaf
from align.plugins.rewards.math.extract import Unparsed
from align.plugins.rewards.math.tree import Tree, is_name

_FLIPPED = {">": "<", r"\ge": r"\le"}
_DECIMALS = 6
"""Significant digits that a rounded answer to an exact gold needs."""


def same(gold: Tree, answer: Tree, worked_out: bool = True) -> bool:
    """worked_out: whether a rational gold wants a number, not arithmetic. Raises Unparsed for what cannot be judged."""
    if gold.kind == "relation" or answer.kind == "relation":
        return _relations(gold, answer, worked_out)
    if gold.unit and answer.unit and gold.unit != answer.unit:
        return False
    if not gold.unit and not answer.certain:
        raise Unparsed("has words beside its number")
    if {gold.kind, answer.kind} <= {"list", "set"}:
        as_list = gold.kind == answer.kind == "list"
        return (len(gold.parts) == len(answer.parts) or not as_list) and _unordered(gold.parts, answer.parts)
    if gold.kind == "set" and len(gold.parts) == 1:
        return same(gold.parts[0], answer)
    if answer.kind == "set" and len(answer.parts) == 1:
        return same(gold, answer.parts[0])
    if gold.kind == answer.kind and gold.kind in ("bracket", "matrix"):
        alike = gold.brackets == answer.brackets and len(gold.parts) == len(answer.parts)
        return alike and all(map(same, gold.parts, answer.parts))
    if "union" in (gold.kind, answer.kind):
        ours, theirs = _set(gold), _set(answer)
        return ours is not None and theirs is not None and bool(ours == theirs)
    if "words" in (gold.kind, answer.kind):
        return gold.kind == answer.kind and gold.text == answer.text
    if not {gold.kind, answer.kind} <= {"number", "expression"}:
        return False
    return _leaves(gold, answer, worked_out)


def check(gold: Tree) -> None:
    """Raises Unparsed where a gold answer has a leaf that nothing could be compared with."""
    for part in gold.parts:
        check(part)
    if gold.kind == "expression" and not gold.parts and not leaf.same_power(gold.text, gold.text) and not is_name(gold):
        leaf.parse(gold.text)


def _leaves(gold: Tree, answer: Tree, worked_out: bool) -> bool:
    if gold.number is not None and answer.number is not None:
        return gold.number == answer.number or _rounded(gold, answer)
    if restated := leaf.undone(answer.text) - leaf.undone(gold.text):
        raise Unparsed(f"leaves {', '.join(sorted(restated))} to be worked out")
    if leaf.same_power(gold.text, answer.text):
        return True
    used = leaf.letters(gold.text) | leaf.letters(answer.text)
    if any(letter.isupper() and letter.lower() in used for letter in used):
        return "".join(gold.text.split()) == "".join(answer.text.split())
    ours, theirs = _value(gold), _value(answer)
    right = leaf.equal(ours, theirs) or _rounded(gold, answer)
    if right and worked_out and _worked(gold) and not _worked(answer) and leaf.exact(ours) is not None:
        raise Unparsed("leaves arithmetic to be worked out")
    return right


def _worked(tree: Tree) -> bool:
    return tree.number is not None or leaf.single_power(tree.text)


def _value(tree: Tree) -> Any:
    if tree.number is None:
        return leaf.parse(tree.text)
    from sympy import Rational

    return Rational(tree.number.numerator, tree.number.denominator)


def _rounded(gold: Tree, answer: Tree) -> bool:
    """Whether one is a decimal of six digits or more, and the other, no such one itself, is it rounded or cut off."""
    for decimal, other in ((gold, answer), (answer, gold)):
        if decimal.decimals is None or decimal.significant < _DECIMALS or other.decimals is not None:
            continue
        assert decimal.number is not None
        if decimal.number.denominator == 1:  # 10000.0 is a whole number, not a rounded one
            continue
        if other.number is not None:
            if _ends(other.number):  # it has decimals of its own, and these are not they
                continue
            value: float | None = float(other.number)
        else:
            value = leaf.near(leaf.parse(other.text))
        if value is None or value * decimal.number < 0:
            continue
        excess = (abs(float(decimal.number)) - abs(value)) * 10.0**decimal.decimals
        if -1 < excess <= 0.5:
            return True
    return False


def _ends(number: Fraction) -> bool:
    """Whether it has finitely many decimals."""
    bottom = number.denominator
    for prime in (2, 5):
        while bottom % prime == 0:
            bottom //= prime
    return bottom == 1


def _unordered(gold: Sequence[Tree], answer: Sequence[Tree]) -> bool:
    """Every part of each has its like in the other."""
    left = list(answer)
    for ours in gold:
        like = [i for i, theirs in enumerate(left) if same(ours, theirs)]
        if not like:
            return any(same(ours, theirs) for theirs in answer) and len(gold) > len(answer)
        del left[like[0]]
    return all(any(same(ours, theirs) for ours in gold) for theirs in left)


def _relations(gold: Tree, answer: Tree, worked_out: bool) -> bool:
    gold, answer = _turned(gold), _turned(answer)
    if gold.kind == "relation" and answer.kind == "relation":
        if gold.brackets == answer.brackets and all(map(_alike, gold.parts, answer.parts)):
            return True
        if gold.brackets[0] == "=" and set(answer.brackets) <= {"=", r"\approx"}:
            if is_name(gold.parts[0]) and is_name(answer.parts[0]):
                named = _alike(gold.parts[0], answer.parts[0])
                return named and _chain(gold.parts[-1], answer, worked_out)
            return len(answer.parts) == 2 and not _solved(gold) and _proportional(gold, answer)
        return gold.brackets == answer.brackets and not _solved(gold) and _proportional(gold, answer)
    if gold.kind == "relation":
        if gold.brackets[-1] == "=" and is_name(gold.parts[0]):
            return same(gold.parts[-1], answer, worked_out)
        ours, theirs = _set(gold), _set(answer)
        return ours is not None and theirs is not None and bool(ours == theirs)
    if set(answer.brackets) <= {"=", r"\approx"}:
        return _chain(gold, answer, worked_out)
    ours, theirs = _set(gold), _set(answer)
    return ours is not None and theirs is not None and bool(ours == theirs)


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


def _alike(a: Tree, b: Tree) -> bool:
    if is_name(a) and is_name(b):
        return a.text.replace(" ", "") == b.text.replace(" ", "")
    return not is_name(a) and not is_name(b) and same(a, b)


def _chain(gold: Tree, answer: Tree, worked_out: bool) -> bool:
    r"""``x = 1 + 1 = 2``: the last is the answer, and all that is said to equal it does. ``a \approx b``: a is."""
    parts = list(answer.parts[1:] if is_name(answer.parts[0]) else answer.parts)
    operators = list(answer.brackets[-(len(parts) - 1) :]) if len(parts) > 1 else []
    if r"\approx" in operators:
        parts = parts[: operators.index(r"\approx") + 1]
    if not parts or any(is_name(part) for part in parts):
        return False
    return same(gold, parts[-1], worked_out) and all(same(gold, part, worked_out=False) for part in parts[:-1])


def _solved(tree: Tree) -> bool:
    """Whether it is a name and its value or bounds: then an answer that is not is no answer."""
    if not any(map(is_name, tree.parts)):
        return False
    rest = [part for part in tree.parts if not is_name(part)]
    return bool(rest) and all(not getattr(_value(part), "free_symbols", None) for part in rest if _is_leaf(part))


def _is_leaf(tree: Tree) -> bool:
    return tree.kind in ("number", "expression", "words")


def _proportional(gold: Tree, answer: Tree) -> bool:
    """Whether left less right of one is a constant (above 0 for an inequality) times that of the other."""
    from sympy import simplify

    sides = (*gold.parts, *answer.parts)
    if len(gold.parts) != 2 or len(answer.parts) != 2 or any(not _is_leaf(side) or side.unit for side in sides):
        return False
    ours, theirs = (_value(t.parts[0]) - _value(t.parts[1]) for t in (gold, answer))
    if ours.free_symbols != theirs.free_symbols or not ours.free_symbols:
        return False
    ratio = simplify(ours / theirs)
    return bool(ratio.is_number and ratio.is_nonzero and (gold.brackets[0] == "=" or ratio.is_positive))


def _set(tree: Tree) -> Any:
    """Intervals, unions of them, finite sets and solved inequalities as sympy's sets of reals; None for all else."""
    from sympy import EmptySet, FiniteSet, Interval, Union, oo

    if tree.kind == "union":
        parts = [_set(part) for part in tree.parts]
        if any(part is None for part in parts):
            return None
        return parts[0] - parts[1] if tree.brackets else Union(*parts)
    if tree.kind == "set":
        points = [_real(part) for part in tree.parts]
        return None if any(point is None for point in points) else FiniteSet(*points) if points else EmptySet
    if tree.kind == "bracket" and len(tree.parts) == 2:
        ends = [_real(part) for part in tree.parts]
        opens = tree.brackets[0] == "(", tree.brackets[1] == ")"
    elif tree.kind == "relation" and all(op in ("<", r"\le", r"\ne") for op in tree.brackets):
        names = [is_name(part) for part in tree.parts]
        if sum(names) != 1 or len(names) > 3 or (len(names) == 3 and not names[1]):
            return None
        if tree.brackets == (r"\ne",):
            point = _real(tree.parts[names.index(False)])
            return None if point is None else Interval(-oo, oo) - FiniteSet(point)
        at = names.index(True)
        ends = [_real(tree.parts[at - 1]) if at else -oo, _real(tree.parts[at + 1]) if at + 1 < len(names) else oo]
        opens = at == 0 or tree.brackets[at - 1] == "<", at + 1 == len(names) or tree.brackets[at] == "<"
    else:
        return None
    return None if None in ends else Interval(*ends, *opens)


def _real(tree: Tree) -> Any:
    if not _is_leaf(tree) or tree.kind == "words" or tree.unit:
        return None
    value = _value(tree)
    return value if not value.free_symbols and value.is_extended_real else None
