"""One answer, many notations: Unicode and LaTeX variants to one plain form."""

from __future__ import annotations

import re
import unicodedata


class Unparsed(Exception):
    """There is no answer, or not exactly one; says why."""


_DEEPEST = 20
"""Braces within braces."""
_SUPER = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "0123456789+-n", strict=True))
_SUB = dict(zip("₀₁₂₃₄₅₆₇₈₉", "0123456789", strict=True))
_SIGNS = {
    "−": "-",
    "‒": "-",
    "–": "-",
    "—": "-",
    "×": r"\times ",
    "·": r"\cdot ",
    "⋅": r"\cdot ",
    "÷": "/",
    "∕": "/",
    "π": r"\pi ",
    "∞": r"\infty ",
    "≤": r"\le ",
    "≥": r"\ge ",
    "≠": r"\ne ",
    "≈": r"\approx ",
    "±": r"\pm ",
    "∪": r"\cup ",
    "∩": r"\cap ",
    "∖": r"\setminus ",
    "∈": r"\in ",
    "∅": r"\emptyset ",
    "ℝ": r"\mathbb{R}",
    "°": r"^\circ ",
    "º": r"^\circ ",
    "¢": r"\text{cent}",
    "€": r"\text{euro}",
    "£": r"\text{pound}",
    "¥": r"\text{yen}",
    "θ": r"\theta ",
    "α": r"\alpha ",
    "β": r"\beta ",
    "γ": r"\gamma ",
    "λ": r"\lambda ",
    "φ": r"\phi ",
    "…": r"\ldots ",
}

