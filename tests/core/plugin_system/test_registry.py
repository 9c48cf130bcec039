"""Plugins found, loaded behind a guard, attributed, and lazy by kind. Plugins here are real distributions on disk."""

from __future__ import annotations

import importlib.metadata
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest

from align.core.plugin_system.diagnose import examine
from align.core.plugin_system.registry import Hooks, Registry
from align.schemas.errors import AlignError
from align.schemas.hardware import Footprint, Hardware
from align.schemas.run import Choice

Make = Callable[..., Registry]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """``make({name: source, ...})`` installs a distribution ``align-NAME 1.0`` for each and gives their registry."""

    def installed(
        sources: dict[str, str], subset: str | None = None, modules: dict[str, str] | None = None
    ) -> Registry:
        monkeypatch.syspath_prepend(str(tmp_path))
        for name, source in {**(modules or {}), **{f"stranger_{name}": s for name, s in sources.items()}}.items():
            (tmp_path / f"{name}.py").write_text("import align\nfrom align import hookimpl\n" + source)
            monkeypatch.delitem(sys.modules, name, raising=False)
        for name in sources:
            info = tmp_path / f"align_{name}-1.0.dist-info"
            info.mkdir()
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: align-{name}\nVersion: 1.0\n")
            (info / "entry_points.txt").write_text(f"[align]\n{name} = stranger_{name}\n")
        ours = importlib.metadata.entry_points(group="align", name="builtin")
        theirs = [e for d in importlib.metadata.distributions(path=[str(tmp_path)]) for e in d.entry_points]
        return Registry(Hooks([*theirs, *ours], subset))

    return installed


REWARD = """
def {name}(completion, *, limit: int = 200, words: list[str] | None = None):
    "How short."
    return max(0.0, 1 - len(completion) / limit)

@hookimpl
def register_rewards(register):
    register({name})
"""
SYSTEM_EXIT = "import sys; sys.exit(3)"


def message(raised: pytest.ExceptionInfo[AlignError]) -> str:
    return str(raised.value)


def theirs(registry: Registry) -> list[str]:
    """The rewards that are not align's own."""
    return [name for name, offers in registry.offers("reward").items() if offers[-1].plugin.name != "builtin"]


# What a plugin may be


def test_register_rewards_takes_a_function_whose_keyword_only_arguments_are_its_settings(make: Make) -> None:
    registry = make({"short": REWARD.format(name="brevity")})
    assert theirs(registry) == ["brevity"]
    assert registry.build("reward", Choice(type="brevity"))("x" * 50) == 0.75
    assert registry.build("reward", Choice(type="brevity", settings={"limit": 100}))("x" * 50) == 0.5


def test_settings_are_checked_strictly_and_all_at_once(make: Make) -> None:
    registry = make({"short": REWARD.format(name="brevity")})
    with pytest.raises(AlignError) as raised:
        registry.build("reward", Choice(type="brevity", settings={"limt": 3, "limit": True, "words": ["a", 1]}))
    assert message(raised) == (
        "reward.limit\n    is true; must be a whole number\n"
        "reward.words[1]\n    is 1; must be text\n"
        "reward.limt\n    is not a key here\n    did you mean 'limit'?"
    )


def test_register_algorithms_by_name_imports_nothing_until_the_name_is_used(make: Make) -> None:
    registry = make(
        {"lazy": "@hookimpl\ndef register_algorithms(register): register('mine', 'lazy_loss:Mine')"},
        modules={"lazy_loss": "class Mine(align.Algorithm):\n    name = 'mine'\n"},
    )
    assert "mine" in registry.names("algorithm") and "lazy_loss" not in sys.modules
    assert registry.build("algorithm", Choice(type="mine")).name == "mine"
    assert "lazy_loss" in sys.modules


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        ("class Mine:\n    name = 'mine'\n", "does not derive from align.core.algorithm.contract.Algorithm"),
        ("Mine = 3", "is not a class"),
        ("class Mine(align.Algorithm):\n    class Config: pass", "has no nested Config that derives from align.Config"),
        ("import no_such_library", "ModuleNotFoundError: No module named 'no_such_library'"),
        ("", "AttributeError: module 'lazy_loss' has no attribute 'Mine'"),
        (SYSTEM_EXIT, "SystemExit: 3"),
    ],
)
def test_what_a_name_leads_to_is_checked_when_it_is_used(make: Make, body: str, fault: str) -> None:
    registry = make(
        {"lazy": "@hookimpl\ndef register_algorithms(register): register('mine', 'lazy_loss:Mine')"},
        modules={"lazy_loss": body},
    )
    with pytest.raises(AlignError) as raised:
        registry.get("algorithm", "mine")
    assert fault in message(raised) and "'lazy' (align-lazy 1.0)" in message(raised)
    assert [p.what for p in examine(registry) if fault in p.what]


