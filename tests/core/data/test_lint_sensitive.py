"""Personal data and secrets: what is some, by published samples and check digits, and what only looks like it."""

from __future__ import annotations

import json
import string
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from align.core.data.lint.linter import lint
from align.core.data.lint.sensitive import personal, secrets, shapes
from tests.core.lint_rows import completion

MIXED = (string.ascii_letters + string.digits) * 3
"""Not one of them is a key; each is put together here, so that no scanner takes this file for a leak."""


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("Write to jane.doe+x@mail.corp.org.", "e-mail address"),
        ("IBAN DE89 3704 0044 0532 0130 00", "IBAN"),  # the registry's example of Germany
        ("GB29NWBK60161331926819", "IBAN"),  # and of the United Kingdom
        ("4111 1111 1111 1111", "card number"),  # issuers' test numbers
        ("5500-0055-5555-5559", "card number"),
        ("378282246310005", "card number"),
        ("Call +49 30 901820 or come.", "phone number"),
        ("(212) 736-5000", "phone number"),
        ("SSN 536-90-4399", "US social security number"),  # python-stdnum's samples
        ("DNI 54362315-K", "Spanish DNI or NIE"),
        ("RCCMNL83S18D969H", "Italian codice fiscale"),
        ("390.533.447-05", "Brazilian CPF"),
        ("360426199101010071", "Chinese resident number"),
        ("2 95 10 99 126 111 93", "French NIR"),
        ("880320-0016", "Swedish personnummer"),
        ("Steuer-ID: 36 574 261 809", "German tax number"),
        ("NHS number 943 476 5870", "NHS number"),
        ("MRN: 00482913", "medical record number"),
        ("Patient ID AB-123456", "medical record number"),
    ],
)
def test_personal_data_is_told_by_kind(text: str, kind: str) -> None:
    assert kind in personal(text)
    assert personal(f"{'Some words before. ' * 30}\n{text}\n{'and some behind ' * 30}") == personal(text)


@pytest.mark.parametrize(
    "text",
    [
        "jane@example.com, joe@mail.example.org, x@host.test, a@localhost",
        "DE88 3704 0044 0532 0130 00",  # check digits off by one
        "4111 1111 1111 1112",
        "536-00-4399 and 000-12-3456",  # never issued
        "390.533.447-06",
        "Version 1.2.3-4567, on 2024-11-26 at 12:30:45, 1,234,567.89 dollars",
        "ISBN 978-3-16-148410-0, DOI 10.1000/182, RFC 2606, port 8080, 192.168.100.200",
        "(212) 555-0123 is a number for films",
        "12345678901 and 36 574 261 809 without a word for what they are",
        "pi is 3.14159265358979323846264338327950288",
        "@dataclass and user@host",
        "In room 204 there are 17 of 25 people; 58 + 6 = 64.",
    ],
)
def test_what_only_looks_like_personal_data_is_none(text: str) -> None:
    assert personal(text) == set()


SECRETS: dict[str, str] = {
    "private key": "-----BEGIN RSA " + "PRIVATE KEY-----\nMIIE",
    "AWS access key": "AKI" + "A" + "QRSTUVWX23456723",
    "GitHub token": "gh" + "p_" + MIXED[:36],
    "GitLab token": "glp" + "at-" + MIXED[:20],
    "Anthropic key": "sk-a" + "nt-api03-" + MIXED[:95],
    "OpenAI key": "sk-" + "proj-" + MIXED[:40] + "T3Blbk" + "FJ" + MIXED[5:45],
    "Hugging Face token": "h" + "f_" + MIXED[:34],
    "Google API key": "AI" + "za" + MIXED[:35],
    "Slack token": "xo" + "xb-123456789012-123456789012-" + MIXED[:24],
    "Stripe key": "sk_" + "live_" + MIXED[:24],
    "SendGrid key": "S" + "G." + MIXED[:22] + "." + MIXED[:43],
    "npm token": "np" + "m_" + MIXED[:36],
    "PyPI token": "py" + "pi-AgE" + MIXED[:60],
    "Telegram bot token": "123456789:" + "AA" + MIXED[:33],
    "JSON web token": "ey" + "J" + MIXED[:20] + ".ey" + "J" + MIXED[:30] + "." + MIXED[:40],
    "password in a URL": "postgres://" + "admin:hunter2" + "@db.corp.org/x",
}


@pytest.mark.parametrize("shape", [shape.name for shape in shapes("secrets")])
def test_secrets_are_told_by_kind(shape: str) -> None:
    assert secrets(f"key = '{SECRETS[shape]}'") == {shape}


@pytest.mark.parametrize(
    "text",
    [
        "AKI" + "AXXXXXXXXXXXXXXXX",
        "gh" + "p_" + "x" * 36,
        "sk-a" + "nt-... and h" + "f_xxx",
        "https://user@host.org and https://host:8080/a@b, postgres://USER:$PASSWORD@host.org/db",
        "-----BEGIN PUBLIC KEY-----",
        "sha256 " + "0123456789abcdef" * 4,
        "A rest_live_show is on.",
    ],
)
def test_placeholders_are_no_secrets(text: str) -> None:
    assert secrets(text) == set()


def test_what_was_found_is_counted_and_never_shown() -> None:
    rows = [
        completion(0, answer=f"Mail jane.doe@corp.org, {SECRETS['GitHub token']}"),
        completion(1, answer="a@b.org c@d.org"),
    ]
    found = {one.id: one for one in lint(rows)}
    assert found["pii"].detail["kinds"] == {"e-mail address": 2}, "rows, not addresses"
    assert found["secrets"].detail["kinds"] == {"GitHub token": 1}
    said = json.dumps([one.dump() for one in found.values()])
    assert "jane" not in said and MIXED[:20] not in said


@given(st.text(st.sampled_from("0123456789 +-().@aAbEKMZ-_sk"), max_size=200))
def test_no_arrangement_of_signs_breaks_it(text: Any) -> None:
    assert personal(text) <= {shape.name for shape in shapes("personal")} | {"e-mail address", "phone number"}
    assert secrets(text) <= set(SECRETS)
