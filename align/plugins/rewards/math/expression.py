"""Expressions as exact terms: numbers are rationals, like terms and like powers are collected, nothing is rounded.

Terms are made by ``add``, ``mul``, ``power`` and ``call`` alone, never by ``Term`` itself: these bring them to a normal
form, in which many equal answers are the same term and need no further proof.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from functools import lru_cache
from typing import Any, NamedTuple

from align.plugins.rewards.math.notation import Unparsed

LARGEST = 40_000
"""Bits of a number that is written out; a larger power stays a power."""
_HIGHEST = 500
"""Largest power of a sum."""
_FACTORED = 10**9
"""Largest base of a power that stays a power and is split into primes, so that 9^n is 3^{2n}."""


class Term(NamedTuple):
    """A node of an expression.

    op and args: number (a Fraction), symbol (its name), constant (pi, e or i), add and mul (terms), pow (base and
    exponent), call (the function's name, and terms).
    """

    op: str
    args: tuple[Any, ...]


def number(value: int | Fraction) -> Term:
    """A rational number."""
    return Term("number", (Fraction(value),))


def symbol(name: str) -> Term:
    """A variable."""
    return Term("symbol", (name,))


ZERO, ONE, MINUS_ONE, HALF = number(0), number(1), number(-1), number(Fraction(1, 2))
PI, EULER, IMAGINARY = (Term("constant", (name,)) for name in ("pi", "e", "i"))


@lru_cache(maxsize=8192)
def key_of(term: Term) -> str:
    """Return a text that identifies and sorts a term; numbers in hexadecimal, since decimal takes quadratic time."""
    if term.op == "number":
        return f"{term.args[0].numerator:x}/{term.args[0].denominator:x}"
    return f"{term.op}({', '.join(key_of(arg) if isinstance(arg, Term) else arg for arg in term.args)})"


def value_of(term: Term) -> Fraction | None:
    """The value of a rational number; None for any other term."""
    return Fraction(term.args[0]) if term.op == "number" else None


def add(*terms: Term) -> Term:
    """A sum, with like terms collected."""
    constant = Fraction(0)
    collected: dict[Term, Fraction] = {}
    for term in _flat("add", terms):
        if term.op == "number":
            constant += term.args[0]
            continue
        factor, rest = _coefficient(term)
        collected[rest] = collected.get(rest, Fraction(0)) + factor
    parts = [mul(number(factor), rest) for rest, factor in collected.items() if factor]
    if constant or not parts:
        parts.append(number(constant))
    return parts[0] if len(parts) == 1 else Term("add", tuple(sorted(parts, key=key_of)))


def mul(*factors: Term) -> Term:
    """A product, with powers of the same base collected."""
    constant = Fraction(1)
    collected: dict[Term, Term] = {}
    for factor in _flat("mul", factors):
        if factor.op == "number":
            constant *= factor.args[0]
            continue
        base, exponent = factor.args if factor.op == "pow" else (factor, ONE)
        collected[base] = add(collected[base], exponent) if base in collected else exponent
    parts = []
    for base, exponent in collected.items():
        for part in _flat("mul", [power(base, exponent)]):
            if part.op == "number":
                constant *= part.args[0]
            else:
                parts.append(part)
    if not constant:
        return ZERO
    _bounded(constant)
    if len(parts) == 1 and parts[0].op == "add" and constant != 1:  # 2(x + 1) is 2x + 2
        return add(*(mul(number(constant), part) for part in parts[0].args))
    if constant != 1 or not parts:
        parts.append(number(constant))
    return parts[0] if len(parts) == 1 else Term("mul", tuple(sorted(parts, key=key_of)))


def negative(term: Term) -> Term:
    """A term times -1."""
    return mul(MINUS_ONE, term)


def divide(top: Term, bottom: Term) -> Term:
    """A quotient. Raises Unparsed for a division by zero."""
    return mul(top, power(bottom, MINUS_ONE))


def power(base: Term, exponent: Term) -> Term:
    r"""A power. An odd root of a negative number is the real one: \sqrt[3]{-8} is -2, and so is (-8)^{1/3}."""
    n, b = value_of(exponent), value_of(base)
    if n == 1:
        return base
    if n == 0:
        if b == 0:
            raise Unparsed("has no value")
        return ONE
    if base == IMAGINARY and n is not None and n.denominator == 1:
        return (ONE, IMAGINARY, MINUS_ONE, negative(IMAGINARY))[int(n) % 4]
    if n is None:
        return _symbolic_power(base, exponent)
    if b is not None:
        return _numeric_power(b, n)
    if base.op == "add" and abs(n) > _HIGHEST:
        raise Unparsed("has too large a power")
    if base.op == "pow" and n.denominator == 1:
        return power(base.args[0], mul(base.args[1], exponent))
    if base.op == "mul" and (n.denominator == 1 or n.denominator % 2):  # odd roots are multiplicative on the reals
        return mul(*(power(factor, exponent) for factor in base.args))
    return Term("pow", (base, exponent))


def _symbolic_power(base: Term, exponent: Term) -> Term:
    r"""A power whose exponent is no number: ``2^{n+1}`` is ``2 \cdot 2^n``, and ``4^n`` is ``2^{2n}``."""
    b = value_of(base)
    if b == 1:
        return ONE
    if b is None or b <= 0:
        return Term("pow", (base, exponent))
    if exponent.op == "add":
        whole = next((value_of(part) for part in exponent.args if part.op == "number"), None)
        if whole is not None and whole.denominator == 1:
            return mul(power(base, number(whole)), power(base, add(exponent, number(-whole))))
    if b.denominator == 1 and (split := _perfect_power(int(b))) and split[1] > 1:
        return Term("pow", (number(split[0]), mul(number(split[1]), exponent)))
    if b.numerator == 1:
        return power(number(b.denominator), negative(exponent))
    return Term("pow", (base, exponent))


def _numeric_power(b: Fraction, n: Fraction) -> Term:
    """A power of numbers: worked out where it is rational and small, else with an exponent between 0 and 1."""
    if b == 0:
        if n < 0:
            raise Unparsed("divides by zero")
        return ZERO
    if b < 0 and n.denominator != 1:
        if n.denominator % 2:
            sign = number(-1 if n.numerator % 2 else 1)
            return mul(sign, _numeric_power(-b, n))
        return Term("pow", (number(b), number(n)))
    if abs(b) == 1:
        return number(b if n.numerator % 2 else 1)
    if n.denominator == 1:
        size = abs(int(n)) * max(abs(b.numerator), b.denominator).bit_length()
        return number(b ** int(n)) if size <= LARGEST else _large_power(b, int(n))
    roots = [_exact_root(part, n.denominator) for part in (b.numerator, b.denominator)]
    if roots[0] is not None and roots[1] is not None:
        return power(number(Fraction(roots[0], roots[1])), number(n.numerator))
    if n.numerator // n.denominator:  # 2^{3/2} is 2 times a root
        whole = n.numerator // n.denominator
        return mul(power(number(b), number(whole)), power(number(b), number(n - whole)))
    if b.numerator == 1:
        return power(number(b.denominator), number(-n))
    return Term("pow", (number(b), number(n)))


def _large_power(b: Fraction, n: int) -> Term:
    """A power too large to write out, as powers of primes: 4^{10^9} and 2^{2 * 10^9} are one term."""
    if b < 0:
        return mul(number(-1 if n % 2 else 1), _large_power(-b, n))
    if b.denominator != 1:
        over, under = (power(number(part), number(n)) for part in (b.numerator, b.denominator))
        return mul(over, _inverse(under))
    if b < _FACTORED:
        from sympy import factorint

        powers = [Term("pow", (number(p), number(k * n))) for p, k in factorint(int(b)).items()]
        return powers[0] if len(powers) == 1 else Term("mul", tuple(sorted(powers, key=key_of)))
    return Term("pow", (number(b), number(n)))


def _inverse(term: Term) -> Term:
    """The reciprocal, factor by factor."""
    parts = (f.args if f.op == "pow" else (f, ONE) for f in _flat("mul", [term]))
    return mul(*(power(base, negative(exponent)) for base, exponent in parts))


def call(name: str, *args: Term) -> Term:
    """A function's value: in terms of simpler functions, or a number where it is rational, else kept."""
    if name in _DEFINED:
        return _DEFINED[name](*args)
    values = [arg.args[0] for arg in args if arg.op == "number"]
    if len(values) == len(args) and (made := _numeric_call(name, values)) is not None:
        return number(made)
    if name == "ln" and args[0] == EULER:
        return ONE
    return Term("call", (name, *args))


def _numeric_call(name: str, values: list[Fraction]) -> Fraction | int | None:
    """The value of a function of rational numbers; None where it is not rational by definition."""
    x = values[0]
    if name == "ln" and x == 0:
        raise Unparsed("has no value")
    if name == "ln" and x == 1:
        return 0
    if name in _OF_NUMBERS:
        return _OF_NUMBERS[name](*values)
    if name not in _OF_INTEGERS or any(value.denominator != 1 for value in values):
        return None
    if name in ("factorial", "binom") and not 0 <= values[-1] <= x <= _LARGEST_COUNT:
        raise Unparsed(f"has too large a {name}, or one that is not defined")
    if name == "mod" and values[1] == 0:
        raise Unparsed("divides by zero")
    return _OF_INTEGERS[name](*map(int, values))


_LARGEST_COUNT = 3000
"""Largest number whose factorial is worked out."""
_OF_NUMBERS: dict[str, Callable[..., Fraction | int]] = {
    "abs": abs,
    "floor": math.floor,
    "ceil": math.ceil,
    "max": max,
    "min": min,
}
_OF_INTEGERS: dict[str, Callable[..., int]] = {
    "factorial": math.factorial,
    "binom": math.comb,
    "gcd": math.gcd,
    "lcm": math.lcm,
    "mod": operator.mod,
}
_DEFINED: dict[str, Callable[..., Term]] = {
    "exp": lambda x: power(EULER, x),
    "lg": lambda x: divide(call("ln", x), call("ln", number(10))),
    "logb": lambda b, x: divide(call("ln", x), call("ln", b)),
    "log": lambda x: mul(
        symbol("log"), call("ln", x)
    ),  # the base is unknown, 10 or e: a variable stands for 1/ln of it
    "tan": lambda x: divide(call("sin", x), call("cos", x)),
    "cot": lambda x: divide(call("cos", x), call("sin", x)),
    "sec": lambda x: power(call("cos", x), MINUS_ONE),
    "csc": lambda x: power(call("sin", x), MINUS_ONE),
    "sinh": lambda x: divide(add(power(EULER, x), negative(power(EULER, negative(x)))), number(2)),
    "cosh": lambda x: divide(add(power(EULER, x), power(EULER, negative(x))), number(2)),
    "tanh": lambda x: divide(call("sinh", x), call("cosh", x)),
    "arccos": lambda x: add(mul(HALF, PI), negative(call("arcsin", x))),
    "arccot": lambda x: add(mul(HALF, PI), negative(call("arctan", x))),
}
"""Functions in terms of others."""


def walk(term: Term) -> Iterator[Term]:
    """The term and all terms in it."""
    yield term
    for arg in term.args:
        if isinstance(arg, Term):
            yield from walk(arg)


@lru_cache(maxsize=4096)
def symbols(term: Term) -> frozenset[str]:
    """The names of its variables."""
    return frozenset(part.args[0] for part in walk(term) if part.op == "symbol")


def rebuild(term: Term, put: Callable[[Term], Term | None]) -> Term:
    """The term with each part replaced that ``put`` gives something for, outermost first."""
    if (new := put(term)) is not None:
        return new
    if term.op in ("number", "symbol", "constant"):
        return term
    args = [rebuild(arg, put) for arg in term.args if isinstance(arg, Term)]
    if term.op == "call":
        return call(term.args[0], *args)
    if term.op == "pow":
        return power(*args)
    return add(*args) if term.op == "add" else mul(*args)


def substitute(term: Term, values: Mapping[str, Term]) -> Term:
    """The term with variables replaced."""
    return rebuild(term, lambda part: values.get(part.args[0]) if part.op == "symbol" else None)


def _flat(op: str, terms: Any) -> Iterator[Term]:
    for term in terms:
        if term.op == op:
            yield from term.args
        else:
            yield term


def _coefficient(term: Term) -> tuple[Fraction, Term]:
    """Split a term into its rational factor and the rest."""
    if term.op != "mul":
        return Fraction(1), term
    factor = next((part.args[0] for part in term.args if part.op == "number"), None)
    if factor is None:
        return Fraction(1), term
    rest = tuple(part for part in term.args if part.op != "number")
    return factor, rest[0] if len(rest) == 1 else Term("mul", rest)


def _bounded(value: Fraction) -> None:
    if max(abs(value.numerator), value.denominator).bit_length() > 8 * LARGEST:
        raise Unparsed("has too large a number")


def _exact_root(value: int, k: int) -> int | None:
    from sympy import integer_nthroot

    root, exact = integer_nthroot(value, k)
    return int(root) if exact else None


@lru_cache(maxsize=1024)
def _perfect_power(value: int) -> tuple[int, int] | None:
    """Return (base, exponent) of a perfect power, with the largest exponent; None for other numbers, and large ones."""
    if value > _FACTORED:
        return None
    for k in range(value.bit_length(), 1, -1):
        if (root := _exact_root(value, k)) is not None:
            return root, k
    return None
