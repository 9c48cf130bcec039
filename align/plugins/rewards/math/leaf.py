"""The leaves of an answer: expressions. A static guard first; then math-verify's parser and comparison.

What reaches sympy is short, shallow, of known commands, and has no number that could grow; the rest of what is slow
is the worker's deadline's.
"""

from __future__ import annotations

import math
import re
import string
from fractions import Fraction
from functools import lru_cache
from typing import Any

from align.plugins.rewards.math.extract import Unparsed

LONGEST = 300
"""Characters of one expression."""
_DEEPEST = 10
_DIGITS = 400
_EXPONENT = 1000
"""Largest product of exponents in one expression."""

_UNDONE = re.compile(
    r"\\(?:sum|prod|i*int|oint|lim|limsup|liminf|binom|dbinom|tbinom|choose|bmod|pmod|mod|gcd|lcm|det|max|min|sup|inf|"
    r"lfloor|rfloor|lceil|rceil|floor|ceil|Pr|partial|nabla|frac\{d\}|begin|hom|ker|dim|arg|deg|to)(?![a-zA-Z])|!|"
    r"(?<!\\)\|"
)
_COMMANDS = (
    "frac sqrt pi infty cdot times div sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln exp lg "
    "alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi rho sigma tau phi "
    "varphi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega overline bar imath "
    "sum prod int lim binom choose mod bmod pmod gcd lcm lfloor rfloor lceil rceil max min to"
)
_KNOWN = frozenset(_COMMANDS.split())
_SHAPE = re.compile(r"[0-9a-zA-Z+\-*/^_(){}.\[\]\\ !|]*")


_POINTS = ((731, 1371, 2139), (-1713, 537, 3339))
"""Thousandths, at which expressions are compared first."""
_PRODUCT = re.compile(r"(\\[a-zA-Z]+)|([a-eij-oq-zA-EI-OQ-Z])\s*\(")
_COMPLEX = re.compile(r"(?<![a-zA-Z\\])i(?![a-zA-Z])|\\imath")

_SLIP = re.compile(r"\d\s+\d|[a-zA-Z]{5,}|\d\.\d*\.|[-+]\s*[-+]|\[|[-+*/^]\s*$|^\s*[*/^]")
"""What the parser would read as something: numbers side by side, words, doubled signs, floors."""


def letters(text: str) -> frozenset[str]:
    """The variables' letters. The parser makes them all lower case, and ``X`` is not ``x``."""
    return frozenset(re.sub(r"\\[a-zA-Z]+", "", text)) & frozenset(string.ascii_letters)


def undone(text: str) -> frozenset[str]:
    """The operators that restate a question instead of answering it: sums, limits, binomials, factorials, ..."""
    return frozenset(_UNDONE.findall(text))


_ONE = r"(?:\d+(?:\.\d+)?|\.\d+|\\frac\{\d+\}\{\d+\})"
_POWER = re.compile(
    rf"-? ?(?:(?:{_ONE}|\(-?{_ONE}\)) ?\^ ?(?:\d|\{{-?(?:{_ONE}|\d+/\d+)\}})|\\sqrt(?:\[\d+\])?\{{-?{_ONE}\}})"
)


def single_power(text: str) -> bool:
    r"""Whether it is one power or root of one number: ``2^{10}``, ``(\frac{1}{2})^{3}``, ``-\sqrt[3]{8}``."""
    return _POWER.fullmatch(text) is not None


def guard(text: str) -> None:
    """Raises Unparsed for what is no expression, or could be too much for sympy."""
    if len(text) > LONGEST:
        raise Unparsed("is too long an expression")
    if not _SHAPE.fullmatch(text) or _SLIP.search(re.sub(r"\\sqrt\s*\[(\w+)\]|\\[a-zA-Z]+", r" \\ \1", text)):
        raise Unparsed("is no expression")
    if strange := {*re.findall(r"\\([a-zA-Z]+|.)", text)} - _KNOWN - {" "}:
        raise Unparsed(f"has {', '.join(chr(92) + name for name in sorted(strange))}, which is not understood")
    if "infty" in text and not re.fullmatch(r"[-+]? ?\\infty ?", text):
        raise Unparsed("reckons with infinity")
    if re.search(rf"\d{{{_DIGITS}}}", text):
        raise Unparsed("has a number too long")
    depth = deepest = 0
    for c in text:
        depth += (c in "({[") - (c in ")}]")
        deepest = max(deepest, depth)
        if depth < 0:
            break
    if depth or deepest > _DEEPEST:
        raise Unparsed("is nested too deeply, or its brackets do not close")
    if re.search(r"(?:\d{4,}|[!)}])\s*!|\d!.*!.*!", text):
        raise Unparsed("has too large a factorial")
    if _power_of(text) > _EXPONENT:
        raise Unparsed("has too large a power")


