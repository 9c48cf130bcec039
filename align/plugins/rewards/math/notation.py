"""One answer, many notations: Unicode and LaTeX variants to one plain form."""

from __future__ import annotations

import re
import unicodedata

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

_LATEX = [
    (re.compile(pattern), put)
    for pattern, put in (
        (r"\\(?:left|right|[bB]igg?[lr]?)(?![a-zA-Z])\.?", ""),
        (r"\\(?:displaystyle|textstyle|limits|bf|rm)(?![a-zA-Z])", ""),
        (r"(?<!\\)\\[,;:!]|\\(?:thinspace|hspace\{[^{}]*\})", ""),
        (r"\\(?:quad|qquad)(?![a-zA-Z])|~|(?<!\\)\\ ", " "),
        (r"\\(?:tiny|small|normalsize|large|Large|huge)(?![a-zA-Z])|\\color\s*\{\w+\}|\\textcolor\s*\{\w+\}", ""),
        (r"\\(?:underline|emph)\s*(?=\{)", ""),
        (r"\{,\}", ","),
        (r"\\[dtc]frac(?![a-zA-Z])", r"\\frac"),
        (r"\\(?:textbf|textrm|textit|textsf|texttt|textnormal|mathrm|mathbf|mathit|mathsf|mbox|operatorname\*?|bold)"
         r"\s*(?=\{)", r"\\text"),
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
        (r"\\(?:varnothing)(?![a-zA-Z])", r"\\emptyset"),
        (r"\\infin(?![a-zA-Z])", r"\\infty"),
        (r"(?<![a-zA-Z\\])(?:infinity|inf|oo)(?![a-zA-Z])", r"\\infty "),
        (r"(?<![a-zA-Z\\])sqrt(?=\s*\()", r"\\sqrt"),
        (r"(?<![a-zA-Z\\])pi(?![a-zA-Z])", r"\\pi "),
        (r"(?<![a-zA-Z\\])(arcsin|arccos|arctan|sin|cos|tan|cot|sec|csc|log|ln|exp)(?=[\s\d(\\])", r"\\\1 "),
        (r"\^\s*\{?\s*\\circ\s*\}?|\\degrees?(?![a-zA-Z])", r"\\text{deg}"),
        (r"\\(?:%|text\s*\{\s*(?:\\?%|percent)\s*\})|\\?%|(?<=\d)\s*per\s?cent(?![a-z])", "%"),
        (r"\\(?:textdollar|\$)", r"\\text{dollar}"),
        (r"\\[()\[\]]|\$", ""),
        (r"\\text\s*\{([^{}]*)\}", lambda m: rf"\text{{{m[1].strip()}}}"),
        (r"\\text\{([-+\d., /]*\d[-+\d., /]*)\}", r"\1"),
        (r"\\text\{(?:and|or),?\}|(?<![a-zA-Z])(?:and|or)(?![a-zA-Z])|;", ","),
        (r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}"),
        (r"\\frac\s*(\d)\s*\{", r"\\frac{\1}{"),
        (r"(\\frac\s*\{[^{}]*\})\s*([0-9a-zA-Z])", r"\1{\2}"),
        (r"\\frac\s+([a-zA-Z])\s*([a-zA-Z])(?![a-zA-Z])", r"\\frac{\1}{\2}"),
        (r"\\sqrt\s*([0-9a-zA-Z])", r"\\sqrt{\1}"),
        (r"√\s*(\d+|[a-zA-Z])", r"\\sqrt{\1}"),
        (r"(?:√|\\sqrt)\s*\(([^()]*)\)", r"\\sqrt{\1}"),
        (r"\*\*", "^"),
        (r"\^\s*\(([^()]*)\)", r"^{\1}"),
        (r"\^\s*(-\s*\d+|\d+)", r"^{\1}"),
        (r"_(\d)(?![\d}])", r"_{\1}"),
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


def clean(answer: str) -> str:
    r"""An extracted answer in one form: no ``$``, no spacing; ``\frac{a}{b}``, ``\sqrt{a}``, ``^{n}``."""
    text = re.sub(r"^\*\*|\*\*(?=\.?$)", "", plain(answer).strip()).strip()
    if re.fullmatch(r"\$\s?[\d,.]+", text):  # a price, not mathematics
        text = rf"\text{{dollar}}{text[1:]}"
    for pattern, put in _LATEX:
        text = pattern.sub(put, text)
    text = re.sub(r"(?<=[^.])\.$", "", text.strip()).strip(" ,:")
    while re.fullmatch(r"\{[^{}]*\}", text):
        text = text[1:-1].strip()
    return text
