"""One rendering and one encoding a row: how many there are, and that they show what several would.

The reference renders the conversation up to each turn by itself, as the manual defines what is scored.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import trl
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from align.core.data import batched_rendering, chat_template, template_sandbox
from align.core.data.datasets import make_all, make_examples
from align.core.data.encode import Encoder
from align.core.data.template_analysis import TemplateForm, analyse
from align.core.data.template_sandbox import RenderJob
from align.schemas.records import Message, Record
from tests.core import families
from tests.core.families import assistant, tokenizer, user
from tests.core.families import settings as tokenization

CHAT = [user("Is the sea wide?"), assistant("Yes, it is."), user("And cold?"), assistant("Not always.")]
TEMPLATES = {
    path.stem: path.read_text(encoding="utf-8")
    for path in (Path(trl.__file__).parent / "chat_templates").glob("*.jinja")
}
TEMPLATES |= {
    name: getattr(families, name)
    for name in ("CHATML", "CHATML_MARKED", "DEFAULT_SYSTEM", "COUNTING", "THINKING", "LLAMA3", "MISTRAL", "GEMMA")
}
PROVED = {name: source for name, source in TEMPLATES.items() if analyse(source).loop is not None}


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """The number of renderings and of texts encoded."""
    count = {"rendered": 0, "encoded": 0}
    render, find_spans, encode = template_sandbox.render, Encoder.find_spans, Encoder.encode

    def rendering(source: str, jobs: Sequence[RenderJob], seconds: float, characters: int) -> Any:
        count["rendered"] += len(jobs)
        return render(source, jobs, seconds, characters)

    def finding(self: Encoder, *given: Any) -> Any:
        count["encoded"] += 1
        return find_spans(self, *given)

    def encoding(self: Encoder, *given: Any, **named: Any) -> Any:
        count["encoded"] += 1
        return encode(self, *given, **named)

    monkeypatch.setattr(template_sandbox, "render", rendering)
    monkeypatch.setattr(Encoder, "find_spans", finding)
    monkeypatch.setattr(Encoder, "encode", encoding)
    return count


def chats(number: int) -> list[Record]:
    turns = [[user(f"Question {i} of many?"), assistant(f"The answer to that is {i}.")] for i in range(number)]
    return [Record("text", f"f:{i}", text=[*CHAT, *turn]) for i, turn in enumerate(turns, 1)]


ONCE = (
    "CHATML",
    "CHATML_MARKED",
    "LLAMA3",
    "GEMMA",
    "qwen2_5",
    "llama3_1",
    "phi3",
    "qwen2_5_training",
    "llama3_training",
)


TURNS = ("<|im_start|>", "<|im_end|>", "<start_of_turn>", "<end_of_turn>", "<|user|>", "<|assistant|>", "<|end|>")


@pytest.mark.parametrize("name", ONCE)
def test_a_conversation_is_rendered_once_and_encoded_once(name: str, counted: dict[str, int]) -> None:
    """Once for all rows come the generation prompt of the template, and the tokens of the header of an answer."""
    encoder = Encoder(tokenizer(TEMPLATES[name], special=(*families.LLAMA3_SPECIAL, *TURNS)))
    rows = chats(20)
    made = make_all(rows, encoder, tokenization())
    assert all(examples for examples, _ in made)
    probes = 0 if encoder.tails.get(TEMPLATES[name]) is None else 1
    assert counted["rendered"] == len(rows) + probes
    assert len(rows) <= counted["encoded"] <= len(rows) + 2
    counted.update(rendered=0, encoded=0)
    make_all(rows, encoder, tokenization())
    assert counted == {"rendered": len(rows), "encoded": len(rows)}


@pytest.mark.parametrize("kind", ["completion", "preference", "prompt"])
def test_other_kinds_of_rows_are_rendered_once_for_each_sequence(kind: Any, counted: dict[str, int]) -> None:
    encoder = Encoder(tokenizer(families.CHATML))
    fields: dict[str, Any] = {
        "completion": {"completion": CHAT[3:]},
        "preference": {"chosen": CHAT[3:], "rejected": [assistant("Seldom.")]},
        "prompt": {},
    }[kind]
    rows = [Record(kind, f"f:{i}", prompt=[user(f"Question {i}?"), *CHAT[1:3]], **fields) for i in range(1, 9)]
    settled = tokenization(learns_from=(kind,))
    make_all(rows, encoder, settled)
    counted.update(rendered=0, encoded=0)
    make_all(rows, encoder, settled)
    sequences = len(rows) * (2 if kind == "preference" else 1)
    assert counted == {"rendered": sequences, "encoded": sequences}


def test_texts_are_encoded_once_and_not_rendered(counted: dict[str, int]) -> None:
    rows = [Record("text", f"f:{i}", text=f"Text {i}.") for i in range(1, 9)]
    make_all(rows, Encoder(tokenizer(families.CHATML)), tokenization())
    assert counted == {"rendered": 0, "encoded": len(rows)}


def test_what_a_row_may_cost_more(counted: dict[str, int]) -> None:
    """Two renderings a turn where the template looks ahead, and one more that proves what might be lost.

    One encoding more for each turn whose header is no special token's: then it follows from the whole text before it.
    """
    looks_ahead = Encoder(tokenizer(families.THINKING))
    make_all([Record("text", "f:1", text=CHAT)], looks_ahead, tokenization())
    assert counted["rendered"] == 1 + 2 * 2
    counted.update(rendered=0)
    in_the_template = [user("user"), assistant("Yes, it is.")]  # the template might have written this word itself
    encoder = Encoder(tokenizer(families.CHATML + "{# user #}"))
    make_all([Record("text", "f:1", text=in_the_template)], encoder, tokenization())
    assert counted["rendered"] == 1 + 1 + 1
    counted.update(encoded=0)
    header_in_words = Encoder(tokenizer(families.CHATML.replace("<|im_start|>", "### ")))
    make_all(
        [Record("text", "f:1", text=[user("word " * 60), assistant("Yes, it is.")])], header_in_words, tokenization()
    )
    assert counted["encoded"] == 1 + 1


# One rendering shows what the renderings of all its beginnings would.

words = st.sampled_from(
    ["a b", " x ", "\n", "né", "\u0301e", "😀👩‍👧", "<think>", "</think>\n", "<|im_end|>", "{{ 1 }}", "user", "1"]
)
texts = st.lists(words, min_size=1, max_size=4).map("".join).filter(lambda text: bool(text.strip()))


@st.composite
def conversations(draw: st.DrawFn) -> list[Message]:
    """Conversations of some turns, now and then with a system message, or with roles out of turn."""
    found: list[Message] = []
    if draw(st.booleans()):
        found.append({"role": draw(st.sampled_from(["system", "developer"])), "content": draw(texts)})
    for _ in range(draw(st.integers(1, 3))):
        found += [user(draw(texts)), assistant(draw(texts))]
    if draw(st.integers(0, 4)) == 0:
        found.insert(
            draw(st.integers(0, len(found))), {"role": draw(st.sampled_from(["tool", "user"])), "content": "odd"}
        )
    return found


def by_beginnings(row: Record, encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The same row with nothing proved of the template: each view is a rendering, the marks one more."""
    with monkeypatch.context() as patch:
        patch.setattr(chat_template, "analyse", lambda source: TemplateForm(None, frozenset(), False, False))
        return plain(make_examples(row, encoder, SETTLED))