AND, OR = "\u2227", "\u2228"
"""Signs for the words: commas in a list of values, and more between inequalities."""
_FUNCTION_NAMES = "arcsin arccos arctan arccot sinh cosh tanh sin cos tan cot sec csc log ln lg exp"
FUNCTIONS = tuple(_FUNCTION_NAMES.split())
"""TeX's names of functions that can be evaluated; one that begins like another stands before it."""
# Without a backslash ``lg`` is a unit or two letters as often as a logarithm.
_NAMED = "|".join(name for name in FUNCTIONS if name != "lg")
# The order matters: a rule sees the result of those before it, such as ``\text`` in place of every font.
_LATEX = [
    (re.compile(pattern), put)
    for pattern, put in (
        # Layout that means nothing: code ticks, table lines, \\[2mm], \left, \displaystyle, \quad, colours, sizes.
        (r"`+|\\hline(?![a-zA-Z])|(?<=\\\\)\*?\s*\[-?[\d.]+\s*(?:mm|cm|pt|em|ex|in)\]|(?<=\\\\)\*", ""),
        (r"(?<=\d)\s*(?:\{,\}|,\s*\\!)\s*(?=\d{3}(?!\d))", ""),  # a comma that is marked as within a number
        (r"\\(?:left|right|middle|[bB]igg?[lrm]?)(?![a-zA-Z])\.?", ""),
        (r"(?:\\text\s*\{)?\s*\ball real numbers\b\s*\}?", r"\\reals "),
        (r"\\(?:displaystyle|textstyle|limits|bf|rm)(?![a-zA-Z])", ""),
        (r"(?<!\\)\\[,;:!]|\\(?:thinspace|hspace\{[^{}]*\})", ""),
        (r"\\(?:quad|qquad)(?![a-zA-Z])|~|(?<!\\)\\ ", " "),
        (r"\\(?:tiny|small|normalsize|large|Large|huge)(?![a-zA-Z])|\\color\s*\{\w+\}|\\textcolor\s*\{\w+\}", ""),
        (r"\\(?:underline|emph)\s*(?=\{)", ""),
        # One name for each command: \dfrac is \frac, \mathrm{e} is e, "\operatorname{sin}" is \sin, \textbf is \text.
        (r"\{([,:])\}", r"\1"),
        (r"\\[dtcs]frac(?![a-zA-Z])", r"\\frac"),
        (r"\\[dt]binom(?![a-zA-Z])", r"\\binom"),
        (r"\\(?:mathrm|operatorname|rm)\s*\{([ei])\}", r"\1"),
        (rf"\\(?:mathrm|operatorname|text)\s*\{{({_NAMED})\}}", r"\\\1 "),
        (r"\\(?:mathbf|boldsymbol|bm)\s*\{([a-z])\}", r"\\vec{\1}"),
        (r"\\(?:cdotp|bullet)(?![a-zA-Z])", r"\\cdot"),
        (r"\\(?:textbf|textrm|textit|textsf|texttt|textnormal|mathrm|mathbf|mathit|mathsf|mbox|operatorname\*?|bold)"
         r"\s*(?=\{)", r"\\text"),
        # One sign for each set, relation and bracket: \mathbb{R} is \reals, >= is \ge, \langle is (.
        (r"\\text\s*\{\s*R\s*\}|\\mathbb\s*\{\s*R\s*\}|\\mathbb\s+R|\\(?:R|Reals|reals)(?![a-zA-Z])", r"\\reals "),
        (r"\\leq(?:slant)?(?![a-zA-Z])|<=", r"\\le "),
        (r"\\geq(?:slant)?(?![a-zA-Z])|>=", r"\\ge "),
        (r"\\neq(?![a-zA-Z])|!=", r"\\ne "),
        (r"\\lt(?![a-zA-Z])", "<"),
        (r"\\gt(?![a-zA-Z])", ">"),
        (r"\\(?:simeq|sim|doteq)(?![a-zA-Z])", r"\\approx "),
        (r"\\colon", ":"),
        (r"\\(?:lbrace|\{)", r"\\{"),
        (r"\\(?:rbrace|\})", r"\\}"),
        (r"\\langle(?![a-zA-Z])", "("),
        (r"\\rangle(?![a-zA-Z])", ")"),
        (r"\\lbrack", "["),
        (r"\\rbrack", "]"),
        (r"\\l?vert(?![a-zA-Z])|\\rvert(?![a-zA-Z])|\\mid(?![a-zA-Z])", "|"),
        (r"\\(?:varnothing|oslash)(?![a-zA-Z])", r"\\emptyset"),
        # Plain words for mathematics: infinity, pi, sqrt(2), sin x, x^\prime.
        (r"\^\s*\{?\s*((?:\\prime\s*)+)\}?", lambda m: "'" * m[1].count("prime")),
        (r"\\infin(?![a-zA-Z])", r"\\infty"),
        (r"(?<![a-zA-Z\\])(?:infinity|inf|oo)(?![a-zA-Z])", r"\\infty "),
        (r"(?<![a-zA-Z\\])sqrt(?=\s*\()", r"\\sqrt"),
        (r"(?<![a-zA-Z\\])pi(?![a-zA-Z])", r"\\pi "),
        (rf"(?<![a-zA-Z\\])({_NAMED})(?=[\s\d(\\_])", r"\\\1 "),
        # Units and percent signs before ``$`` goes, since \$ is a dollar and $ nothing: 90^\circ, 50\%, 20^\circ C.
        (r"\^\s*\{?\s*\\circ\s*\}?|\\degrees?(?![a-zA-Z])", r"\\text{deg}"),
        (r"\\?%|\\text\s*\{\s*(?:\\?%|per\s?cent|pct)\s*\}|(?<=[\d$])\s*(?:per\s?cent(?:age)?|pct)(?![a-z])", "%"),
        (r"\\text\{deg\}\s*(?:\\text\s*\{\s*([CF])\s*\}|([CF])(?![a-zA-Z]))", r"\\text{deg\1\2}"),
        (r"\\(?:textdollar|\$)", r"\\text{dollar}"),
        (r"\\[()\[\]]|\$", ""),
        # Numbers and times of day in \text are numbers and times: \text{ 5 }, 3:30 PM.
        (r"\\text\s*\{([^{}]*)\}", lambda m: rf"\text{{{m[1].strip()}}}"),
        (r"\\text\{([-+\d., /]*\d[-+\d., /]*|\d+:\d\d[^{}]*)\}", r"\1"),
        (r"(?<=\d:\d\d)\s*([AaPp])\.?\s?[Mm]\b\.?", lambda m: rf"\text{{{m[1].lower()}m}}"),
        # "and" and "or" become signs, after \text is uniform and before commas are read as separators.
        (r"\\text\{,? ?and,?\}|(?<![a-zA-Z\\])and(?![a-zA-Z])|\\(?:land|wedge)(?![a-zA-Z])", f" {AND} "),
        (r"\\text\{,? ?or,?\}|(?<![a-zA-Z\\])or(?![a-zA-Z])|\\(?:lor|vee)(?![a-zA-Z])", f" {OR} "),
        (rf"[,;]\s*(?=[{AND}{OR}])|(?<=[{AND}{OR}])\s*,", " "),
        (r";", ", "),  # the space keeps 11;111 from being thousands
        # Roots, powers and indices get their braces: √2, sqrt(x), x**2, x^(n+1), x^-1, a_1.
        (r"√\s*(\d+|[a-zA-Z])", r"\\sqrt{\1}"),
        (r"(?:√|\\sqrt)\s*\(([^()]*)\)", r"\\sqrt{\1}"),
        (r"\*\*", "^"),
        (r"\^\s*\(([^()]*)\)", r"^{\1}"),
        (r"\^\s*(-\s*\d+|\d+)", r"^{\1}"),
        (r"_(\d)(?![\d}])", r"_{\1}"),
        # Spaces last: the rules above leave some.
        (r"\s+", " "),
        (r"(\\[a-zA-Z]+) (?![a-zA-Z])", r"\1"),
        (r",\s*,", ","),
    )
]  # fmt: skip


