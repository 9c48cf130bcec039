"""The suites that come with align: each file is one, its evals' settings are accepted, and 'unseen' stays apart."""

from __future__ import annotations

import pytest

from align.core.config.suite_file import load_suite, named_suites
from align.core.config.yaml_loader import read
from align.core.plugin_system.registry import registry
from align.schemas.evals import Suite

NAMES = ("chat", "code", "instruction", "knowledge", "math", "tools", "truth_safety", "unseen")


def suite(name: str) -> Suite:
    document = read(named_suites()[name], name)
    assert not document.problems
    return Suite.model_validate(document.values)


def test_all_domains_have_a_suite() -> None:
    assert tuple(sorted(named_suites())) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_each_is_a_suite_whose_evals_accept_their_settings(name: str) -> None:
    known = registry.working("eval")
    evals = suite(name).evals
    assert len({each.name or each.type for each in evals}) == len(evals)
    for each in evals:
        if each.type in known:
            known[each.type].Config.model_validate(each.settings)
    if all(each.type in known for each in evals):
        made, loaded = load_suite(name)
        domains = {each.eval.domain for each in loaded}
        assert made.name.replace(" and ", "_") == name
        assert name == "unseen" or domains == {name}


@pytest.mark.parametrize("name", NAMES)
def test_each_says_what_the_user_provides(name: str) -> None:
    assert "# You provide: " in named_suites()[name]


def test_unseen_shares_no_eval_with_the_others() -> None:
    others = {each.type for name in NAMES if name != "unseen" for each in suite(name).evals}
    assert not others & {each.type for each in suite("unseen").evals}
