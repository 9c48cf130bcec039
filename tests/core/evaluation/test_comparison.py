"""Two stored runs against a policy: what is comparable, what the verdict is, and what CI is told."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner

from align import AlignError, gate, gate_calibrate, gate_power
from align.cli.eval import evaluation
from align.cli.gate import gate as command
from align.core.config.suite_file import load_policy
from align.core.evaluation.junit import junit
from align.core.plugin_system import registry
from align.core.plugin_system.registry import Offer
from align.core.report.gate_view import GateView
from align.schemas.evals import GatePolicy
from align.testing import ScriptedModel
from tests.core.evaluation.stored_runs import Numbered, accurate, store

LABELS: dict[str, dict[str, Any]] = {"a": {"count": 800}, "b": {"count": 800}, "c": {"count": 800}}
POLICY = GatePolicy.model_validate(
    {"domains": {"math": {"margin": 0.05, "evals": {"a": 1}}, "chat": {"margin": 0.05, "evals": {"b": 1}}}}
)


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Register the eval that the runs were measured with."""
    offers = dict(registry.registry.offers("eval"))
    plugin = registry.registry.hooks.plugins()[0]
    offers["numbered"] = [Offer("eval", "numbered", plugin, Numbered)]
    monkeypatch.setitem(registry.registry._offers, "eval", offers)
    yield


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """Measure the baseline: 60 % right everywhere."""
    return store(tmp_path / "base", accurate({"a": 0.6, "b": 0.6, "c": 0.6}), LABELS).directory


def measured(tmp_path: Path, name: str, rates: dict[str, float], **how: Any) -> Path:
    return store(tmp_path / name, accurate(rates, **how), LABELS).directory


def test_a_model_damaged_in_one_domain_is_caught_and_named(base: Path, tmp_path: Path) -> None:
    damaged = measured(tmp_path, "damaged", {"a": 0.9, "b": 0.5, "c": 0.6})
    report = gate(base, damaged, POLICY)
    assert (report.outcome, report.status) == ("regressed", 1)
    assert report.result is not None
    assert report.result.blocking == ("chat",)
    verdicts = {unit.name: unit.verdict for unit in report.units()}
    assert verdicts == {"math": "improved", "chat": "regressed", "a": "improved", "b": "regressed", "c": "inconclusive"}
    chat = next(unit for unit in report.units() if unit.name == "chat")
    rows = {row.item_id: row.score for row in report.baseline.rows["b"]}
    assert chat.comparison.difference == pytest.approx(
        sum(row.score - rows[row.item_id] for row in report.candidate.rows["b"]) / 800
    )
    flips = report.flips["b"]
    assert flips and all(flip.change == -1 for flip in flips)
    assert flips[0].candidate == [["wrong"]] and flips[0].baseline == [[flips[0].target]]


def test_an_unchanged_model_passes_and_a_retrained_one_is_no_regression(base: Path, tmp_path: Path) -> None:
    same = gate(base, measured(tmp_path, "same", {"a": 0.6, "b": 0.6, "c": 0.6}), POLICY)
    assert (same.outcome, same.status) == ("pass", 0)
    noisy = measured(tmp_path, "noisy", {"a": 0.6, "b": 0.6, "c": 0.6}, noise="seed 1", disagreement=0.2)
    retrained = gate(base, noisy, POLICY)
    assert retrained.outcome in ("pass", "inconclusive")
    assert not any(unit.verdict == "regressed" for unit in retrained.units())


def test_a_domain_may_be_called_as_its_eval(base: Path, tmp_path: Path) -> None:
    policy = GatePolicy.model_validate({"domains": {"a": {"margin": 0.05, "evals": {"a": 1, "b": 1}}}})
    report = gate(base, measured(tmp_path, "damaged", {"a": 0.4, "b": 0.4, "c": 0.6}), policy)
    assert report.result is not None
    assert (report.status, report.result.blocking) == (1, ("domain a",))
    assert [unit.name for unit in report.units()] == ["domain a", "a", "b", "c"]


def test_a_loss_on_the_watch_list_warns_and_blocks_where_the_policy_says_so(base: Path, tmp_path: Path) -> None:
    worse = measured(tmp_path, "worse", {"a": 0.6, "b": 0.6, "c": 0.45})
    report = gate(base, worse, POLICY)
    assert report.outcome == "pass"
    assert "c: a clear loss on the watch list" in report.warnings
    strict = gate(base, worse, POLICY.model_copy(update={"on_watch": "fail"}))
    assert (strict.outcome, strict.status) == ("regressed", 1)
    assert strict.result is not None and strict.result.blocking == ("c",)
    without = gate(base, worse, POLICY.model_copy(update={"watch": [], "on_watch": "fail"}))
    assert without.outcome == "pass"