def plain(text: str) -> str:
    r"""Unicode's variants of digits, signs, superscripts and fractions as ASCII; what cannot be seen is dropped.

    ``x²`` is ``x^{2}`` and ``3½`` is ``3\frac{1}{2}``, where bare NFKC makes ``x2`` and ``31/2`` of them.
    """
    if text.isascii() and text.isprintable():
        return text
    text = re.sub(f"[{''.join(_SUPER)}]+", lambda m: "^{" + "".join(_SUPER[c] for c in m[0]) + "}", text)
    text = re.sub(f"[{''.join(_SUB)}]+", lambda m: "_{" + "".join(_SUB[c] for c in m[0]) + "}", text)
    return "".join(map(_plain_character, text))


def _plain_character(c: str) -> str:
    if c.isascii():
        return c if c.isprintable() or c in "\n\t" else ""
    if c in _SIGNS:
        return _SIGNS[c]
    kind = unicodedata.category(c)
    if kind == "Nd":
        return str(unicodedata.digit(c))
    if kind in ("Cf", "Cc", "Mn"):
        return ""
    wide = unicodedata.normalize("NFKC", c)
    if kind == "No" and "\u2044" in wide:
        top, _, bottom = wide.partition("\u2044")
        return rf"\frac{{{top}}}{{{bottom}}}"
    return "".join(_SIGNS.get(d, d) for d in wide)


_PLAIN = re.compile(r"-?[0-9]+(?:\.[0-9]+)?")
"""Numbers, which most answers are: nothing to clean."""


