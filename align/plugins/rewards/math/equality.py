"""Exact comparison of terms: decided, or not judged.

Two terms are unequal where certified intervals at some point do not meet. They are equal

- at a point, where their difference is algebraic and smaller than its separation bound (Burnikel, Funke, Mehlhorn,
  Schirra, Schmitt: "A Separation Bound for Real Algebraic Expressions");
- as functions, where they are equal at points drawn from a hash of both: of 61 random bits each, so that two
  different ones meet at one with a probability of about 2^-61 (Schwartz, Zippel);
- with logarithms and the like, where they are equal whatever values these have, or sympy proves it.

What none of this decides raises Unparsed.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise
from typing import Any

from mpmath.ctx_iv import MPIntervalContext

from align.plugins.rewards.math.expression import (
    EULER,
    HALF,
    IMAGINARY,
    ONE,
    Term,
    add,
    key_of,
    negative,
    number,
    power,
    rebuild,
    substitute,
    symbol,
    symbols,
    value_of,
    walk,
)
from align.plugins.rewards.math.notation import Unparsed

_BITS = (80, 320, 1280)
"""Precisions, in bits, at which terms without a separation bound are compared."""
_MOST_BITS = 24_000
"""Largest separation bound up to which precision grows."""
_HIGHEST_DEGREE = 12
"""Degree of a polynomial whose zeros are looked for."""
_WHOLE = frozenset(("factorial", "binom", "gcd", "lcm", "mod", "sum"))
"""Functions of whole numbers."""
_POSITIVE = frozenset(("log",))
"""Variables that stand for something positive: 1 / ln of the base of a logarithm without one."""
_iv = MPIntervalContext()
"""Intervals of our own: the precision of mpmath's shared ``iv`` is anybody's to change."""


class _Unclear(Exception):
    """The precision does not decide a sign that the value depends on."""


class _Unreal(Exception):
    """A root or a logarithm of a negative number."""


def equal(gold: Term, answer: Term) -> bool:
    """Decide whether they are the same function of the same variables, wherever the gold is real. Raises Unparsed."""
    if gold == answer:
        return True
    if apart := symbols(gold) ^ symbols(answer):
        if apart == {"log"}:
            raise Unparsed("has a logarithm without a base")
        return False
    difference = add(answer, negative(gold))
    if (value := value_of(difference)) is not None:
        return value == 0
    return _vanishes(difference, gold)


def sign(term: Term) -> int:
    """Return -1, 0 or 1 for a real constant. Raises Unparsed where it is none, or its sign cannot be decided."""
    if (value := value_of(term)) is not None:
        return (value > 0) - (value < 0)
    if symbols(term):
        raise Unparsed("has a variable where a number belongs")
    for bits in _BITS:
        try:
            found = _evaluate(term, bits, True)
        except _Unclear:
            continue
        except _Unreal as error:
            raise Unparsed("has a value that is not real") from error
        if isinstance(found, _iv.mpc):
            raise Unparsed("has a value that is not real")
        if found.a > 0 or found.b < 0:
            return 1 if found.a > 0 else -1
    if _zero(term) or _proved(term):
        return 0
    raise Unparsed("cannot be distinguished from another value")


def is_real(term: Term) -> bool:
    """Return whether a constant has a real value, by real steps: the square of a root of -5 has none."""
    for bits in _BITS:
        try:
            return not isinstance(_evaluate(term, bits, True), _iv.mpc)
        except _Unreal:
            return False
        except _Unclear:
            continue
    return False


def exists(term: Term) -> None:
    r"""Raise Unparsed where a constant has no value, as \frac{1}{\sqrt{2}\sqrt{3}-\sqrt{6}}."""
    if not symbols(term) and term.op != "number":
        for bits in _BITS:
            try:
                _evaluate(term, bits, False)
                return
            except _Unclear:
                continue
            except _Unreal as error:
                raise Unparsed("has no value") from error


def _vanishes(difference: Term, gold: Term) -> bool:
    """Decide whether a difference from the gold is zero at all points where the gold is real. Raises Unparsed."""
    points = [*_points(difference), *_points_between_signs(difference)]
    real = [point for point in points if is_real(substitute(gold, point))]
    outcomes = []
    for point in real or points:  # a gold that is real nowhere, as ``i x``, is compared at all points
        try:
            outcome = _zero(substitute(difference, point))
        except Unparsed:
            continue  # a pole
        if outcome is False:
            return False
        outcomes.append(outcome)
    # A few points may be poles; where most are, too little has been seen to call them equal.
    if 2 * len(outcomes) >= len(real or points) and all(outcomes):
        return True
    if _proved(difference):
        return True
    raise Unparsed("can neither be distinguished from the gold answer nor shown to equal it")


def _points_between_signs(term: Term) -> list[dict[str, Term]]:
    """Points on each side of each zero of what stands in | | or under an even root, where the formula changes.

    With several variables, these lie on lines: all others are fixed.
    """
    inside = {part.args[-1] for part in walk(term) if part.op == "call" and part.args[0] == "abs"}
    for part in walk(term):
        n = value_of(part.args[1]) if part.op == "pow" else None
        if n is not None and n.denominator % 2 == 0:
            inside.add(part.args[0])
    points: list[dict[str, Term]] = []
    for radicand in inside:
        if radicand.op in ("add", "mul", "pow"):
            points.extend(_points_around_zeros(radicand, sorted(symbols(term))))
    return points


def _points_around_zeros(radicand: Term, names: list[str]) -> list[dict[str, Term]]:
    """Points between the real zeros of a radicand, and outside of them, along a line for each variable."""
    from sympy import Poly, Symbol, fraction, together
    from sympy.polys.polyerrors import BasePolynomialError

    points: list[dict[str, Term]] = []
    for name in symbols(radicand):
        others = {other: number(Fraction(7 * k + 3, 2)) for k, other in enumerate(names) if other != name}
        try:
            top, bottom = fraction(together(_as_sympy(substitute(radicand, others))))
            polynomial = Poly(top * bottom, Symbol(name, positive=True), domain="QQ")
            if polynomial.degree() > _HIGHEST_DEGREE:
                continue
            zeros = [Fraction(int(end.p), int(end.q)) for ends, _ in polynomial.intervals() for end in ends]
        except (BasePolynomialError, NotImplementedError, Unparsed):
            continue
        if zeros:
            cuts = sorted({zeros[0] - 2, *zeros, zeros[-1] + 2})
            between = [(a + b) / 2 for a, b in pairwise(cuts)]
            points.extend({**others, name: number(value)} for value in between)
    return points


def _points(term: Term) -> list[dict[str, Term]]:
    """Values for its variables: small and large, of either sign; whole and of all residues mod 12 in exponents."""
    names = sorted(symbols(term))
    if not names:
        return [{}]
    draw = random.Random(int.from_bytes(hashlib.sha256(key_of(term).encode()).digest(), "big"))
    whole = _whole_variables(term)
    points: list[dict[str, Term]] = []
    for i in range(12 if whole else 6):
        point = {}
        for k, name in enumerate(names):
            if name in whole:
                value = Fraction(12 * draw.randrange(1, 4) + (i * (2 * k + 1) + k) % 12)
            else:
                value = Fraction(draw.getrandbits(61) | 1, 2**61) * (1, 50, 2**61)[i % 3]
                positive = name in _POSITIVE or i % 6 < 2 or (i % 6 > 3 and (i + k) % 2)
                value = value if positive else -value
            point[name] = number(value)
        points.append(point)
    return points


def _whole_variables(term: Term) -> set[str]:
    """Variables that stand in exponents, or in functions of whole numbers."""
    found: set[str] = set()
    for part in walk(term):
        if part.op == "pow" and part.args[1].op != "number":
            found |= symbols(part.args[1])
        elif part.op == "call" and part.args[0] in _WHOLE:
            found |= symbols(part)
    return found


@lru_cache(maxsize=4096)
def _zero(term: Term) -> bool | None:
    """Decide whether a constant is zero; None where that stays open."""
    if (value := value_of(term)) is not None:
        return value == 0
    needed = separation(term)
    limit = _BITS[-1] if needed is None else min(needed + 32, _MOST_BITS)
    bits = _BITS[0]
    while True:
        try:
            found = _evaluate(term, bits, False)
        except _Unclear:
            found = None
        except _Unreal:
            return None
        if found is not None:
            parts = (found.real, found.imag) if isinstance(found, _iv.mpc) else (found,)
            if any(part.a > 0 or part.b < 0 for part in parts):
                return False
            if needed is not None and all(abs(part).b < _iv.mpf(2) ** -(needed + 2) for part in parts):
                return True
        if bits >= limit:
            return None
        bits = min(4 * bits, limit)


@lru_cache(maxsize=4096)
def separation(term: Term) -> int | None:
    """Bits after which an algebraic constant that is still zero is zero. None where there are none, or too many."""
    if not _algebraic(term):
        return None
    roots = {part for part in walk(term) if part.op == "pow" and part.args[1].args[0].denominator != 1}
    # The degree of the field that all roots lie in is at most the product of theirs.
    degree = math.prod(part.args[1].args[0].denominator for part in roots)
    if degree > _MOST_BITS:
        return None
    if any(part == IMAGINARY for part in walk(term)) or any(_below_zero(part) for part in roots):
        degree *= 2
    upper, lower = _sizes(term)
    bits = (degree - 1) * upper + lower + 4
    return math.ceil(bits) if bits < _MOST_BITS else None


def _below_zero(root: Term) -> bool:
    value = value_of(root.args[0])
    return value is not None and value < 0


def _algebraic(term: Term) -> bool:
    return all(
        part.op in ("number", "add", "mul")
        or (part.op == "constant" and part.args[0] == "i")
        or (part.op == "pow" and part.args[1].op == "number")
        for part in walk(term)
    )


def _sizes(term: Term) -> tuple[float, float]:
    """Return log2 of bounds of all conjugates of the numerator and of the denominator, which are algebraic integers.

    The rules are those of Burnikel et al. for each operation (see the head of this file).
    """
    if term.op == "number":
        value = term.args[0]
        return _log2(abs(value.numerator)), _log2(value.denominator)
    if term.op == "constant":
        return 0.0, 0.0
    if term.op == "mul":
        sizes = [_sizes(part) for part in term.args]
        return sum(u for u, _ in sizes), sum(v for _, v in sizes)
    if term.op == "add":
        sizes = [_sizes(part) for part in term.args]
        lower = sum(v for _, v in sizes)
        most = max(u - v for u, v in sizes)
        return max(0.0, lower + most + math.log2(len(sizes))), lower
    exponent = term.args[1].args[0]
    upper, lower = _sizes(term.args[0])
    k = exponent.denominator
    if k > 1:
        if upper >= lower:
            upper = (upper + (k - 1) * lower) / k
        else:
            lower = ((k - 1) * upper + lower) / k
    times = abs(exponent.numerator)
    return (times * lower, times * upper) if exponent < 0 else (times * upper, times * lower)


def _log2(value: int) -> float:
    return math.log2(value) if value > 1 else 0.0


def _evaluate(term: Term, bits: int, real: bool) -> Any:
    """An interval, or a rectangle, that holds the value. real: raise _Unreal rather than leave the reals."""
    _iv.prec = bits
    return _interval(term, real)


def _interval(term: Term, real: bool) -> Any:
    if term.op == "number":
        value = term.args[0]
        return _iv.mpf(value.numerator) / _iv.mpf(value.denominator)
    if term.op == "constant":
        if term.args[0] != "i":
            return _iv.pi if term.args[0] == "pi" else _iv.exp(_iv.mpf(1))
        if real:
            raise _Unreal
        return _iv.mpc(0, 1)
    if term.op == "add":
        return sum((_interval(part, real) for part in term.args), _iv.mpf(0))
    if term.op == "mul":
        return math.prod((_interval(part, real) for part in term.args), start=_iv.mpf(1))
    if term.op == "pow":
        return _interval_power(term.args[0], term.args[1], real)
    if term.op == "symbol":
        raise Unparsed("has a variable where a number belongs")
    name, *args = term.args
    # Interval arithmetic has atan2 alone of the inverse functions: arcsin x = atan2(x, sqrt(1 - x^2)).
    if name == "arcsin":
        other = power(add(ONE, negative(power(args[0], number(2)))), HALF)
        return _iv.atan2(_interval(args[0], True), _interval(other, True))
    if name == "arctan":
        return _iv.atan2(_interval(args[0], True), _iv.mpf(1))
    values = [_interval(arg, real) for arg in args]
    if name in ("sin", "cos"):
        _small(values[0], 2**200)
        return getattr(_iv, name)(values[0])
    if name == "ln":
        return _log(values[0], args[0], real)
    if name == "abs":
        return _absolute(values[0])
    if name in ("max", "min"):
        return _extreme(name, values)
    if name in ("floor", "ceil"):
        # An interval around a whole number has two floors however narrow it is: only a proof could decide.
        ends = {(math.floor if name == "floor" else math.ceil)(_rational(end)) for end in (values[0].a, values[0].b)}
        if len(ends) > 1:
            raise _Unclear
        return _iv.mpf(ends.pop())
    raise Unparsed(f"has {name}, which cannot be worked out")


def _interval_power(base: Term, exponent: Term, real: bool) -> Any:
    n = value_of(exponent)
    x = _interval(base, real)
    if n is None:
        y = _interval(exponent, real)
        if base == EULER:
            _small(y)
            return _iv.exp(y)
        made = y * _log(x, base, real)
        _small(made)
        return _iv.exp(made)
    if isinstance(x, _iv.mpc):
        x = _narrowed(x)
    # Near zero neither a reciprocal nor a root has bounds: is the base exactly zero, or only the interval too wide?
    if (n < 0 or n.denominator > 1) and _may_be_zero(x):
        if _zero_within(base):
            if n < 0:
                raise Unparsed("divides by zero")
            return _iv.mpf(0)
        raise _Unclear
    if n.denominator == 1:
        _small(_iv.mpf(abs(n.numerator)))
        return x ** int(n) if n > 0 else 1 / x ** int(-n)
    if isinstance(x, _iv.mpc):
        return _iv.exp(_log(x, base, real) * n.numerator / n.denominator)
    size = abs(x)
    twos = n.denominator & -n.denominator  # the power of two in it: square roots are quicker and narrower than exp
    for _ in range(twos.bit_length() - 1):
        size = _iv.sqrt(size)
    odd = n.denominator // twos
    size = _iv.exp(_iv.log(size) / odd) if odd > 1 else size
    size = size ** abs(n.numerator) if n > 0 else 1 / size ** abs(n.numerator)
    if x.a > 0:
        return size
    if n.denominator % 2:
        return size if n.numerator % 2 == 0 else -size
    if real:
        raise _Unreal
    if n.denominator == 2:
        turns = n.numerator % 4
        return size * (_iv.mpc(0, 1) if turns == 1 else _iv.mpc(0, -1))
    angle = _iv.pi * n.numerator / n.denominator
    return size * _iv.mpc(_iv.cos(angle), _iv.sin(angle))


def _may_be_zero(x: Any) -> bool:
    parts = (x.real, x.imag) if isinstance(x, _iv.mpc) else (x,)
    return all(part.a <= 0 <= part.b for part in parts)


def _zero_within(term: Term) -> bool:
    """Decide whether a part is zero, at the precision that this takes, and restore that of the whole."""
    bits = _iv.prec
    try:
        return _zero(term) is True or _proved(term)
    finally:
        _iv.prec = bits


def _log(x: Any, term: Term, real: bool) -> Any:
    if isinstance(x, _iv.mpc):
        x = _narrowed(x)
    if isinstance(x, _iv.mpc):
        if x.real.a <= 0 and x.imag.a <= 0 <= x.imag.b:  # the cut, or zero
            raise _Unclear
        return _iv.log(x)
    if x.a <= 0 <= x.b:
        if _zero_within(term):
            raise Unparsed("has no value")
        raise _Unclear
    if x.a > 0:
        return _iv.log(x)
    if real:
        raise _Unreal
    return _iv.mpc(_iv.log(-x), _iv.pi)


def _narrowed(x: Any) -> Any:
    """A rectangle that lies in the reals as an interval."""
    return x.real if x.imag.a == 0 == x.imag.b else x


def _absolute(x: Any) -> Any:
    if not isinstance(x, _iv.mpc):
        return abs(x)
    return _iv.sqrt(abs(x.real) ** 2 + abs(x.imag) ** 2)


def _extreme(name: str, values: list[Any]) -> Any:
    best = values[0]
    for value in values[1:]:
        if best.b < value.a or value.b < best.a:
            best = value if (value.a > best.b) == (name == "max") else best
        else:
            raise _Unclear
    return best


def _rational(end: Any) -> Fraction:
    """Return an interval's end as an exact fraction, from the mantissa and exponent that mpmath keeps."""
    below_zero, mantissa, exponent, _ = end._mpi_[0]
    return Fraction(int(-mantissa if below_zero else mantissa)) * Fraction(2) ** int(exponent)


