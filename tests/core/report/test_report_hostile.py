"""The report shows hostile text as text, and lets no page do anything."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

import pytest

from align.schemas.errors import AlignError
from align.schemas.text import visible
from tests.core.reports import Shape, measures, page_of, write_run

PAYLOADS = [
    "<script>alert(1)</script>",
    "</title><script>alert(1)</script>",
    "</style><script>alert(1)</script>",
    "</textarea></noscript></template><script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "'><svg onload=alert(1)>",
    '" onmouseover="alert(1)',
    "' onfocus='alert(1)' autofocus='",
    "` onmouseover=alert(1) `",
    "<svg><animate onbegin=alert(1) attributeName=x dur=1s>",
    "<svg><style>@import 'http://evil.example/x.css'</style>",
    "<a href=javascript:alert(1)>x</a>",
    "<iframe srcdoc='<script>alert(1)</script>'>",
    "<math><mtext></form><form><mglyph><style></math><img src onerror=alert(1)>",
    "<link rel=stylesheet href=http://evil.example>",
    "<meta http-equiv=refresh content='0;url=http://evil.example'>",
    "<base href=http://evil.example/>",
    "<object data=data:text/html,x>",
    "<form action=http://evil.example><button>go</button></form>",
    "--><script>alert(1)</script><!--",
    "]]><script>alert(1)</script><![CDATA[",
    "&lt;script&gt;alert(1)&lt;/script&gt;",
    "&#60;script&#62;",
    "<\x00script>alert(1)</script>",
    "<scr\u200bipt>",
    "{{ 7 * 7 }}{% raw %}",
    "${7*7}<%= 7*7 %>",
    "\ud83d<script>lone surrogate</script>",
    "\u202egnp.exe\u2066<b>",
    "\x1b[2J\x1b]0;title\x07<i>",
    "\u2028<u>\u2029",
    "[red]markup[/red]</dd></dl></article></section></body></html>",
]


@pytest.mark.parametrize("payload", PAYLOADS, ids=range(len(PAYLOADS)))
def test_hostile_text_in_every_field_stays_text(payload: str, tmp_path: Path) -> None:
    plain = Shape(page_of(write_run(tmp_path / "plain"), "plain", **measures()))
    hostile = Shape(page_of(write_run(tmp_path / "hostile", payload), payload, **measures(payload)))
    assert hostile.tags == plain.tags
    assert hostile.ends == plain.ends
    assert hostile.declarations == plain.declarations == []
    for name in ("href", "src", "http-equiv", "content", "class", "id"):
        assert hostile.values.get(name) == plain.values.get(name)
    shown = "".join(hostile.text)
    assert shown.count(visible(payload)) >= 15  # and it is shown as it is
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u2028\u2029\u200b]", shown)


def test_a_stage_that_is_no_directory_of_the_run_is_refused(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    file = run / "run.yaml"
    file.write_text(file.read_text().replace("name: sft", "name: ../elsewhere"))
    with pytest.raises(AlignError, match=r"a stage named '\.\./elsewhere'"):
        page_of(run)


def test_the_page_forbids_and_fetches_nothing(tmp_path: Path) -> None:
    page = page_of(write_run(tmp_path / "run"), **measures())
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    style = re.search(r"<style>(.*)</style>", page, re.DOTALL)
    script = re.search(r"<script>(.*)</script>", page, re.DOTALL)
    assert policy and style and script
    styles, scripts = (
        "sha256-" + base64.b64encode(hashlib.sha256(found[1].encode()).digest()).decode() for found in (style, script)
    )
    allowed = f"default-src 'none'; style-src '{styles}'; script-src '{scripts}'; img-src data:; base-uri 'none'; "
    assert policy[1] == allowed + "form-action 'none'"
    shape = Shape(page)
    assert {tag for tag, _ in shape.tags}.isdisjoint({"img", "iframe", "object", "embed", "base"})
    assert [tag for tag, _ in shape.tags].count("script") == 4  # three of data, and ours
    assert not [name for name in shape.values if name.startswith("on") or name in ("src", "style", "srcset", "action")]
    links = set(shape.values["href"])
    assert "data:," in links and all(link.startswith("#") for link in links - {"data:,"})
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|url\(|@import|\beval\(|innerHTML", page)


def test_unseen_characters_are_seen() -> None:
    assert visible("a\x1b[31m\u202eb\r\nc\td\r") == "a⟨U+001B⟩[31m⟨U+202E⟩b\nc\td⟨U+000D⟩"
    assert visible("\ud800\ufeff\U000e0041") == "⟨U+D800⟩⟨U+FEFF⟩⟨U+E0041⟩"
    assert visible("שלום 👩‍🔬 نمی‌خواهم") == "שלום 👩‍🔬 نمی‌خواهم"