# Broken plugins


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("import no_such_library", "ModuleNotFoundError: No module named 'no_such_library'"),
        (SYSTEM_EXIT, "SystemExit: 3"),
        ("def register_rewards(:", "SyntaxError: invalid syntax"),
        ("@hookimpl\ndef register_rewards(registr): pass", "'registr'"),
        ("@hookimpl\ndef register_dreams(register): pass", "unknown hook 'register_dreams'"),
    ],
)
def test_a_broken_plugin_stops_nobody_and_is_named_where_it_is_missed(make: Make, body: str, why: str) -> None:
    registry = make({"bad": body, "good": REWARD.format(name="brevity")})
    assert theirs(registry) == ["brevity"]
    with pytest.raises(AlignError) as raised:
        registry.get("reward", "brevty")
    assert "no reward is called 'brevty'\n    did you mean 'brevity'?" in message(raised)
    assert "plugin 'bad' (align-bad 1.0) may offer it and failed" in message(raised) and why in message(raised)
    assert any("'bad' (align-bad 1.0)" in p.where and why in p.what for p in examine(registry))


def test_a_refused_plugin_leaves_no_hook_behind(make: Make) -> None:
    both = REWARD.format(name="brevity") + "@hookimpl\ndef register_dreams(register): pass"
    assert theirs(make({"bad": both})) == []


def test_a_hook_that_fails_on_the_way_registers_nothing_of_that_kind(make: Make) -> None:
    half = """
def one(x): pass
@hookimpl
def register_rewards(register):
    register(one)
    raise RuntimeError("no second one")
@hookimpl
def register_algorithms(register): register("mine", "a:B")
"""
    registry = make({"half": half})
    assert theirs(registry) == []
    assert "mine" in registry.names("algorithm")
    with pytest.raises(AlignError, match="failed: RuntimeError: no second one"):
        registry.get("reward", "one")


def test_what_cannot_be_registered_is_said(make: Make) -> None:
    registry = make({"odd": "@hookimpl\ndef register_rewards(register): register('mine')"})
    with pytest.raises(AlignError, match=r"register\('mine'\) lacks its target"):
        registry.get("reward", "mine")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("register('mine', 5)", r"register\('mine', 5\) lacks its target"),
        ("register('mine', 'a.b.C')", "lacks its target: write register"),
        ("register(max, 'mine')", "has no name first"),
        ("register(5)", "lacks a name"),
        ("register('', max)", "lacks a name"),
        ("register(None, max)", "has no name first"),
    ],
)
def test_a_registration_that_makes_no_sense_is_said_with_what_to_write(make: Make, call: str, message: str) -> None:
    registry = make({"odd": f"@hookimpl\ndef register_rewards(register): {call}"})
    with pytest.raises(AlignError, match=message) as raised:
        registry.get("reward", "mine")
    assert "TypeError" not in str(raised.value)


def test_a_class_or_function_is_registered_under_an_id(make: Make) -> None:
    """``register("ACME-1", function)``, as docs/rules.md writes it with a target."""
    source = REWARD.format(name="brevity").replace("register(brevity)", "register('acme/short', brevity)")
    rule = "def long(facts, limit): 'Too long.'\n@hookimpl\ndef register_rules(register): register('ACME-1', long)\n"
    registry = make({"mine": source + rule})
    assert registry.build("reward", Choice(type="acme/short", settings={"limit": 10}))("four") == 0.6
    assert "brevity" not in registry.names("reward")
    assert registry.get("rule", "ACME-1").__name__ == "long"
    logger = "class Mine(align.Logger):\n    pass\n@hookimpl\ndef register_loggers(register): register('own', Mine)\n"
    assert make({"other": logger}).get("logger", "own").__name__ == "Mine"