def test_safety_is_held_to_its_margin(base: Path, tmp_path: Path) -> None:
    policy = GatePolicy.model_validate({"safety": {"c": 0.04}})
    assert gate(base, measured(tmp_path, "worse", {"a": 0.6, "b": 0.6, "c": 0.5}), policy).outcome == "regressed"
    assert gate(base, measured(tmp_path, "same", {"a": 0.1, "b": 0.6, "c": 0.6}), policy).outcome == "pass"


def test_a_margin_that_the_data_cannot_support_is_refused_with_the_rows_it_needs(tmp_path: Path) -> None:
    labels: dict[str, dict[str, Any]] = {"a": {"count": 60}}
    one = store(tmp_path / "one", accurate({"a": 0.5}), labels).directory
    other = store(tmp_path / "other", accurate({"a": 0.5}, noise="x", disagreement=0.5), labels).directory
    policy = GatePolicy.model_validate({"domains": {"math": {"margin": 0.01, "evals": {"a": 1}}}})
    report = gate(one, other, policy)
    assert (report.outcome, report.status) == ("refused", 3)
    (domain, _) = report.units()
    assert domain.support is not None and domain.support.rows_needed > 1000
    allowed = gate(one, other, policy.model_copy(update={"allow_underpowered": True}))
    assert (allowed.outcome, allowed.status) == ("inconclusive", 2)
    warned = policy.model_copy(update={"allow_underpowered": True, "on_inconclusive": "warn"})
    assert gate(one, other, warned).status == 0


def test_runs_on_other_items_or_with_other_settings_are_not_compared(base: Path, tmp_path: Path) -> None:
    few = store(tmp_path / "few", accurate({"a": 0.6, "b": 0.6, "c": 0.6}), {**LABELS, "b": {"count": 700}}).directory
    report = gate(base, few, POLICY)
    assert (report.outcome, report.status) == ("invalid", 3)
    assert any(problem.startswith("b: 700 of 800 items have the same prompt") for problem in report.problems)
    assert "the runs differ in b.settings" in report.problems
    missing = store(tmp_path / "missing", accurate({"a": 0.6}), {"a": LABELS["a"]}).directory
    assert "b was measured in one run only" in gate(base, missing, POLICY).problems