def _power_of(text: str) -> float:
    """A bound of the product of all exponents of an expression, towers evaluated from the top."""
    total, at = 1.0, 0
    while (at := text.find("^", at)) >= 0:
        start = at + 1
        while start < len(text) and text[start] == " ":
            start += 1
        end = _group_end(text, start)
        inner = text[start:end]
        total *= max(1.0, _largest(inner))
        if total > _EXPONENT:
            return math.inf
        at = max(end, at + 1)
    return total


def _group_end(text: str, start: int) -> int:
    if start < len(text) and text[start] in "{(":
        depth = 0
        for i in range(start, len(text)):
            depth += (text[i] in "({") - (text[i] in ")}")
            if depth == 0:
                return i + 1
        return len(text)
    match = re.compile(r"-?\d+|\\[a-zA-Z]+|.").match(text, start)
    return match.end() if match else start + 1


def _largest(exponent: str) -> float:
    """A bound of an exponent: its numbers multiplied, or raised to one another where it has powers itself."""
    numbers = [max(2.0, float(n)) for n in re.findall(r"\d+", exponent) if n not in ("0", "1")]
    if "^" not in exponent:
        return math.prod(numbers)
    value = 1.0
    for number in reversed(numbers):
        value = math.inf if value * math.log10(number) > 4 else number**value
    return value


@lru_cache(maxsize=2048)
def parse(text: str) -> Any:
    """A guarded expression as sympy's. Raises Unparsed where it cannot be read, or has no value."""
    from latex2sympy2_extended import latex2sympy
    from sympy import Basic, I, nan, oo, zoo

    guard(text)
    if re.search(r"\\frac\{[^{}]*\}\{\s*-?0+(?:\.0*)?\s*\}|/\s*\{?0+(?:\.0*)?(?![.\d])", text):
        raise Unparsed("divides by zero")
    try:
        made = latex2sympy(
            _PRODUCT.sub(lambda m: m[1] or rf"{m[2]}\cdot (", text),  # else x(x + 1) is a function called x
            is_real=not _COMPLEX.search(text),  # symbols are real then
            convert_degrees=False,
            normalization_config=None,
        )
    except Exception as error:
        raise Unparsed("is no expression") from error
    if isinstance(made, Basic):
        made = made.xreplace({name: I for name in made.free_symbols if name.name == "i"})
    if not isinstance(made, Basic) or made.has(nan, zoo):
        raise Unparsed("has no value")
    if not made.free_symbols and not made.has(oo, -oo):
        value = made.evalf(15)
        if value.has(nan, zoo, oo):
            raise Unparsed("has no value")
    return made


def exact(made: Any) -> Fraction | None:
    """An expression's value where it is a rational number."""
    from sympy import Rational

    value = made.doit() if made.free_symbols == set() else made
    return Fraction(int(value.p), int(value.q)) if isinstance(value, Rational) else None


def equal(gold: Any, answer: Any) -> bool:
    """Whether two expressions are one: at points first, which is cheap and refutes, then by math-verify."""
    from math_verify import verify
    from sympy import Float, Rational, expand, oo

    if gold == answer:
        return True
    if gold in (oo, -oo) or answer in (oo, -oo):
        return bool(gold.doit() == answer.doit())
    if gold.free_symbols != answer.free_symbols:
        return False
    gold, answer = (e.xreplace({f: Rational(str(f)) for f in e.atoms(Float)}).doit() for e in (gold, answer))
    names = sorted(gold.free_symbols, key=str)
    if not names:
        size = max(abs(complex(gold.evalf(15))), abs(complex(answer.evalf(15))))
        return bool(abs(complex((gold - answer).evalf(30))) <= 1e-20 * size)
    for point in _POINTS:
        at = {name: Rational(point[i % 3] + 1000 * i, 1000) for i, name in enumerate(names)}
        a, b = (e.subs(at).evalf(15) for e in (gold, answer))
        if a.is_number and b.is_number and a.is_finite and b.is_finite:
            a, b = complex(a), complex(b)
            if abs(a - b) > 1e-9 * max(abs(a), abs(b), 1e-9):
                return False
    return expand(gold - answer) == 0 or bool(verify(gold, answer, timeout_seconds=None))


def near(made: Any) -> float | None:
    """An expression's value to fifteen digits; None where it has none that is real and finite."""
    if made.free_symbols:
        return None
    value = made.evalf(15)
    return float(value) if value.is_number and value.is_real and value.is_finite else None


def same_power(a: str, b: str) -> bool:
    r"""Whether ``9^{100000000}`` and ``3^{200000000}`` are one number, without writing it out."""
    found = [re.fullmatch(r"(\d{1,9})\^\{?(\d{1,15})\}?", text.replace(" ", "")) for text in (a, b)]
    if not (found[0] and found[1]):
        return False
    from sympy import factorint

    powers = [{p: k * int(m[2]) for p, k in factorint(int(m[1])).items()} for m in found if m]
    return bool(powers[0] == powers[1])
