"""Facts of English sentences, against facts written down before the lexicon was tried on them."""

from pathlib import Path

import pytest
import yaml

from align.advisor.text import read

SENTENCES = yaml.safe_load((Path(__file__).parent / "cases/sentences_en.yaml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("case", SENTENCES["says"], ids=lambda case: f"{case[1]}: {case[0]}")
def test_says(case: list[object]) -> None:
    text, field, value, status = [*case, "asserted"][:4]
    said = [(e.field, e.value, e.status) for e in read(str(text)).evidence]
    assert (field, value, status) in said or (value is False and (field, True, "negated") in said)


@pytest.mark.parametrize(("text", "field"), SENTENCES["says_not"])
def test_says_not(text: str, field: str) -> None:
    assert field not in [e.field for e in read(text).evidence]