SETTLED = tokenization(
    max_length=100_000,
    allow=frozenset(
        {"turn-not-prefix", "prompt-not-prefix", "boundary-merge", "text-lost", "reasoning-lost", "full-mask"}
    ),
)


def plain(made: Any) -> Any:
    examples, notes = made
    sequences = [(s.role, s.tokens.tolist(), s.scored.tolist()) for e in examples for s in e.sequences]
    return sequences, [tuple(note) for note in notes]


@pytest.mark.parametrize("name", sorted(PROVED))
def test_one_rendering_shows_what_its_beginnings_would(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = Encoder(tokenizer(TEMPLATES[name]))

    @settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
    @given(conversations(), st.sampled_from(["text", "completion"]), st.booleans())
    def check(messages: list[Message], kind: Any, tools: bool) -> None:
        given_tools = [{"type": "function", "function": {"name": "look", "description": "Look."}}] if tools else None
        fields: dict[str, Any] = (
            {"text": messages} if kind == "text" else {"prompt": messages[:-1], "completion": messages[-1:]}
        )
        row = Record(kind, "f:1", tools=given_tools, **fields)
        assert plain(make_examples(row, encoder, SETTLED)) == by_beginnings(row, encoder, monkeypatch)

    check()


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_rows_in_a_block_are_what_they_are_alone(name: str) -> None:
    encoder = Encoder(tokenizer(TEMPLATES[name]))
    rows = [
        *chats(3),
        Record("completion", "f:4", prompt=CHAT[:1], completion=CHAT[1:2]),
        Record("preference", "f:5", prompt=CHAT[:3], chosen=CHAT[3:], rejected=[assistant("Seldom.")]),
        Record("text", "f:6", text=[{"role": "system", "content": "Be kind."}, *CHAT]),
        Record("text", "f:7", text=[user("tell"), {**assistant("No."), "reasoning_content": "Hm."}]),
        Record("text", "f:8", text="no messages"),
        Record("prompt", "f:9", prompt=CHAT[:1]),  # not learned from
    ]
    together = make_all(rows, encoder, SETTLED)
    assert [plain(made) for made in together] == [plain(make_examples(row, encoder, SETTLED)) for row in rows]


@pytest.mark.parametrize("words", ["grow", "die"])
def test_a_row_that_ends_the_renderer_is_told_from_its_neighbours(words: str) -> None:
    """A message of many rows fails as a whole; then each is rendered alone."""
    template = (
        "{% for m in messages if m.content == 'grow' %}{{ 'x' * (10 ** 11) }}{% endfor %}"
        "{% for m in messages if m.content == 'die' %}{{ raise_exception('no') }}{% endfor %}" + families.CHATML
    )
    encoder = Encoder(tokenizer(template))
    rows = chats(3)
    rows[1] = dataclasses.replace(rows[1], text=[user(words), assistant("Yes.")])
    (first, _), (bad, notes), (last, _) = make_all(rows, encoder, tokenization())
    assert first
    assert last
    assert not bad
    assert [note.finding for note in notes] == ["template-failed"]


def test_a_large_block_is_sent_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    sent = []
    render = template_sandbox.render

    def rendering(source: str, jobs: Sequence[RenderJob], *limits: Any) -> Any:
        sent.append(len(jobs))
        return render(source, jobs, *limits)

    encoder, rows = Encoder(tokenizer(families.CHATML)), chats(6)
    whole = [plain(made) for made in make_all(rows, encoder, tokenization())]
    monkeypatch.setattr(template_sandbox, "render", rendering)
    monkeypatch.setattr(batched_rendering, "MOST_CHARACTERS", 400)
    assert [plain(made) for made in make_all(rows, encoder, tokenization())] == whole
    assert len(sent) > 1
    assert sum(sent) == len(rows)


def test_of_two_loops_of_one_text_the_right_one_is_marked(counted: dict[str, int]) -> None:
    turns = families.CHATML.partition("{% if add_generation_prompt")[0]
    encoder = Encoder(tokenizer("{% if tools %}" + turns + "{% endif %}" + families.CHATML))
    make_all(chats(1), encoder, tokenization())
    assert counted["rendered"] == 1 + 1  # once, and the generation prompt of the template


def test_a_loop_over_a_list_that_may_not_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a system message this template writes nothing: a fault of its own, which the findings name."""
    assigned = "{% if messages[0].role == 'system' %}{% set rest = messages[1:] %}{% endif %}"
    template = assigned + families.CHATML.replace("in messages", "in rest")
    encoder = Encoder(tokenizer(template))
    assert analyse(template).loop is not None
    row = Record("text", "f:1", text=CHAT)
    assert plain(make_examples(row, encoder, SETTLED)) == by_beginnings(row, encoder, monkeypatch)


# What is no proof.

LOOP, TAIL = "{% for m in messages %}", "{% if add_generation_prompt %}>{% endif %}"


@pytest.mark.parametrize(
    "source",
    [
        LOOP + "{{ m.content }}{% if loop.last %}.{% endif %}{% endfor %}" + TAIL,
        LOOP + "{{ m.content }}{{ loop.length }}{% endfor %}" + TAIL,
        LOOP + "{{ m.content }}{{ loop.nextitem }}{% endfor %}" + TAIL,
        LOOP + "{{ m.content }}{{ loop['revindex'] }}{% endfor %}" + TAIL,
        LOOP + "{% set l = loop %}{{ l.last }}{% endfor %}" + TAIL,
        LOOP + "{{ messages | length }}{% endfor %}" + TAIL,
        LOOP + "{{ messages[-1].content }}{% endfor %}" + TAIL,
        LOOP + "{{ messages[1].content }}{% endfor %}" + TAIL,
        LOOP + "{{ messages[loop.index0 + 1] }}{% endfor %}" + TAIL,
        LOOP + "{% if m.content == 'x' %}{% break %}{% endif %}{% endfor %}" + TAIL,
        LOOP + "{{ add_generation_prompt }}{% endfor %}",
        "{% if add_generation_prompt %}!{% endif %}" + LOOP + "{{ m.content }}{% endfor %}",
        "{% set ns = namespace(n=0) %}" + LOOP + "{% set ns.n = 1 %}{% endfor %}{{ ns.n }}",
        LOOP + "{{ m.content }}{% endfor %}{{ messages[-1].role }}",
        LOOP + "{{ m.content }}{% endfor %}{{ raise_exception('x') }}",
        LOOP + "{{ m.content }}{% else %}none{% endfor %}",
        "{% for m in messages if m.content %}{{ m.content }}{% endfor %}",
        "{% for m in messages[::-1] %}{{ m.content }}{% endfor %}",
        "{% for m in messages[2:] %}{{ m.content }}{% endfor %}",
        LOOP + "{{ m.content }}{% endfor %}" + LOOP + "{{ m.content }}{% endfor %}",
        "{% set last = messages[-1] %}" + LOOP + "{{ last.content }}{% endfor %}",
        "{% set all = messages | list %}" + LOOP + "{{ all | length }}{% endfor %}",
        "{% set messages = messages[1:] %}{{ messages[0].content }}" + LOOP + "{{ m.content }}{% endfor %}",
        "{% set rest = messages[1:] %}{{ rest[0].content }}{% for m in rest %}{{ m.content }}{% endfor %}",
        "{% set a = messages[1:] %}{% set b = a[1:] %}{% for m in b %}{{ m.content }}{% endfor %}",
        "{% macro f() %}{{ messages | length }}{% endmacro %}" + LOOP + "{{ f() }}{% endfor %}",
        LOOP + "{% set messages = messages[1:] %}{{ m.content }}{% endfor %}",
        LOOP + "{% set m = messages[-1] %}{{ m.content }}{% endfor %}",
        LOOP + "{% if m.role == 'tool' or loop.last %}.{% endif %}{% endfor %}",
        LOOP + "{% if m.role == 'tool' %}{% else %}{{ loop.last }}{% endif %}{% endfor %}",
        LOOP + "{% if m.role != 'tool' %}{{ loop.last }}{% endif %}{% endfor %}",
        LOOP + "{{ lipsum() }}{% endfor %}",
        "{% include 'x' %}" + LOOP + "{{ m.content }}{% endfor %}",
        "{% if x %}" + LOOP + "{{ m.content }}{% endfor %}{% endif %}",
        "{% block b %}{% endblock %}" + LOOP + "{{ m.content }}{% endfor %}",
        "{% set tools = [1] %}{% if tools %}{{ messages | length }}{% endif %}" + LOOP + "{{ m.content }}{% endfor %}",
        "{% set tools = messages[0].tools %}{% if tools %}{{ messages | length }}{% endif %}" + LOOP + "{% endfor %}",
        LOOP + "{% macro f(tools) %}{% if tools %}{{ loop.last }}{% endif %}{% endmacro %}{{ f(1) }}{% endfor %}",
        "{% set custom_tools = 1 %}{% set tools = custom_tools %}{% if tools %}{{ messages[1] }}{% endif %}"
        + (LOOP + "{% endfor %}"),
        "{% broken",
    ],
)
def test_a_template_that_may_look_ahead_is_not_proved(source: str) -> None:
    assert analyse(source).loop is None


@pytest.mark.parametrize(
    ("source", "roles", "tools"),
    [
        (LOOP + "{{ m.content }}{% endfor %}" + TAIL, set(), False),
        (LOOP + "{{ messages[0].content }}{{ loop.index0 }}{{ loop.first }}{% endfor %}" + TAIL, set(), False),
        (LOOP + "{% for c in m.calls %}{{ loop.last }}{% endfor %}{% endfor %}" + TAIL, set(), False),
        (LOOP + "{% if m.role == 'tool' and x %}{{ loop.last }}{% endif %}{% endfor %}" + TAIL, {"tool"}, False),
        (LOOP + "{% if m['role'] == 'tool' %}{{ messages[1] }}{% endif %}{% endfor %}" + TAIL, {"tool"}, False),
        ("{% if tools is not none %}{{ messages | length }}{% endif %}" + LOOP + "{% endfor %}" + TAIL, set(), True),
        ("{% if tools %}{{ messages[-1] }}{% endif %}" + LOOP + "{% endfor %}" + TAIL, set(), True),
        (
            "{% if messages[0].role == 'system' %}{% set messages = messages[1:] %}{% endif %}" + LOOP + "{% endfor %}",
            set(),
            False,
        ),
    ],
)
def test_a_template_that_looks_at_no_later_message_is_proved(source: str, roles: set[str], tools: bool) -> None:
    form = analyse(source)
    assert form.loop is not None
    assert (set(form.unless_roles), form.unless_tools) == (roles, tools)


@pytest.mark.parametrize(
    ("source", "direct"),
    [
        (families.CHATML_MARKED, True),
        ("{% set x %}{% generation %}a{% endgeneration %}{% endset %}{{ x | trim }}", False),
        ("{% macro f() %}{% generation %} a{% endgeneration %}{% endmacro %}{{ f() | length }}", False),
        ("{% filter upper %}{% generation %}a{% endgeneration %}{% endfilter %}", False),
        ("{% generation %}a{% generation %}b{% endgeneration %}{% endgeneration %}", False),
    ],
)
def test_marks_are_left_out_of_what_a_template_reads(source: str, direct: bool) -> None:
    assert analyse(source).marks_are_output is direct


def test_which_real_templates_are_proved() -> None:
    """Changed by a change of the proof, or by another version of TRL: look at which templates it is."""
    for name in (
        "llama3",
        "llama3_1",
        "llama3_2",
        "qwen2_5",
        "qwen3_instruct_2507",
        "phi3",
        "gemma3",
        "lfm2",
        "CHATML",
    ):
        assert name in PROVED
    for name in ("COUNTING", "THINKING", "qwen3", "deepseekv3"):
        assert name not in PROVED