def clean(answer: str) -> str:
    r"""An extracted answer in one form: no ``$``, no spacing; ``\frac{a}{b}``, ``\sqrt{a}``, ``^{n}``."""
    if _PLAIN.fullmatch(answer):
        return answer
    text = re.sub(r"^\*\*|\*\*(?=\.?$)", "", plain(answer).strip()).strip()
    if re.fullmatch(r"\$\s?[\d,.]+", text):  # a price, not mathematics
        text = rf"\text{{dollar}}{text[1:]}"
    for pattern, put in _LATEX:
        text = pattern.sub(put, text)
    text = re.sub(r"(?<=[^.])\.$", "", text.strip()).strip(" ,:")
    while re.fullmatch(r"\{[^{}]*\}", text):
        text = text[1:-1].strip()
    return braced(text)


_TAKING = re.compile(r"\\(frac|binom|sqrt|vec|hat|bar|overline)(?![a-zA-Z])\s*")
_ARGUMENTS = {r"\frac": 2, r"\binom": 2, r"\sqrt": 1}
_OVER = re.compile(r"\\over(?![a-zA-Z])")
_BRACE = re.compile(r"\\[{}\\]|[{}]")


def braced(text: str, depth: int = 0) -> str:
    r"""Every argument in braces, as TeX takes it: ``\frac1{2}\pi``, ``\sqrt[3]2`` and ``{1\over 2}`` among others."""
    if depth > _DEEPEST:
        raise Unparsed("is nested too deeply")
    while match := _OVER.search(text):
        start, end = _around(text, match.start())
        top, bottom = text[start : match.start()].strip(), text[match.end() : end].strip()
        if start and end < len(text) and not re.search(r"[\^_}\]a-zA-Z]\s*$", text[: start - 1]):
            start, end = start - 1, end + 1  # these braces held the fraction alone, and no argument
        text = rf"{text[:start]}\frac{{{top}}}{{{bottom}}}{text[end:]}"
    made, at = [], 0
    while match := _TAKING.search(text, at):
        made.append(text[at : match.start()] + rf"\{match[1]}")
        at = match.end()
        if match[1] == "sqrt" and text.startswith("[", at) and (close := text.find("]", at)) > 0:
            made.append(text[at : close + 1])
            at = close + 1
        for _ in range(_ARGUMENTS.get(rf"\{match[1]}", 1)):
            argument, at = _argument(text, at, depth)
            made.append(argument)
    return "".join(made) + text[at:]


def _argument(text: str, at: int, depth: int) -> tuple[str, int]:
    """One argument, in braces, and where it ends."""
    while text.startswith(" ", at):
        at += 1
    if text.startswith("{", at):
        end = closing(text, at)
        if end is None:
            return text[at:], len(text)
        return "{" + braced(text[at + 1 : end - 1], depth + 1) + "}", end
    match = re.compile(r"\\[a-zA-Z]+|[^\\]").match(text, at)
    if match is None:
        return "", at
    if match[0] in _ARGUMENTS:  # \frac\sqrt2 2 is no TeX, but meant so
        made, end = match[0], match.end()
        for _ in range(_ARGUMENTS[match[0]]):
            inner, end = _argument(text, end, depth)
            made += inner
        return "{" + made + "}", end
    return "{" + match[0] + "}", match.end()


def closing(text: str, at: int, limit: int | None = None) -> int | None:
    r"""Return the place after the brace that closes the one at ``at``; None where none does. ``\{`` counts as no brace.

    limit: characters to look at. A model's answer may be a megabyte of open braces.
    """
    depth = 0
    end = len(text) if limit is None else at + limit
    for match in _BRACE.finditer(text, at, end):
        depth += {"{": 1, "}": -1}.get(match[0], 0)
        if depth == 0:
            return match.end()
    return None


def _around(text: str, at: int) -> tuple[int, int]:
    """The inside of the braces around a place, or all."""
    depth, start = 0, at
    while start > 0 and depth >= 0:
        start -= 1
        depth += {"}": 1, "{": -1}.get(text[start], 0)
    start = start + 1 if depth < 0 else 0
    end, depth = at, 0
    while end < len(text):
        depth += {"{": 1, "}": -1}.get(text[end], 0)
        if depth < 0:
            break
        end += 1
    return start, end