def _small(value: Any, limit: int = 2**48) -> None:
    """Raise Unparsed for an exponent, or an angle, of astronomical size."""
    parts = (value.real, value.imag) if isinstance(value, _iv.mpc) else (value,)
    if any(max(abs(part.a), abs(part.b)) > limit for part in parts):
        raise Unparsed("has too large a power")


@lru_cache(maxsize=1024)
def _proved(term: Term) -> bool:
    r"""Return whether it is zero whatever its logarithms and the like are, or sympy proves it to be.

    Each of them is replaced by a variable of its own, so that ``(1+\ln 3)^2 - 1 - 2\ln 3`` is compared as a polynomial.
    """
    hidden: dict[Term, Term] = {}

    def hide(part: Term) -> Term | None:
        known = part.op in ("number", "symbol", "add", "mul") or part == IMAGINARY
        if known or (part.op == "pow" and part.args[1].op == "number"):
            return None
        return hidden.setdefault(part, symbol(f"hidden {len(hidden)}"))

    bare = rebuild(term, hide)
    if value_of(bare) == 0:
        return True
    if hidden and value_of(bare) is None:
        try:
            if all(_zero(substitute(bare, point)) for point in _points(bare)):
                return True
        except Unparsed:
            pass
    return _sympy_zero(term)