def test_an_incomplete_or_changed_run_is_no_side_of_a_gate(base: Path, tmp_path: Path) -> None:
    manifest = json.loads((base / "manifest.json").read_text(encoding="utf-8"))
    rows = (base / "rows.jsonl").read_bytes()
    (base / "rows.jsonl").write_bytes(rows[: len(rows) // 2])
    with pytest.raises(AlignError, match="is not what was written"):
        gate(base, base, POLICY)
    (base / "rows.jsonl").write_bytes(rows)
    manifest["complete"] = False
    (base / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(AlignError, match="damaged"):
        gate(base, base, POLICY)


def test_more_invalid_rows_are_a_regression(base: Path, tmp_path: Path) -> None:
    right = accurate({"a": 0.6, "b": 0.6, "c": 0.6})

    def silent(prompt: Any, seed: int) -> str:
        text = right._answer(prompt, seed)  # type: ignore[misc]
        return "" if text == "wrong" and int(str(prompt)[1:]) % 2 else text

    report = gate(base, store(tmp_path / "silent", ScriptedModel(silent), LABELS).directory, POLICY)
    assert report.outcome == "regressed"
    assert report.result is not None and report.result.blocking == ("invalid rows",)


def test_a_floor_holds_whatever_the_baseline(base: Path, tmp_path: Path) -> None:
    same = measured(tmp_path, "same", {"a": 0.6, "b": 0.6, "c": 0.6})
    assert gate(base, same, POLICY.model_copy(update={"floors": {"a": 0.5}})).outcome == "pass"
    report = gate(base, same, POLICY.model_copy(update={"floors": {"a": 0.7}}))
    assert report.outcome == "regressed"
    assert report.result is not None and report.result.blocking == ("floor of a",)


def test_samples_of_an_item_count_as_their_mean_and_clusters_widen_the_interval(tmp_path: Path) -> None:
    def error(name: str, cluster: int) -> float:
        labels = {"a": {"count": 400, "cluster": cluster}}
        one = store(tmp_path / f"{name}1", accurate({"a": 0.6}), labels).directory

        def by_block(prompt: Any, _seed: int) -> str:  # whole blocks of ten fail together
            number = str(prompt)[1:]
            return "wrong" if int(number) // 10 % 4 == 0 else number

        two = store(tmp_path / f"{name}2", ScriptedModel(by_block), labels).directory
        report = gate(one, two, GatePolicy.model_validate({"domains": {"d": {"margin": 0.5, "evals": {"a": 1}}}}))
        return next(iter(report.units())).comparison.standard_error

    assert error("clustered", 10) > 1.5 * error("single", 1)


def test_policies_that_do_not_fit_are_refused(base: Path) -> None:
    with pytest.raises(AlignError, match=r"names the eval 'z', which neither run has"):
        gate(base, base, GatePolicy.model_validate({"domains": {"d": {"margin": 0.1, "evals": {"z": 1}}}}))
    with pytest.raises(AlignError, match="has no gating domain"):
        gate(base, base, GatePolicy())


def write_policy(path: Path, margin: float = 0.05) -> Path:
    path.write_text(
        f"domains:\n  math: {{margin: {margin}, evals: {{a: 1}}}}\n  chat: {{margin: {margin}, evals: {{b: 1}}}}\n",
        encoding="utf-8",
    )
    return path


def test_the_command_ends_with_the_verdict_and_writes_what_ci_reads(base: Path, tmp_path: Path) -> None:
    policy = write_policy(tmp_path / "gate.yaml")
    damaged = measured(tmp_path, "damaged", {"a": 0.9, "b": 0.5, "c": 0.6})

    def run(*more: str) -> Any:
        arguments = ["--baseline", str(base), "--candidate", str(damaged), "--policy", str(policy), *more]
        return CliRunner().invoke(command, arguments)

    page = tmp_path / "gate.html"
    done = run("--json", str(tmp_path / "gate.json"), "--junit", str(tmp_path / "gate.xml"), "--html", str(page))
    assert done.exit_code == 1, done.output
    assert done.output.startswith("REGRESSED")
    report = json.loads((tmp_path / "gate.json").read_text(encoding="utf-8"))
    assert (report["outcome"], report["status"]) == ("regressed", 1)
    assert "Infinity" not in (tmp_path / "gate.json").read_text(encoding="utf-8")
    suite = ElementTree.parse(tmp_path / "gate.xml").getroot()
    failed = [case.get("name") for case in suite if case.find("failure") is not None]
    assert failed == ["gating chat"]
    assert suite.get("failures") == "1"
    text = page.read_text(encoding="utf-8")
    assert "<title>damaged against base</title>" in text
    assert "It is because of <bdi>chat</bdi>" in text
    view = GateView.read(tmp_path / "gate.json")
    assert [(unit.name, unit.verdict, unit.blocking) for unit in (*view.domains, *view.evals)] == [
        ("math", "improved", False),
        ("chat", "regressed", True),
        ("a", "improved", False),
        ("b", "regressed", False),
        ("c", "no clear change", False),
    ]
    assert {flip.eval for flip in view.flips} == {"a", "b"}


def test_scores_side_by_side_with_the_mean_win_rate(base: Path, tmp_path: Path) -> None:
    better = measured(tmp_path, "better", {"a": 0.9, "b": 0.6, "c": 0.3})
    done = CliRunner().invoke(evaluation, ["show", str(base), str(better), "--format", "json"])
    assert done.exit_code == 0, done.output
    ours, theirs = json.loads(done.output).values()
    assert theirs["a"] > ours["a"] and theirs["b"] == ours["b"] and theirs["c"] < ours["c"]
    assert (ours["mean win rate"], theirs["mean win rate"]) == (0.5, 0.5)  # one won, one tied, one lost
    shown = CliRunner().invoke(evaluation, ["show", str(base), str(better)])
    assert [line.split()[0] for line in shown.output.splitlines()] == ["eval", "a", "b", "c", "mean"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--baseline", "nowhere"], "--candidate"),
        (["--nonsense"], "No such option"),
        (["--baseline", "nowhere", "--candidate", "nowhere", "--policy", "nowhere.yaml"], "cannot be read"),
        (["power", "--policy", "nowhere.yaml"], "--baseline"),
        (["calibrate", "nowhere"], "needs two runs"),
    ],
)
def test_mistakes_of_the_user_end_with_status_4(arguments: list[str], message: str) -> None:
    done = CliRunner().invoke(command, arguments)
    assert done.exit_code == 4
    assert message in done.output


def test_power_says_what_a_margin_needs(base: Path) -> None:
    math, chat = gate_power(POLICY, base, disagreement=0.15)
    # Var = q = 0.15 per item; (1.6449 + 0.8416)^2 = 6.1826: n = 6.1826 * 0.15 / 0.05^2 = 371, as in the literature.
    assert (math.name, math.rows, math.rows_needed) == ("math", 800, 371)
    assert math.smallest_margin == pytest.approx((6.1826 * 0.15 / 800) ** 0.5, rel=1e-3)
    assert math.chance == pytest.approx(0.9776, abs=2e-3)  # Phi(0.05 / sqrt(0.15 / 800) - 1.6449) = Phi(2.0066)
    assert chat.rows_needed == math.rows_needed


def test_calibrate_refuses_one_run_given_twice(base: Path) -> None:
    with pytest.raises(AlignError, match="names a run twice"):
        gate_calibrate([base, base.parent / "." / base.name])


def test_calibrate_suggests_margins_that_reruns_pass(tmp_path: Path) -> None:
    rates = {"a": 0.6, "b": 0.6, "c": 0.6}
    runs = [measured(tmp_path, f"run{n}", rates, noise=str(n), disagreement=0.3) for n in range(3)]
    noise, policy = gate_calibrate(runs)
    by_name = {each.name: each for each in noise}
    assert set(by_name) == {"a", "b", "c", "domain custom"}
    # An item's answer is drawn anew in either run with 0.3 each; two draws disagree with 2 * 0.6 * 0.4.
    assert by_name["a"].disagreement == pytest.approx((1 - 0.7**2) * 0.48, abs=0.04)
    assert by_name["domain custom"].standard_error < by_name["a"].standard_error
    assert gate(runs[0], runs[1], policy).outcome in ("pass", "inconclusive")
    assert policy.domains["custom"].evals == {"a": 1.0, "b": 1.0, "c": 1.0}


def test_junit_shows_a_failed_check_without_a_lower_limit(base: Path, tmp_path: Path) -> None:
    def silent(prompt: Any, _seed: int) -> str:
        return "" if int(str(prompt)[1:]) < 80 else str(prompt)[1:]

    candidate = store(tmp_path / "silent", ScriptedModel(silent), LABELS).directory
    (case,) = [
        each
        for each in ElementTree.fromstring(junit(gate(base, candidate, POLICY)))
        if each.get("name") == "invalid rows"
    ]
    failure = case.find("failure")
    assert failure is not None and failure.get("message") == "0.1, accepted to 0.01"


def test_items_of_a_single_cluster_are_refused_in_words(tmp_path: Path) -> None:
    labels = {"a": {"count": 30, "cluster": 30}}
    one = store(tmp_path / "one", accurate({"a": 0.5}), labels).directory
    policy = GatePolicy.model_validate({"domains": {"d": {"margin": 0.1, "evals": {"a": 1}}}})
    report = gate(one, one, policy)
    assert (report.outcome, report.status) == ("invalid", 3)
    assert "shows no spread" in report.problems[0]


def test_an_eval_that_the_policy_leaves_out_makes_no_gate_invalid(base: Path, tmp_path: Path) -> None:
    other = {**LABELS, "c": {"count": 10}}
    candidate = store(tmp_path / "other", accurate({"a": 0.6, "b": 0.6, "c": 0.6}), other).directory
    assert gate(base, candidate, POLICY).outcome == "invalid"
    only = POLICY.model_copy(update={"watch": []})
    report = gate(base, candidate, only)
    assert (report.outcome, set(report.flips)) == ("pass", {"a", "b"})


def test_a_watched_eval_of_one_run_only_is_a_warning_and_a_gating_one_a_problem(base: Path, tmp_path: Path) -> None:
    fewer = {name: LABELS[name] for name in ("a", "b")}
    candidate = store(tmp_path / "fewer", accurate({"a": 0.6, "b": 0.6}), fewer).directory
    report = gate(base, candidate, POLICY)
    assert report.outcome == "pass" and "c was measured in one run only" in report.warnings
    watched = gate(base, candidate, POLICY.model_copy(update={"watch": ["c"]}))
    assert watched.outcome == "invalid" and watched.problems == ("c was measured in one run only",)


def test_a_floor_under_a_score_that_is_no_mean_is_refused(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Numbered, "is_mean", False)
    with pytest.raises(AlignError, match="has a floor for 'a', whose score is no mean"):
        gate(base, base, POLICY.model_copy(update={"floors": {"a": 0.5}}))


def test_a_second_start_of_a_complete_run_leaves_its_manifest(base: Path) -> None:
    before = (base / "manifest.json").read_bytes()
    store(base, accurate({"a": 0.6, "b": 0.6, "c": 0.6}), LABELS)
    assert (base / "manifest.json").read_bytes() == before


def test_a_metric_that_is_not_finite_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Numbered, "aggregate", lambda self, rows: {"score": math.nan})
    with pytest.raises(AlignError, match="aggregate gives score = nan"):
        store(tmp_path / "nan", accurate({"a": 0.6}), {"a": {"count": 3}})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("domains: {d: {margin: 0.1, evals: {a: 1}}}\nlength_ratio: [2, 1]\n", "must rise"),
        ("domains: {d: {margin: 0.1, evals: {a: 1}}}\nsafety: {a: 0.1}\n", "hold the eval 'a' twice"),
        ("domains: {d: {margin: 0.1, evals: {a: 1}}, e: {margin: 0.2, evals: {a: 1}}}\n", "hold the eval 'a' twice"),
    ],
)
def test_policies_that_contradict_themselves_are_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "gate.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(AlignError, match=message):
        load_policy(path)
