"""Text that a template leaves out is named by message and field; text that it keeps, in whatever form, is not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import trl

from align.core.data.datasets import make_examples
from align.core.data.encode import Encoder
from align.core.data.examples import Example
from align.core.data.template_checks import Note
from align.plugins.formats.standard import Messages
from align.schemas.records import Message, Record
from tests.core import families
from tests.core.families import settings, tokenizer, user

ASK = user("Is it so?")


def call(arguments: Any = None, name: str = "look") -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def says(content: Any = "", **more: Any) -> Message:
    return {"role": "assistant", "content": content, **more}


def writing(content: str = "m.content or ''", calls: str = "") -> str:
    """ChatML that writes each message's content and each function called, ``c``, as the expressions say."""
    loop = "{% for c in m.tool_calls or [] %}{% set c = c.function %}" + calls + "{% endfor %}"
    return (
        "{%- for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}{{ " + content + " }}" + loop * bool(calls) + ""
        "{{ '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    )


def seen(template: str, *messages: Message, tools: Any = None, **changed: Any) -> tuple[list[Example], list[Note]]:
    record = Record("text", "f:1", text=list(messages), tools=tools)
    return make_examples(record, Encoder(tokenizer(template)), settings(**changed))


def found(template: str, *messages: Message, **changed: Any) -> list[tuple[str, str]]:
    return [(note.finding, note.detail) for note in seen(template, *messages, **changed)[1]]


LONG = '  the sea <b>is</b> wide\n  and "deep", they say. \U0001f642 é\n'


@pytest.mark.parametrize(
    "content",
    [
        "m.content",
        "m.content | trim",
        "m.content | tojson",
        "m.content | tojson(ensure_ascii=True)",
        "m.content.split('wide') | join('wide')",
        "'<!--' ~ m.content ~ '-->'",
        "m.content | replace('\\\\', '\\\\\\\\') | replace('\"', '\\\\\"') | replace('\\n', '\\\\n')",
        "m.content * 2",
    ],
)
def test_what_is_moved_trimmed_or_escaped_is_kept(content: str) -> None:
    assert found(writing(content), ASK, says(LONG)) == []


@pytest.mark.parametrize(
    "content",
    [
        "''",
        "m.content[:30]",
        "m.content | truncate(25)",
        "m.content.replace('sea', '')",
        "m.content.split() | join(' ')",
        "m.content.split('wide')[0]",
        "m.content.split('\\n')[1]",
        "m.content | upper",
        "m.content | striptags",
        "m.content | indent(2)",
        "m.content if m.content | length < 20 else ''",
        "(m.content | trim)[1:]",
    ],
)
def test_what_is_cut_dropped_or_changed_is_lost(content: str) -> None:
    found_there = [note.finding for note in seen(writing(content), ASK, says(LONG))[1]]
    assert found_there == ["text-lost"]


ARGUMENTS = {"b": 'é"\n<x>', "a": 5, "c": True, "d": 1.5, "e": None, "f": [1, {"g": ""}], "h": "user"}


@pytest.mark.parametrize(
    "calls",
    [
        "{{ c.name }}{{ c.arguments | tojson }}",
        "{{ c.name }}{{ c.arguments | tojson(ensure_ascii=True) }}",
        "{{ c.name }}{{ c.arguments | tojson(indent=2, sort_keys=True) }}",
        "{{ c | tojson }}",
        "{{ c | tojson | e }}",
        "{{ c.name }}{{ c.arguments }}",
        "<{{ c.name }}>{% for k, v in c.arguments.items() %}<{{ k }}>{{ v }}</{{ k }}>{% endfor %}",
        "<{{ c.name }}>{% for k, v in c.arguments | dictsort %}<{{ k }}>{{ v | tojson }}</{{ k }}>{% endfor %}",
    ],
)
def test_arguments_are_kept_in_whatever_form(calls: str) -> None:
    template = writing(calls=calls)
    assert found(template, ASK, says(tool_calls=[call(ARGUMENTS)])) == []
    assert found(template, ASK, says(tool_calls=[call(json.dumps(ARGUMENTS))])) == []


@pytest.mark.parametrize(
    ("calls", "lost"),
    [
        ("", "name: 'look' and 14 more"),
        ("{{ c.name }}", "arguments: 'b' and 13 more"),
        ("{{ c.arguments | tojson }}", "name: 'look'"),
        ("{{ c.name }}{{ c.arguments.keys() | join }}", "arguments.b: 'é\"\\n<x>' and 6 more"),
        (
            "{{ c.name }}{% for k, v in c.arguments.items() %}{{ k }}{{ v if v is string else '' }}{% endfor %}",
            "arguments.a: '5' and 4 more",
        ),
    ],
)
def test_arguments_that_are_not_written_are_lost(calls: str, lost: str) -> None:
    (one,) = found(writing(calls=calls), ASK, says("b", tool_calls=[call(ARGUMENTS)]))
    assert one[0] == "text-lost"
    assert one[1] == f"message 2 (assistant), tool_calls[0].function.{lost}"


def test_a_string_that_stands_elsewhere_by_chance_is_lost_all_the_same() -> None:
    assert found(writing(), ASK, says("Wide.", reasoning_content="Wide.")) == [
        ("reasoning-lost", "message 2 (assistant), reasoning_content: 'Wide.'")
    ]
    no_developer = writing("m.content if m.role != 'developer' else ''")
    for content in ("user", "Is it", "a"):
        developer = {"role": "developer", "content": content}
        assert found(no_developer, developer, ASK, says("So.")) == [
            ("text-lost", f"message 1 (developer), content: '{content}'")
        ]


def test_what_a_template_writes_of_its_own_does_not_stand_for_what_it_leaves_out() -> None:
    """A system message that is dropped, and the same words from the template itself or from a role."""
    drops = "{{ 'Be kind.' }}" + writing("m.content if m.role != 'system' else ''")
    assert found(drops, {"role": "system", "content": "Be kind."}, ASK, says("So.")) == [
        ("text-lost", "message 1 (system), content: 'Be kind.'")
    ]
    keeps = "{{ 'Be kind.' }}" + writing()
    assert found(keeps, {"role": "system", "content": "Be kind."}, ASK, says("So.")) == []


def test_characters_for_private_use_are_no_hindrance() -> None:
    messages = ASK, says("\U000f0001 icon", reasoning_content="\U000f0002")
    assert found(writing("(m.reasoning_content or '') ~ m.content"), *messages) == []
    assert found(writing(), *messages) == [
        ("reasoning-lost", "message 2 (assistant), reasoning_content: '\\U000f0002'")
    ]


def test_tools_that_a_template_does_not_write_are_a_warning() -> None:
    tools = [{"type": "function", "function": {"name": "look", "description": "Looks out.", "parameters": {}}}]
    warning = [("tools-dropped", "tools[0].function.name: 'look' and 1 more")]
    assert found(writing(), ASK, says("So."), tools=tools) == warning
    assert found("{{ tools | tojson }}" + writing(), ASK, says("So."), tools=tools) == []


def test_a_row_is_spelt_as_its_template_takes_it() -> None:
    """Arguments as JSON or an object, no text as "" or null, calls bare or wrapped, reasoning under any name."""
    joins = writing(calls="{{ c.name + c.arguments }}")
    for given, expected in (('{"a":"b"}', '{"a":"b"}'), ({"a": "é"}, '{"a": "é"}'), (None, "{}")):
        ((example,), notes) = seen(joins, ASK, says(None, tool_calls=[call(given)]))
        assert notes == []
        text = tokenizer(joins).decode(example.sequences[0].tokens)
        assert f"look{expected}<|im_end|>" in text
        assert "None" not in text
        if isinstance(given, str):  # as it is spelt, after the readers made an object of it
            row = {"messages": [ASK, says(None, tool_calls=[call(given)])]}
            ((example,), _) = seen(joins, *Messages().convert(row, "f:1").text)
            assert tokenizer(joins).decode(example.sequences[0].tokens) == text
    bare = {"name": "look", "arguments": {}}
    wrapped = "{% for m in messages %}{% for c in m.tool_calls or [] %}{{ c.type ~ c.function.name }}{% endfor %}"
    assert found(wrapped + "{{ m.content }}<|im_end|>{% endfor %}", ASK, says(tool_calls=[bare])) == []
    for wanted, own in (
        ("thinking", "reasoning_content"),
        ("reasoning", "thinking"),
        ("reasoning_content", "reasoning"),
    ):
        template = writing(f"(m.{wanted} or '') ~ m.content")
        assert found(template, ASK, says("So.", **{own: "Hm."})) == []


def test_null_is_as_good_as_absent() -> None:
    template = writing(calls="{{ c.name }}{{ c.arguments | tojson }}") + "{{ 'calls' if 'tool_calls' in messages[1] }}"
    absent, _ = seen(template, ASK, says("So."))
    null, _ = seen(template, ASK, says("So.", tool_calls=None, reasoning_content=None, weight=None, name=None))
    empty, _ = seen(template, ASK, says("So.", tool_calls=[]))
    assert absent[0].sequences[0].tokens.tolist() == null[0].sequences[0].tokens.tolist()
    assert absent[0].sequences[0].tokens.tolist() == empty[0].sequences[0].tokens.tolist()


MARKED = families.CHATML_MARKED
EARLY = [ASK, says("<think>Hm.</think>So."), ASK, says("Yes.")]


def test_reasoning_of_earlier_turns() -> None:
    """Reasoning may be missing in a prompt, as when the model is used, but not in a turn that is learned."""
    kept_last = "m.content if loop.last else m.content.split('</think>')[-1]"
    marked = MARKED.replace("m['content'] + '<|im_end|>' }}{% endg", f"({kept_last}) + '<|im_end|>' }}}}{{% endg")
    assert found(marked, *EARLY) == [
        ("turn-not-prefix", "turn 2 without message 2 (assistant), content: '<think>Hm.</think>So.'")
    ]
    made, notes = seen(marked, *EARLY, allow=frozenset(["turn-not-prefix"]))
    assert [note.finding for note in notes] == ["turn-not-prefix"]
    tok = tokenizer(marked)
    texts = [tok.decode(example.sequences[0].tokens[example.sequences[0].scored]) for example in made]
    assert texts == ["<think>Hm.</think>So.<|im_end|>\n", "Yes.<|im_end|>\n"]
    row = Record("completion", "f:1", prompt=EARLY[:3], completion=EARLY[3:])
    made, notes = make_examples(row, Encoder(tok), settings())
    assert len(made) == 1
    assert [(note.finding, note.detail) for note in notes] == [
        ("history-dropped", "message 2 (assistant), content: '<think>Hm.</think>So.'")
    ]
    assert "<think>" not in tok.decode(made[0].sequences[0].tokens)


def test_words_of_others_inside_the_templates_marks() -> None:
    all_gather_objects = MARKED.replace("m['role'] == 'assistant'", "m['role'] != 'system'")
    assert found(all_gather_objects, ASK, says("So.")) == [("full-mask", "message 1 (user)")]


@pytest.mark.parametrize("write", ["{{ say(m) }}", "{% set said = say(m) %}{{ said }}", "{{ say(m) | trim }}"])
def test_marks_inside_a_macro_are_found_where_the_text_ends_up(write: str) -> None:
    macro = "{% macro say(m) %}{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}{% endmacro %}"
    template = (
        macro + "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
        "{% if m.role == 'assistant' %}" + write + "{% else %}{{ m.content + '<|im_end|>' }}{% endif %}{{ '\n' }}"
        "{% endfor %}"
    )
    ((example,), notes) = seen(template, ASK, says("Yes."), ASK, says("No."))
    assert notes == []
    (sequence,) = example.sequences
    assert tokenizer(template).decode(sequence.tokens[sequence.scored]) == "Yes.<|im_end|>No.<|im_end|>"


def test_words_that_a_template_looks_for_are_found_by_it_still() -> None:
    """Marks inside ``</think>`` would hide it, and the template would keep what it drops."""
    template = writing("m.content.split('</think>')[-1]")
    assert found(template, ASK, says("So.")) == []
    assert found(template, ASK, says("<think>Hm, well.</think>So.")) == [
        ("reasoning-lost", "message 2 (assistant), content: '<think>Hm, well.</think>So.'")
    ]


WEATHER = json.loads(  # the issue's row
    '[{"role":"user","content":"Weather in Bern?"},{"role":"assistant","content":null,"tool_calls":[{"id":"abcdefgh1",'
    '"type":"function","function":{"name":"get_weather","arguments":"{\\"city\\":\\"Bern\\"}"}}]},{"role":"tool",'
    '"tool_call_id":"abcdefgh1","content":"{\\"sky\\":\\"blue\\"}"},{"role":"assistant","content":"Blue sky."}]'
)
TOOLS = [
    {"type": "function", "function": {"name": "get_weather", "description": "Says the weather.", "parameters": {}}}
]
RENAMED = {"thinking": "reasoning", "reasoning": "reasoning_content"}
ROWS: dict[str, list[Message]] = {
    "text": [ASK, says('Yes, "wide".'), user("Deep?\n\nReally?"), says("Very\n  - very.")],
    "developer": [{"role": "developer", "content": "Be kind."}, ASK, says("Yes.")],
    "reasoning": [ASK, says("Wide.", reasoning_content="Let me see.")],
    "thought in content": [ASK, says("<think>\nLet me see, then.\n</think>\n\nIt is wide.")],
    "calls": WEATHER,
    "call and text": [WEATHER[0], says("I look.", tool_calls=WEATHER[1]["tool_calls"])],
}
FOR_IMAGES = "idefics3 smolvlm llava_next"  # they read content as a list of parts
NO_REASONING = "cohere cohere2 gemma gemma3 llama3 llama3_1 llama3_2 phi3 phi3_5 lfm2 lfm2_v2 qwen2_5"
NO_REASONING += f" qwen3_instruct_2507 {FOR_IMAGES}"
DEEPSEEK = "deepseekv3 deepseek_r1_distill"
NO_CALLS = f"{FOR_IMAGES} llama3 phi3 phi3_5 lfm2 qwen2_5_vl"
LOSES = {
    "developer": (
        "text-lost",
        f"llava_next cohere2 phi3 phi3_5 qwen2_5 qwen3 qwen3_vl qwen3_instruct_2507 glm4moe muse_glimmer {DEEPSEEK}",
    ),
    "reasoning": (
        "reasoning-lost",
        f"{NO_REASONING} qwen2_5_vl qwen3_vl gemma4 gemma4_v2 gemma4_v3 gemma4_v4 {DEEPSEEK}",
    ),
    "thought in content": ("reasoning-lost", "deepseekv3"),
    "calls": ("text-lost", NO_CALLS),
    "call and text": (
        "text-lost",
        f"{NO_CALLS} cohere cohere2 gemma gemma3 llama3_1 llama3_2 muse_glimmer deepseek_r1_distill",
    ),
}
"""The text that each of TRL's templates leaves out, found by reading the templates."""
TEMPLATES = sorted((Path(trl.__file__).parent / "chat_templates").glob("*.jinja"))


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_what_real_templates_leave_out(path: Path) -> None:
    """Exactly the listed text is reported as lost."""
    name = path.stem.removesuffix("_training")
    encoder = Encoder(tokenizer(path.read_text()))
    for row, messages in ROWS.items():
        record = Record("completion", "f:1", prompt=messages[:-1], completion=messages[-1:])
        _, notes = make_examples(record, encoder, settings(max_length=9999))
        lost = {note.finding for note in notes} & {"text-lost", "reasoning-lost", "history-dropped"}
        refused = {note.finding for note in notes} & {"template-failed", "prompt-not-prefix", "wrong-kind"}
        finding, names = LOSES.get(row, ("", ""))
        if row == "thought in content" and path.stem == "deepseek_r1_distill":  # the one for training keeps it
            assert lost == {"reasoning-lost"}
        elif name in names.split():
            assert lost == {finding} or refused, row
        else:
            assert not lost, (row, notes)


def test_a_template_made_for_images_gets_content_in_parts() -> None:
    """Text of every turn is there as the template writes it of OpenAI's form, and the answers alone are scored."""
    template = writing("m.content | map(attribute='text') | join")
    examples, notes = seen(template, user("Is the sea wide?"), says("It is."), user("How wide?"), says("Very."))
    (sequence,) = examples[0].sequences
    learned = tokenizer(template).decode(sequence.tokens[sequence.scored])
    assert notes == [] and learned == "It is.<|im_end|>Very.<|im_end|>"


@pytest.mark.parametrize("spelling", ["m.content", "m.content | tojson"])
def test_a_list_of_parts_that_is_spelt_out_is_not_the_content(spelling: str) -> None:
    """Written by a template that knows strings alone, and drops this one."""
    template = writing(f"('' if m.content is string else {spelling})")
    assert found(template, user("Is it so?"), says("So it is.")) == [
        ("text-lost", "message 1 (user), content: 'Is it so?' and 1 more")
    ]


@pytest.mark.parametrize(("most", "expected"), [(20, []), (19, ["reasoning-lost"])])
def test_a_template_that_counts_letters_is_not_misled_by_marks(most: int, expected: list[str]) -> None:
    """Nineteen letters, more with marks among them."""
    template = writing(f"(m.reasoning_content if (m.reasoning_content or '') | length < {most} else '') ~ m.content")
    messages = user("Is it so?") | {"reasoning_content": ""}, says("So.", reasoning_content="Let me think of it.")
    assert [name for name, _ in found(template, *messages)] == expected


def test_a_prompt_alone_is_held_against_its_row_too() -> None:
    tok = tokenizer(writing("m.content if m.role != 'developer' else ''"))
    encoder, asks = Encoder(tok), settings(learns_from=("prompt",))
    lost = Record("prompt", "f:1", prompt=[{"role": "developer", "content": "Be kind."}, ASK])
    assert [(n.finding, n.detail) for n in make_examples(lost, encoder, asks)[1]] == [
        ("text-lost", "message 1 (developer), content: 'Be kind.'")
    ]
    thought = Record("prompt", "f:1", prompt=[ASK, says("So.", reasoning_content="Hm."), ASK])
    made, notes = make_examples(thought, encoder, asks)
    assert ([note.finding for note in notes], len(made)) == (["history-dropped"], 1)


def test_both_answers_of_a_pair_are_held_against_the_row() -> None:
    """Under a template that knows no tools both are the same empty answer."""
    row = Record(
        "preference",
        "f:1",
        prompt=[ASK],
        chosen=[says(tool_calls=[call(name="look")])],
        rejected=[says(tool_calls=[call(name="wait")])],
    )
    made, notes = make_examples(row, Encoder(tokenizer(writing())), settings())
    assert made == []
    assert [(note.finding, note.detail) for note in notes] == [
        ("text-lost", "message 2 (assistant), tool_calls[0].function.name: 'look'")
    ]


@pytest.mark.parametrize(
    "text", ["Is it so?", "\u6674\u308c\u3067\u3059", "(a b)", "a \u00e9", '"b c"', "7 \u20ac", "go \U0001f642"]
)
@pytest.mark.parametrize("cut", ["[1:]", "[:-1]"])
def test_one_character_at_an_edge_is_missed(text: str, cut: str) -> None:
    """Whatever the character: punctuation and letters of other scripts too."""
    assert found(writing(f"m.content{cut}"), ASK, says(text))[0][0] == "text-lost"


@pytest.mark.parametrize(
    "text", ['"b c"', "\u6674 \u308c", "\\a b\\", "<a b>", "\U0001f642 \U0001f642", "'a b'", "{a b}", "\tx y\t."]
)
@pytest.mark.parametrize("form", ["| tojson", "| tojson(ensure_ascii=True)", "| tojson | tojson", "| e", "| pprint"])
def test_an_escaped_character_at_an_edge_is_kept(text: str, form: str) -> None:
    assert not found(writing(f"m.content {form}"), user(text), says(text))
    each = "{{ c.name }}{% for k, v in c.arguments.items() %}{{ k }}={{ v " + form + " }}{% endfor %}"
    assert not found(writing(calls=each), ASK, says(tool_calls=[call({"text": text})]))


@pytest.mark.parametrize("text", ["a\n", " a ", "a b\n\n", "</think>a\n", "\u6674\n"])
def test_white_space_at_an_edge_is_no_text(text: str) -> None:
    calls = "{{ c.name }}{{ c.arguments.text | trim }}"
    assert not found(writing("m.content | trim", calls), ASK, says(text, tool_calls=[call({})]))


@pytest.mark.parametrize("value", [0, False, 0.0, True])
def test_a_value_that_stands_elsewhere_too_is_missed(value: Any) -> None:
    """``v or ''`` writes no 0, and the 0 of 10 and of 0.5, or the value of another key, is not it."""
    each = (
        "{% for k, v in c.arguments.items() %}{{ k }}={{ v if k in 'abc' else '' if v in [0, 1] else v }} {% endfor %}"
    )
    template = writing(calls="{{ c.name }} " + each)
    arguments = {"a": 10, "b": 0.5, "c": value, "d": value}
    assert found(template, ASK, says(tool_calls=[call(arguments)]))[0][0] == "text-lost"
    whole = writing(calls="{{ c.name }}{{ c.arguments | tojson }}{{ 'x' if c.arguments.c }}")
    assert not found(whole, ASK, says(tool_calls=[call(arguments)]))


BESIDE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
    "<|im_end|>{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}"
)


def test_one_letter_beside_a_mark() -> None:
    """What stands right before a mark is not within it, and a letter alone is."""
    assert not found(BESIDE, user("a"), says("a"))
    assert not found(BESIDE, user("assistant"), says("m"), user("m"), says("user"))
    bare = BESIDE.replace("<|im_end|>{% endgeneration %}", "{% endgeneration %}<|im_end|>")
    allow = frozenset({"end-of-turn-untrained"})
    [example], _ = seen(bare, user("a"), says("b", weight=0), user("a"), says("c"), allow=allow)
    [sequence] = example.sequences
    assert Encoder(tokenizer(bare)).pieces(sequence.tokens[sequence.scored].tolist()) == ["c"]
    assert found(BESIDE.replace("m.role == 'assistant'", "true"), user("b"), says("a"))[0][0] == "full-mask"
