"""Numbers, in digits and in words: forms by hand, and laws against spellers of our own."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from align.advisor.text import parse

FORMS = [
    ("3B tokens", 3e9), ("1.8e9", 1.8e9), ("10^9", 1e9), ("10⁹", 1e9), ("2.5x10^9", 2.5e9), ("5.1 billion", 5.1e9),
    ("5,1 Mrd. Tokens", 5.1e9), ("50 Mio.", 50e6), ("thirty billion tokens", 30e9), ("Half a billion", 0.5e9),
    ("nearly 1B", 1e9), ("2,500 rows", 2500), ("52.000", 52000), ("1.234.567", 1234567), ("12 000 parcels", 12000),
    ("12\u202f000", 12000), ("27'540", 27540), ("939,344", 939344), ("~9k", 9000),
    ("7.5k", 7500),
    ("two dozen", 24), ("about two hundred", 200), ("a thousand", 1000), ("two hundred and fifty", 250),
    ("Sixty-four H100s", 64), ("60k + 11k", 71000), ("10 lakh", 1e6), ("Mistral-7B", 7e9), ("four million", 4e6),
    ("1,200.5", 1200.5), ("1.200,5", 1200.5), ("zwei Dutzend", 24), ("dreiundzwanzig", 23),
    ("zweihundertfünfzig", 250),
    ("fünftausend", 5000), ("eine halbe Million", 5e5), ("2,3 Millionen", 2.3e6), ("medio millón", 5e5),
    ("1.200 millones", 1.2e9), ("六万条", 60000), ("3万条", 30000),
    ("20亿 token", 2e9), ("1.2万份", 12000), ("两张卡", 2), ("二十三条", 23), ("三千五百", 3500),
]  # fmt: skip
SHARES = [
    ("81%", 0.81), ("81 percent", 0.81), ("58 %", 0.58), ("one in eight", 0.125), ("9 out of 10", 0.9),
    ("61 of 100", 0.61),
    ("64 von 100", 0.64), ("四成", 0.4), ("百分之九十五", 0.95), ("95,3 Prozent", 0.953),
]  # fmt: skip
VAGUE = [
    ("several thousand", 3000, 9000), ("a handful", 3, 7), ("a few hundred thousand", 200e3, 900e3),
    ("200-300", 200, 300),
    ("2 to 3 million", 2e6, 3e6), ("hundreds of thousands", 200e3, 900e3), ("几千条", 2000, 9000), ("2–3k", 2000, 3000),
]  # fmt: skip
NONE = [
    "llama-2", "recall@5", "ratio 3:1", "24/7", "2024-05-01", "v4.3.2", "10:30", "§3", "#12", "GPT-4", "A100", "on 3rd",
    "第二", "一般", "phone 0800",
]  # fmt: skip


@pytest.mark.parametrize(("quote", "value"), FORMS)
def test_a_form_has_its_value(quote: str, value: float) -> None:
    number = parse(quote)
    assert number is not None
    assert number.value == pytest.approx(value)
    assert not number.vague and not number.share


@pytest.mark.parametrize(("quote", "value"), SHARES)
def test_shares_are_between_0_and_1(quote: str, value: float) -> None:
    number = parse(quote)
    assert number is not None
    assert (number.value, number.share) == (pytest.approx(value), True)


@pytest.mark.parametrize(("quote", "low", "high"), VAGUE)
def test_a_guess_is_a_guess_and_bounded(quote: str, low: float, high: float) -> None:
    number = parse(quote)
    assert number is not None and number.vague
    assert (number.low, number.high) == (pytest.approx(low), pytest.approx(high))
    assert low <= number.value <= high


@pytest.mark.parametrize("text", NONE)
def test_names_dates_and_ratios_are_no_numbers(text: str) -> None:
    assert parse(text) is None


@pytest.mark.parametrize(
    ("quote", "value"), [("38 mil filas", 38000), ("tres mil quinientos", 3500), ("treinta y dos", 32)]
)
def test_words_of_two_languages_are_read_in_the_first(quote: str, value: float) -> None:
    number = parse(quote, ("es", "en"))
    assert number is not None and number.value == value


def test_the_language_decides_what_a_point_is() -> None:
    english, german = parse("1.250", ("en",)), parse("1.250", ("de",))
    assert english is not None and german is not None
    assert (english.value, german.value) == (1.25, 1250)


ONES = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen"]
ONES += ["fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"]
TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]


def english(n: int) -> str:
    for scale, name in ((1_000_000, "million"), (1000, "thousand"), (100, "hundred")):
        if n >= scale:
            rest = n % scale
            return f"{english(n // scale)} {name}" + (f" {english(rest)}" if rest else "")
    if n < 20:
        return ONES[n - 1]
    return TENS[n // 10 - 2] + (f"-{ONES[n % 10 - 1]}" if n % 10 else "")


def chinese(n: int) -> str:
    for scale, name in ((100_000_000, "亿"), (10_000, "万"), (1000, "千"), (100, "百"), (10, "十")):
        if n >= scale:
            rest = n % scale
            gap = "零" if 0 < rest < scale // 10 else ""
            return chinese(n // scale) + name + gap + (chinese(rest) if rest else "")
    return "零一二三四五六七八九"[n]


@given(st.integers(1, 999_999_999))
def test_english_words_are_read_as_they_are_spelt(n: int) -> None:
    number = parse(english(n) + " rows", ("en",))
    assert number is not None and number.value == n


@given(st.integers(10, 999_999_999))
def test_chinese_words_are_read_as_they_are_spelt(n: int) -> None:
    number = parse(chinese(n) + "条", ("zh",))
    assert number is not None and number.value == n


@given(st.integers(1, 999))
def test_units_are_neutral(n: int) -> None:
    said = [f"{n}k", f"{n} thousand", f"{n},000", f"{n} 000", f"{n}000", f"{n}e3", f"{n}.000"]
    assert {number.value for quote in said if (number := parse(quote)) is not None} == {n * 1000}


@given(st.floats(0.1, 999, allow_nan=False).map(lambda x: round(x, 1)))
def test_decimal_commas_and_points_say_the_same(x: float) -> None:
    point, comma = parse(f"{x} billion", ("en",)), parse(f"{str(x).replace('.', ',')} Milliarden", ("de",))
    assert point is not None and comma is not None
    assert point.value == comma.value == pytest.approx(x * 1e9)
