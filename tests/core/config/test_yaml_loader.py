"""YAML 1.2's core schema, lines, and what is refused."""

from __future__ import annotations

import math

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from align.core.config.yaml_loader import read, write
from align.schemas.errors import AlignError

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(plain)
def test_what_is_written_reads_back_unchanged(values: object) -> None:
    document = read(write(values), "f")
    assert document.problems == []
    assert document.values == values
    assert type(document.values) is type(values)


@given(st.lists(st.text("ab:-#|>'\"%{[&*!? \t\x85\u2028é", max_size=6), max_size=6).map("\n".join))
def test_lines_are_written_as_they_are_and_read_back(text: str) -> None:
    assert read(write({"key": [text, text + "\n"]}), "f").values == {"key": [text, text + "\n"]}
    assert yaml.safe_load(write({"key": text + "\n"})) == {"key": text + "\n"}


def test_a_paragraph_stands_as_a_block() -> None:
    assert write({"about": "Two lines:\n\n- of text\n"}) == "about: |\n  Two lines:\n\n  - of text\n"


@given(st.text() | st.floats(allow_nan=False, allow_infinity=False))
def test_what_is_written_is_the_same_to_a_yaml_1_1_reader(value: object) -> None:
    assert yaml.safe_load(write({"key": value})) == {"key": value}


@given(st.text(alphabet="ab:-[]{}&*!|>'\"#%@,?\n\t 01.e~\\\0\x85", max_size=40))
def test_no_text_ends_in_anything_but_values_or_an_align_error(text: str) -> None:
    try:
        read(text, "f")
    except AlignError as error:
        assert error.problems[0].where.startswith("f")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("5e-7", 5e-7),
        ("1E3", 1000.0),
        (".5", 0.5),
        ("1.", 1.0),
        ("-3", -3),
        ("010", 10),
        ("0x1F", 31),
        ("0o17", 15),
        ("1_000", "1_000"),
        ("1:30", "1:30"),
        ("no", "no"),
        ("on", "on"),
        ("TRUE", True),
        ("false", False),
        ("~", None),
        ("", None),
        ("null", None),
        ("2001-01-01", "2001-01-01"),
        ("'1'", "1"),
        ('"true"', "true"),
        ("!!str 1", "1"),
        ("1e", "1e"),
        (".", "."),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text: str, value: object) -> None:
    got = read(f"a: {text}", "f").values["a"]
    assert got == value and type(got) is type(value)


def test_every_value_has_its_line() -> None:
    document = read("a: 1\nb:\n  c: [2,\n    3]\n  d:\n  - e: 4\n", "f")
    assert document.values == {"a": 1, "b": {"c": [2, 3], "d": [{"e": 4}]}}
    assert document.lines == {
        (): 1, ("a",): 1, ("b",): 2, ("b", "c"): 3, ("b", "c", 0): 3, ("b", "c", 1): 4,
        ("b", "d"): 5, ("b", "d", 0): 6, ("b", "d", 0, "e"): 6,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nb: 2\na: 3", "f line 1: a\n    stands a second time on line 3"),
        ("a:\n  b: .nan", "f line 2: a.b\n    is .nan; must be a finite number"),
        ("a: -.inf", "f line 1: a\n    is -.inf; must be a finite number"),
        ("a: 1e999", "f line 1: a\n    is 1e999; must be a finite number"),
        ("a: " + "9" * 5000, "f line 1: a\n    is 99999999999999999999; must be a finite number"),
        ("a: !!python/object/apply:os.system [ls]", "f line 1: a\n    has the tag"),
        ("a: !mine {b: 1}", "f line 1: a\n    has the tag '!mine'"),
        ("? [a]\n: 1", "f line 1\n    has a list or mapping for a key on line 1"),
        ('a: "\\ud800"', "f line 1: a\n    holds half a surrogate pair"),
    ],
)
def test_single_values_are_refused_and_the_rest_read_on(text: str, said: str) -> None:
    document = read(text + "\nlast: 1", "f")
    assert [str(problem).startswith(said) for problem in document.problems] == [True]
    assert document.values["last"] == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\n\tb: 2", "f line 2\n    is not YAML"),
        ("a:\n\t- b", "indent with spaces"),
        ("a: [1, 2", "f line 1\n    is not YAML"),
        ("a: b: c", "f line 1\n    is not YAML"),
        ("a: *x", "f line 1\n    is not YAML: found undefined alias"),
        ("a: 1\n---\nb: 2", "f line 2\n    is not YAML"),
        ("a: 1\nb: \0", "f line 2\n    holds the character U+0000"),
        ("a: " + "[" * 100_000, "f line 1\n    is not YAML: nested deeper than 32"),
        ("- " * 100_000, "nested deeper than 32"),
        ("a: &a [1, *a]", "its aliases (*name) written out"),
    ],
)
def test_what_cannot_be_told_is_refused_whole(text: str, said: str) -> None:
    with pytest.raises(AlignError) as raised:
        read(text, "f")
    assert said in str(raised.value)


def test_a_billion_laughs_are_refused_and_a_shared_value_is_not() -> None:
    laughs = "a0: &a0 ha\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10))
    with pytest.raises(AlignError, match="written out"):
        read(laughs, "f")
    assert read("a: &x {b: 1}\nc: *x", "f").values == {"a": {"b": 1}, "c": {"b": 1}}


def test_a_number_keeps_every_bit() -> None:
    assert read(write(math.pi), "f").values == math.pi