def _sympy_zero(term: Term) -> bool:
    """Return whether sympy proves that it is zero, with its variables positive; intervals have seen the others."""
    from sympy import expand, expand_log, expand_trig, simplify

    forms: tuple[Callable[[Any], Any], ...] = (
        expand,
        lambda made: expand(expand_log(made, force=True)),
        lambda made: expand(made, complex=True),
        lambda made: simplify(expand_trig(made)),
    )
    try:
        made = _as_sympy(term, frozenset(_whole_variables(term)))
        return any(bool(form(made) == 0) for form in forms)
    except (ArithmeticError, TypeError, ValueError, NotImplementedError, AttributeError, RecursionError):
        return False


_SYMPY = {
    "sin": "sin",
    "cos": "cos",
    "arcsin": "asin",
    "arctan": "atan",
    "ln": "log",
    "abs": "Abs",
    "max": "Max",
    "min": "Min",
    "floor": "floor",
    "ceil": "ceiling",
}
"""sympy's names of functions."""


def _as_sympy(term: Term, whole: frozenset[str] = frozenset()) -> Any:
    """The term as sympy's, with positive variables; some of them whole numbers."""
    import sympy

    if term.op == "number":
        return sympy.Rational(term.args[0].numerator, term.args[0].denominator)
    if term.op == "symbol":
        name = term.args[0]
        return sympy.Symbol(name, positive=True, integer=True) if name in whole else sympy.Symbol(name, positive=True)
    if term.op == "constant":
        return {"pi": sympy.pi, "e": sympy.E, "i": sympy.I}[term.args[0]]
    args = [_as_sympy(arg, whole) for arg in term.args if isinstance(arg, Term)]
    if term.op == "call":
        if term.args[0] not in _SYMPY:
            raise NotImplementedError
        return getattr(sympy, _SYMPY[term.args[0]])(*args)
    if term.op == "pow":
        return sympy.Pow(*args)
    return sympy.Add(*args) if term.op == "add" else sympy.Mul(*args)
