"""Templates that would work for ever or fill the memory, each held off at once and from any thread."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import trl
from transformers.utils.chat_template_utils import render_jinja_template

from align.core.data import template_sandbox
from align.core.data.template_sandbox import RenderFailure, RenderJob, render

CHARACTERS = 1_000_000


def rendered(source: str, seconds: float = 10.0, **variables: Any) -> str | RenderFailure:
    (found,) = render(source, [RenderJob(variables)], seconds, CHARACTERS)
    return found


def grows(step: str, times: int = 60) -> str:
    return (
        "{% set ns = namespace(x=['ab']) %}{% for i in range(" + str(times) + ") %}{% set ns.x = " + step + " %}"
        "{% endfor %}{{ ns.x | tojson }}"
    )


@pytest.mark.parametrize(
    "source",
    [
        "{{ 10 ** (10 ** 9) }}",
        "{{ n ** (n ** 9) }}",
        "{% set x = n ** 10000000 %}{{ x ** 99 % 7 }}",
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        grows("[ns.x, ns.x]"),
        grows("[ns.x, ns.x]").replace("{{ ns.x | tojson }}", "{{ ns.x == [ns.x[0], ns.x[1]] }}{{ ns.x | string }}"),
    ],
)
def test_work_without_end_is_stopped(source: str) -> None:
    """Most of these are one operation in C, which nothing inside a process can interrupt."""
    try:
        found = rendered(source, 0.3, n=10)
    except TimeoutError as error:
        assert str(error) == "took longer than 0.3 s"
    else:
        assert isinstance(found, RenderFailure)
        assert "memory" in found.why


@pytest.mark.parametrize(
    "source",
    [
        "{{ 'x' * 10 ** 10 }}",
        "{{ [0] * 10 ** 10 }}",
        "{{ 'x'.ljust(10 ** 10) }}",
        "{{ 'x' | center(10 ** 10) }}",
        "{{ '{:>9999999999}'.format(1) }}",
        "{{ [1] | batch(10 ** 10, 0) | list }}",
        "{{ [[1]] | tojson(indent=10 ** 10) }}",
        grows("ns.x + ns.x"),
        "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    ],
)
def test_memory_without_bound_is_refused(source: str) -> None:
    assert rendered(source, n=10) == RenderFailure("it takes more than 2 GiB of memory")


def test_what_else_a_template_may_do_wrong_is_told() -> None:
    assert rendered("{{ range(10 ** 9) | list }}") == RenderFailure(
        "OverflowError: Range too big. The sandbox blocks ranges larger than MAX_RANGE (100000)."
    )
    loop = rendered("{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}")
    assert isinstance(loop, RenderFailure)
    assert loop.why.startswith("RecursionError")
    assert rendered("{{ 'x' * 1000001 }}") == RenderFailure("ValueError: it writes more than 1,000,000 characters")
    escape = rendered("{{ ''.__class__.__mro__[1].__subclasses__() }}")
    assert isinstance(escape, RenderFailure)
    assert escape.why.startswith("SecurityError")
    broken = rendered("{% if %}")
    assert isinstance(broken, RenderFailure)
    assert broken.why.startswith("TemplateSyntaxError")


def test_a_thread_that_is_not_the_main_one_is_held_off_as_well() -> None:
    found: list[str] = []

    def work() -> None:
        with pytest.raises(TimeoutError) as caught:
            rendered("{{ 10 ** (10 ** 9) }}", 0.3)
        found.append(str(caught.value))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(30)
    assert found == ["took longer than 0.3 s"]


def test_it_goes_on_after_a_template_was_stopped_and_after_its_process_was_killed() -> None:
    with pytest.raises(TimeoutError):
        rendered("{{ 10 ** (10 ** 9) }}", 0.3)
    assert rendered("{{ a }}", a="é😀") == "é😀"
    child = template_sandbox._process._child
    assert child is not None
    os.kill(child.pid, signal.SIGKILL)
    assert rendered("{{ a }}", a="b") == "b", "a process that somebody else has killed is no fault of the row"


def test_a_process_that_is_killed_again_and_again_is_the_machines_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = template_sandbox._Process._open

    def killed(self: template_sandbox._Process) -> object:
        connection = opened(self)
        assert self._child is not None
        os.kill(self._child.pid, signal.SIGKILL)
        self._child.wait()
        return connection

    monkeypatch.setattr(template_sandbox._Process, "_open", killed)
    with pytest.raises(OSError, match="it was killed twice"):
        rendered("{{ a }}", a="b")


def test_signals_to_the_whole_group_do_not_end_it() -> None:
    assert rendered("{{ a }}", a="b") == "b"
    child = template_sandbox._process._child
    assert child is not None
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        os.kill(child.pid, number)
    assert rendered("{{ a }}", a="c") == "c"
    assert template_sandbox._process._child is child and child.poll() is None


def test_the_process_ends_when_nobody_asks_any_more() -> None:
    assert rendered("{{ a }}", a="b") == "b"
    child = template_sandbox._process._child
    assert child is not None
    template_sandbox._process.close()
    assert child.poll() == 0
    assert rendered("{{ a }}", a="b") == "b"


CONVERSATION = [
    {"role": "user", "content": "Is the sea\n  wide?"},
    {"role": "assistant", "content": "<think>\nHm.\n</think>\n\nYes, “wide” & <b>."},
    {"role": "user", "content": "Weather?"},
    {
        "role": "assistant",
        "content": "I look.",
        "tool_calls": [{"type": "function", "function": {"name": "look", "arguments": {"at": [1, "é"], "deep": True}}}],
    },
    {"role": "tool", "name": "look", "content": '{"sky": "blue"}'},
    {"role": "assistant", "content": "Blue."},
]
TOOLS = [{"type": "function", "function": {"name": "look", "description": "Looks.", "parameters": {}}}]
TEMPLATES = sorted((Path(trl.__file__).parent / "chat_templates").glob("*.jinja"))


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_templates_write_what_transformers_has_them_write(path: Path) -> None:
    """The oracle is transformers' own rendering, its refusals too, over all templates that TRL ships."""
    source, special = path.read_text(), {"bos_token": "<s>", "eos_token": "</s>"}
    for messages, tools in ((CONVERSATION[:2], None), (CONVERSATION[:4], None), (CONVERSATION, TOOLS)):
        variables = {"messages": messages, "tools": tools, "documents": None, "add_generation_prompt": True, **special}
        found = rendered(source, **variables)
        try:
            (expected,), _ = render_jinja_template(
                [messages], tools=tools, chat_template=source, add_generation_prompt=True, **special
            )
        except Exception as error:
            assert found == RenderFailure(f"{type(error).__name__}: {error}"[:200])
        else:
            assert found == expected