def test_what_is_chosen_by_trying_goes_on_without_the_broken_and_says_so(make: Make) -> None:
    hook = "@hookimpl\ndef register_formats(register): register('{}', 'no_such_module:Format')"
    registry = make({"bad": hook.format("odd"), "taken": hook.format("alpaca")})
    working = registry.working("format")
    assert "text" in working and not {"odd", "alpaca"} & set(working)
    excuses = "\n".join(registry.absent("format"))
    assert "plugin 'bad' (align-bad 1.0) may offer it and failed: " in excuses and "no_such_module" in excuses
    assert "format 'alpaca' is offered 2 times" in excuses


def test_ctrl_c_passes(make: Make) -> None:
    with pytest.raises(KeyboardInterrupt):
        make({"slow": "raise KeyboardInterrupt"}).names("reward")


def test_the_same_name_twice_names_both_distributions_and_the_fix(make: Make) -> None:
    registry = make({"a": REWARD.format(name="brevity"), "b": REWARD.format(name="brevity")})
    with pytest.raises(AlignError) as raised:
        registry.get("reward", "brevity")
    assert "'a' (align-a 1.0)" in message(raised) and "'b' (align-b 1.0)" in message(raised)
    assert "offered 2 times" in message(raised) and "ALIGN_PLUGINS" in message(raised)
    assert any("offered 2 times" in problem.what for problem in examine(registry))


def test_a_stranger_cannot_take_the_name_of_a_built_in(make: Make) -> None:
    registry = make({"bold": "@hookimpl\ndef register_algorithms(register): register('dpo', 'a:B')"})
    with pytest.raises(AlignError, match=r"'builtin' .align-llm .* and plugin|'bold' .* and plugin 'builtin'"):
        registry.get("algorithm", "dpo")
    assert registry.find("algorithm", "sft").plugin.name == "builtin"


# Which plugins take part


@pytest.mark.parametrize("chosen", ["good", "align-good", " good , "])
def test_a_plugin_left_out_is_not_imported_and_is_named_where_it_is_missed(make: Make, chosen: str) -> None:
    registry = make({"good": REWARD.format(name="brevity"), "other": REWARD.format(name="slowness")}, subset=chosen)
    assert theirs(registry) == ["brevity"] and "stranger_other" not in sys.modules
    assert "dpo" in registry.names("algorithm"), "align's own always take part"
    with pytest.raises(AlignError, match=r"'other' .* is left out by ALIGN_PLUGINS"):
        registry.get("reward", "slowness")


def test_none_but_ours(make: Make) -> None:
    registry = make({"good": REWARD.format(name="brevity")}, subset="")
    assert theirs(registry) == []


def test_the_subset_must_be_installed(make: Make) -> None:
    with pytest.raises(AlignError, match=r"names 'god', which is not installed\n    did you mean 'good'"):
        make({"good": ""}, subset="god").names("reward")


