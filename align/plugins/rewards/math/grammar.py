r"""The grammar of expressions: cleaned TeX to exact terms.

    sum      = [sign] product { sign product }
    product  = power { [times | over] power }
    power    = postfix [ "^" argument ]
    postfix  = primary { "!" | "'" }
    primary  = number | letter | \command | "(" sum ")" | "{" sum "}" | "|" sum "|"

What two readers would read in two ways is read in none: ``1/2x``, ``\sin x/2``, ``2\frac{3}{2}``.
"""

from __future__ import annotations

import re
from collections import Counter
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

from align.plugins.rewards.math.equality import exists
from align.plugins.rewards.math.expression import (
    EULER,
    IMAGINARY,
    PI,
    Term,
    add,
    call,
    divide,
    key_of,
    mul,
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
from align.plugins.rewards.math.notation import FUNCTIONS, Unparsed

LONGEST = 600
"""Characters of one expression."""
_DEEPEST = 20
_TERMS = 4000
"""Nodes of a sum that is added up."""

_TOKEN = re.compile(r"\s+|(\d+(?:\.\d*)?|\.\d+)|(\\[a-zA-Z]+|\\[|{}])|([a-zA-Z])|(.)", re.S)
_LETTERS = (
    "alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi rho sigma tau phi "
    "varphi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega ell hbar"
)
_GREEK = frozenset(_LETTERS.split())
_INVERSE = {"sin": "arcsin", "cos": "arccos", "tan": "arctan", "cot": "arccot"}
_LISTED = frozenset(("gcd", "lcm", "max", "min"))
_ACCENTS = frozenset(
    ("vec", "hat", "bar", "overline", "overrightarrow", "widehat", "tilde", "dot", "mathbf", "mathcal")
)
_TIMES = frozenset((r"\cdot", r"\times", "*", r"\ast"))
_OVER = frozenset(("/", r"\div"))
_CALLED = frozenset("fghFGHP")
"""Letters that are functions before brackets, f(x), unless they stand alone too: g(x + 1) + g is a sum of products."""
_SHORT_WORD = re.compile(r"[aie]|if|is|in|it|to|no|of|on|or|at|as|an|by|be|do|so|we", re.I)
"""Short words: in roman type they are words, where other letters (``\\mathrm{gb}``) are a product."""
_CLOSE = {"(": ")", "{": "}", "[": "]", r"\{": r"\}"}

_UNDONE = re.compile(r"\\(?:sum|prod|binom|choose|mod|gcd|lcm|max|min|[lr]floor|[lr]ceil)(?![a-zA-Z])|!|(?<!\\)\|")


def undone(text: str) -> frozenset[str]:
    """The operators that restate a question instead of answering it: sums, binomials, factorials, ..."""
    return frozenset(_UNDONE.findall(text))


_ONE = r"(?:\d+(?:\.\d+)?|\.\d+|\\frac\{\d+\}\{\d+\})"
_POWER = re.compile(
    rf"-? ?(?:(?:{_ONE}|\(-?{_ONE}\)) ?\^ ?(?:\d|\{{-?(?:{_ONE}|\d+/\d+)\}})|\\sqrt(?:\[\d+\])?\{{-?{_ONE}\}})"
)


def single_power(text: str) -> bool:
    r"""Return whether it is one power or root of one number: ``2^{10}``, ``(\frac{1}{2})^{3}``, ``-\sqrt[3]{8}``."""
    return _POWER.fullmatch(text) is not None


class _Token(NamedTuple):
    kind: str
    text: str
    spaced: bool


@lru_cache(maxsize=4096)
def parse(text: str) -> Term:
    """An expression as an exact term. Raises Unparsed where it cannot be read in one way only, or has no value."""
    if len(text) > LONGEST:
        raise Unparsed("is too long an expression")
    reader = _Reader(text)
    made = reader.sum()
    if reader.next is not None:
        raise Unparsed("is no expression")
    exists(made)
    return made


class _Reader:
    """Recursive descent over the tokens of one expression."""

    def __init__(self, text: str) -> None:
        if re.search(r"(?<![a-zA-Z\\])[a-zA-Z]{5,}", text):  # a word, and no product of five variables
            raise Unparsed("is no expression")
        self.tokens: list[_Token] = []
        spaced = False
        for match in _TOKEN.finditer(text):
            if match.lastindex is None:
                spaced = True
                continue
            kind = ("number", "command", "letter", "sign")[match.lastindex - 1]
            self.tokens.append(_Token(kind, match[0], spaced))
            spaced = False
        self.at = 0
        self.depth = 0
        self.bars = 0  # open | in this group: the next one closes
        self.angles = 0  # functions around this place: only in them do degrees count as pi/180
        alone = Counter(re.findall(r"(?<![\\a-zA-Z])([a-zA-Z])(?!\s*[(a-zA-Z])", text))
        self.called = _CALLED - set(alone)

    @property
    def next(self) -> str | None:
        """The text of the token ahead; None at the end."""
        return self.tokens[self.at].text if self.at < len(self.tokens) else None

    def take(self, expected: str | None = None) -> str:
        """Take the token ahead. Raises Unparsed at the end, or where another one is expected."""
        found = self.next
        if found is None or (expected is not None and found != expected):
            raise Unparsed("is no expression")
        self.at += 1
        return found

    def sum(self) -> Term:
        """Terms with signs between them."""
        parts = []
        signed = self.next in ("+", "-")
        while True:
            sign = self.take() if signed else "+"
            part = self.product()
            parts.append(negative(part) if sign == "-" else part)
            signed = self.next in ("+", "-")
            if not signed:
                break
        return add(*parts)

    def product(self, argument: bool = False) -> Term:
        """Factors, written side by side or with signs. argument: of a function that is written without brackets."""
        made = last = self.power()
        after_slash = False
        while self.next is not None:
            if self.next in _TIMES and not argument:
                self.take()
                made = mul(made, self.factor())
                after_slash = False
            elif self.next in _OVER and not argument:
                slash = self.take() == "/"
                made = divide(made, self.factor())
                after_slash = slash
            elif self.begins() and not (argument and self.function_ahead()):
                if after_slash:
                    raise Unparsed("is ambiguous: what follows the slash may be above or below it")
                # ``2 3`` may be 23 or 6; but ``3! 2`` and ``x^2 3`` are products.
                adjacent = self.tokens[self.at].kind == "number" and self.tokens[self.at - 1].text != "!"
                if adjacent and not (last.op == "pow" and symbols(last)):
                    raise Unparsed("has numbers side by side")
                last = self.power()
                made = mul(made, last)
            else:
                break
        return made

    def factor(self) -> Term:
        r"""A factor that may have a sign of its own: 2 \cdot -3."""
        if self.next == "-":
            self.take()
            return negative(self.power())
        return self.power()

    def begins(self) -> bool:
        """Return whether the token ahead begins a factor."""
        text = self.next
        if text is None or text in (")", "}", "]", r"\}", r"\rfloor", r"\rceil", r"\choose"):
            return False
        if text == "|":
            return self.bars == 0
        return (
            self.tokens[self.at].kind in ("number", "letter")
            or text in ("(", "{", "[")
            or (text.startswith("\\") and text not in _TIMES and text not in _OVER and text not in (r"\mod", r"\{"))
        )

    def function_ahead(self) -> bool:
        """Return whether the token ahead is a function's name."""
        return (self.next or "").removeprefix("\\") in FUNCTIONS and (self.next or "").startswith("\\")

    def power(self) -> Term:
        """A base with its exponent."""
        base = self.postfix()
        if self.next != "^":
            return base
        self.take()
        made = power(base, self.argument())
        if self.next == "^":
            raise Unparsed("has an exponent after an exponent")
        if self.next == "!":
            raise Unparsed("is ambiguous: a factorial after a power")
        return made

    def argument(self) -> Term:
        """TeX's argument: a group, or one token; of digits, all of a number."""
        if self.next == "{":
            return self.group("{")
        if self.next == "-":
            self.take()
            return negative(self.primary(whole=False))
        if self.next == "(":
            return self.group("(")
        return self.primary(whole=False)

    def group(self, opening: str) -> Term:
        """The sum between brackets."""
        self.take(opening)
        bars, self.bars = self.bars, 0
        made = self.sum()
        if opening == "{" and self.next == r"\choose":
            self.take()
            made = call("binom", made, self.sum())
        self.take(_CLOSE[opening])
        self.bars = bars
        return made

    def postfix(self) -> Term:
        """A primary, with factorials."""
        made = self.primary()
        if self.next == "!":
            self.take()
            made = call("factorial", made)
            if self.next == "!":
                raise Unparsed("has a double factorial")
        if self.angles and self.ahead(r"\text", "{", "d", "e", "g", "}"):
            made = mul(made, PI, number(Fraction(1, 180)))
        return made

    def ahead(self, *texts: str) -> bool:
        """Take these tokens if they come next."""
        found = tuple(token.text for token in self.tokens[self.at : self.at + len(texts)]) == texts
        self.at += len(texts) if found else 0
        return found

    def primary(self, whole: bool = True) -> Term:
        """A number, a name, brackets, or a command with its arguments. whole: a mixed number may begin here."""
        self.depth += 1
        if self.depth > _DEEPEST:
            raise Unparsed("is nested too deeply")
        made = self.read(whole)
        self.depth -= 1
        return made

    def read(self, whole: bool) -> Term:
        """A primary, by its first token."""
        if self.next is None:
            raise Unparsed("is no expression")
        kind, text, _ = self.tokens[self.at]
        if kind == "number":
            self.take()
            value = Fraction(text.rstrip(".") or "0")
            return self.mixed(value) if whole and "." not in text else number(value)
        if kind == "letter":
            return self.letter()
        if text in ("(", "{", "["):
            return self.group(text)
        if text == "|":
            self.take()
            self.bars += 1
            inner = self.sum()
            self.take("|")
            self.bars -= 1
            return call("abs", inner)
        if kind == "command":
            return self.command()
        raise Unparsed("is no expression")

    def mixed(self, value: Fraction) -> Term:
        r"""A whole number, and a fraction of whole numbers behind it: 3\frac{1}{2} is 3.5."""
        ahead = [token.text for token in self.tokens[self.at : self.at + 7]]
        if len(ahead) < 7 or ahead[0] != r"\frac" or "".join(ahead[1::5] + ahead[3:5]) != "{}}{":
            return number(value)
        if not (ahead[2].isdigit() and ahead[5].isdigit()):
            return number(value)
        if int(ahead[2]) >= int(ahead[5]):
            raise Unparsed("is ambiguous: a mixed number or a product")
        self.at += 7
        return number(value + Fraction(int(ahead[2]), int(ahead[5])))

    def letter(self) -> Term:
        """A variable with its index and primes, e, i, or the value of an unknown function."""
        name = self.take()
        if name == "e" and self.next != "_":
            return EULER
        if name == "i" and self.next != "_":
            return IMAGINARY
        name += self.index()
        if self.next == "(" and name[0] in self.called:
            return self.called_with(name)
        return symbol(name)

    def called_with(self, name: str) -> Term:
        """An unknown function's value, as a variable named after it and what it is of."""
        self.take("(")
        args = [self.sum()]
        while self.next == ",":
            self.take()
            args.append(self.sum())
        self.take(")")
        return symbol(f"{name}({', '.join(map(key_of, args))})")

    def index(self) -> str:
        """A subscript and primes, as written."""
        made = ""
        while self.next in ("_", "'"):
            mark = self.take()
            made += mark
            if mark == "_":
                made += self.raw()
        return made

    def raw(self) -> str:
        """The text of a group, or of one token."""
        first = self.take()
        if first != "{":
            return first
        depth, made = 1, ""
        while depth:
            text = self.take()
            depth += {"{": 1, "}": -1}.get(text, 0)
            made += text if depth else ""
        return made

    def command(self) -> Term:
        """A command, with its arguments."""
        name = self.take()[1:]
        if name in ("frac", "binom"):
            first, second = self.group("{"), self.group("{")
            return divide(first, second) if name == "frac" else call("binom", first, second)
        if name == "sqrt":
            degree = self.group("[") if self.next == "[" else number(2)
            return self.root(degree, self.argument())
        if name == "pi":
            return PI
        if name in _GREEK:
            return symbol("\\" + name + self.index())
        if name in ("imath", "jmath"):
            return IMAGINARY
        if name in ("lfloor", "lceil"):
            inner = self.sum()
            self.take("\\r" + name[1:])
            return call("floor" if name == "lfloor" else "ceil", inner)
        if name in FUNCTIONS:
            return self.function(name)
        if name in _LISTED:
            self.take("(")
            args = [self.sum()]
            while self.next == ",":
                self.take()
                args.append(self.sum())
            self.take(")")
            return call(name, *args)
        if name in ("sum", "prod"):
            return self.series(name)
        if name == "text":
            return self.upright()
        if name in _ACCENTS:
            inside = self.raw()
            if not re.fullmatch(r"[a-zA-Z]+|\\[a-zA-Z]+", inside):
                raise Unparsed("has an accent over what is no name")
            return symbol(rf"\{name}{{{inside}}}{self.index()}")
        raise Unparsed(f"has \\{name}, which is not understood")

    def upright(self) -> Term:
        r"""Letters that are set upright: \frac{\mathrm{gb}}{f}; words are none."""
        inside = self.raw().strip()
        if not re.fullmatch(r"[a-zA-Z]{1,2}", inside) or _SHORT_WORD.fullmatch(inside):
            raise Unparsed("has words in an expression")
        return mul(*map(symbol, inside))

    def root(self, degree: Term, inside: Term) -> Term:
        """A root of a whole degree."""
        k = value_of(degree)
        if k is None or k.denominator != 1 or not 2 <= k <= 1000:
            raise Unparsed("has a root of no whole degree")
        return power(inside, number(Fraction(1, int(k))))

    def function(self, name: str) -> Term:
        r"""A function with its exponent or base, and its argument: \sin^2 x, \log_2 8, \ln(x), \sin 2x."""
        base = exponent = None
        while self.next in ("^", "_"):
            if self.take() == "^":
                exponent = self.argument()
            else:
                base = self.argument()
        self.angles += 1
        if self.next in ("(", "{", "["):
            argument = self.group(self.next)
            bare = False
            if self.next == "^":
                raise Unparsed("is ambiguous: a power of the value or of what it is of")
        elif self.function_ahead():
            argument, bare = self.power(), False
        else:
            argument, bare = self.product(argument=True), True
        self.angles -= 1
        if bare and self.next in _OVER:
            after = self.tokens[self.at + 1].text if self.at + 1 < len(self.tokens) else ""
            if after.removeprefix("\\") not in FUNCTIONS or not after.startswith("\\"):
                raise Unparsed("is ambiguous: what follows the slash may be inside the function")
        if exponent is not None and value_of(exponent) == -1:  # sin^{-1} x is arcsin x
            if name not in _INVERSE:
                raise Unparsed("is ambiguous: an inverse or a reciprocal")
            name, exponent = _INVERSE[name], None
        if base is not None:
            if name != "log":
                raise Unparsed("has an index that is not understood")
            made = call("logb", base, argument)
        else:
            made = call(name, argument)
        return made if exponent is None else power(made, exponent)

    def series(self, name: str) -> Term:
        r"""\sum_{k=1}^{9} k and \prod, worked out between numbers, else as a value that only itself equals."""
        self.take("_")
        self.take("{")
        index = self.letter()
        self.take("=")
        low = self.sum()
        self.take("}")
        self.take("^")
        high = self.unbounded() or self.argument()
        body = self.product()
        if index.op != "symbol":
            index, body = self.unread_unit(index, body)
        a, b = value_of(low), value_of(high)
        if a is None or b is None:
            inner = substitute(body, {index.args[0]: symbol("bound index")})
            return symbol(f"{name}({', '.join(map(key_of, (inner, low, high)))})")
        if a.denominator != 1 or b.denominator != 1 or (b - a) * sum(1 for _ in walk(body)) > _TERMS:
            raise Unparsed("has a sum that is too long")
        parts = [substitute(body, {index.args[0]: number(k)}) for k in range(int(a), int(b) + 1)]
        return (add if name == "sum" else mul)(*parts)

    def unbounded(self) -> Term | None:
        """Infinity as the end of a series, which is not worked out then."""
        found = self.ahead(r"\infty") or self.ahead("{", r"\infty", "}")
        return symbol("infinity") if found else None

    def unread_unit(self, index: Term, body: Term) -> tuple[Term, Term]:
        """An index i or e is a variable here."""
        if index not in (IMAGINARY, EULER):
            raise Unparsed("has a sum over what is no variable")
        put = symbol("bound unit")
        return put, rebuild(body, lambda part: put if part == index else None)