def test_the_environment_chooses(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGN_PLUGINS", "")
    assert theirs(make({"good": REWARD.format(name="brevity")})) == []


def test_asking_for_one_kind_calls_no_other(make: Make) -> None:
    source = "called = []\n" + "".join(
        f"@hookimpl\ndef register_{kind}s(register): called.append('{kind}')\n"
        for kind in ("reward", "algorithm", "rule")
    )
    registry = make({"noisy": source})
    registry.names("reward")
    registry.names("reward")
    assert sys.modules["stranger_noisy"].called == ["reward"]


def test_what_is_installed_is_known_without_importing_it(make: Make) -> None:
    registry = make({"bad": SYSTEM_EXIT})
    assert [(p.name, p.distribution, p.version) for p in registry.hooks.installed()][1:] == [
        ("bad", "align-bad", "1.0")
    ]
    assert "stranger_bad" not in sys.modules


# Every other hook


@pytest.mark.parametrize(
    ("hook", "kind"),
    [
        ("register_formats", "format"),
        ("register_generators", "generator"),
        ("register_evals", "eval"),
        ("register_strategies", "strategy"),
        ("register_loggers", "logger"),
        ("register_rules", "rule"),
    ],
)
def test_every_kind_registers(make: Make, hook: str, kind: str) -> None:
    registry = make({"mine": f"@hookimpl\ndef {hook}(register): register('mine', 'a:B')"})
    assert registry.find(kind, "mine").plugin.name == "mine"


def test_register_commands(make: Make) -> None:
    registry = make({"mine": "@hookimpl\ndef register_commands(cli): cli.command()(lambda: None)"})
    (name,) = registry.names("command")
    assert isinstance(registry.get("command", name), click.Command)


RUN = SimpleNamespace(output="run", project=None)
HARDWARE, FOOTPRINT = Hardware("cpu", 4, 1, 2**30), Footprint(2**20, 0)


def test_choose_strategy_asks_strangers_first_and_align_last(make: Make) -> None:
    registry = make(
        {
            "a": "@hookimpl\ndef choose_strategy(hardware): return 'mine' if hardware.devices == 3 else None",
            "b": "@hookimpl\ndef choose_strategy(footprint): return None",
        }
    )
    assert registry.first("choose_strategy", hardware=Hardware("cpu", 3, 1, 2**30), footprint=FOOTPRINT) == "mine"
    assert registry.first("choose_strategy", hardware=HARDWARE, footprint=FOOTPRINT) == "ddp"


def test_check_run_collects_and_names_who_failed(make: Make) -> None:
    registry = make(
        {
            "a": "@hookimpl\ndef check_run(run): return [align.Problem(run.output, 'is odd')]",
            "b": "@hookimpl\ndef check_run(run, hardware): return None",
        }
    )
    assert [str(p) for p in registry.collect("check_run", run=RUN, hardware=HARDWARE)] == ["run\n    is odd"]


@pytest.mark.parametrize("failure", ["1 / 0", "import sys; sys.exit(1)"])
def test_make_callbacks_that_fails_is_attributed(make: Make, failure: str) -> None:
    registry = make({"bad": f"@hookimpl\ndef make_callbacks(run):\n    {failure}"})
    with pytest.raises(AlignError, match=r"plugin 'bad' \(align-bad 1.0\) failed in make_callbacks: "):
        registry.collect("make_callbacks", run=None)


def test_make_callbacks_joins_what_plugins_give(make: Make) -> None:
    source = "@hookimpl\ndef make_callbacks(run): return [run, '{0}']"
    found = make({name: source.format(name) for name in "ab"}).collect("make_callbacks", run="run")
    assert sorted(found) == ["a", "b", "run", "run"]


def test_an_align_error_of_a_plugin_passes_as_it_is(make: Make) -> None:
    registry = make({"a": "@hookimpl\ndef check_run(run): raise align.AlignError('no licence', 'buy one')"})
    with pytest.raises(AlignError, match=r"^no licence\n    buy one$"):
        registry.collect("check_run", run=None, hardware=None)


@pytest.mark.parametrize(
    ("hook", "arguments"),
    [
        ("run_started", {"run": RUN, "directory": Path()}),
        ("rollouts_scored", {"run": RUN, "phase": 0, "rollouts": []}),
        ("run_finished", {"run": RUN, "directory": Path(), "results": []}),
    ],
)
def test_a_notice_reaches_everyone_and_its_failure_is_logged(
    make: Make, caplog: pytest.LogCaptureFixture, hook: str, arguments: dict[str, Any]
) -> None:
    source = "heard = []\n@hookimpl\ndef {}(run):\n    heard.append(run)\n    raise SystemExit(7)"
    registry = make({"a": source.format(hook), "b": source.format(hook)})
    with caplog.at_level(logging.ERROR, "align"):
        registry.notify(hook, **arguments)
    assert [sys.modules[f"stranger_{name}"].heard for name in "ab"] == [[RUN], [RUN]]
    assert f"plugin 'a' (align-a 1.0) failed in {hook}" in caplog.text and "SystemExit: 7" in caplog.text


def test_the_built_ins_are_sound() -> None:
    """What ships has no fault, and every setting a description."""
    from align.core.plugin_system.registry import registry

    assert [str(p) for p in examine(registry) if "(align-llm " in p.where or "(align-llm " in p.what] == []
