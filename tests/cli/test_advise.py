"""``align advise`` as a user meets it: what goes in, what comes out, how it ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import align
from align.cli import main
from align.cli.advise import advise
from align.core.config import run_file, yaml_loader
from align.core.util.detect_hardware import parsed
from align.schemas.advice import Advice
from align.schemas.project import Project
from tests.core.runs import write_rows

FORM = """\
description: Reports are made of letters.
behaviour: {rules_count: 27}
data:
  - kind: sft_pairs
    size: {rows: 14000}
evals: {baseline: 0.8, target: 0.95}
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("brief.yaml").write_text(FORM)
    return tmp_path


def run(*arguments: str, stdin: str | bytes | None = None) -> Result:
    done = CliRunner().invoke(main, ["advise", *arguments], input=stdin)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done


def advice(*arguments: str, stdin: str | None = None) -> Advice:
    done = run(*arguments, "--format", "json", stdin=stdin)
    assert done.exit_code in (0, 1, 3), done.output
    return Advice.model_validate_json(done.stdout)


def test_a_form_is_advised_and_every_reason_quotes_it() -> None:
    done = run("brief.yaml")
    assert done.exit_code == 0, done.output
    assert done.output.startswith("What was understood\n") and "\nPost-training  confidence" in done.output
    assert "“rules_count: 27”  brief.yaml line 2" in done.output
    assert "rows_count" not in done.output


def test_two_runs_give_the_same_bytes() -> None:
    for format_ in ("json", "text", "markdown", "html", "sarif", "github"):
        assert (
            run("brief.yaml", "--format", format_).stdout_bytes == run("brief.yaml", "--format", format_).stdout_bytes
        )


def test_free_words_from_a_file_the_command_line_and_standard_input_are_one() -> None:
    words = "One answer must keep 27 rules at the same time. We have 14,000 examples with the answer wanted."
    Path("brief.md").write_text(words)
    of_file, of_option, of_stdin = advice("brief.md"), advice("--text", words), advice("-", stdin=words)
    assert of_file.primary == "post_training"
    assert of_file.reasons == of_option.reasons == of_stdin.reasons
    assert any("27 rules" in quote.quote for reason in of_file.reasons for quote in reason.quotes)


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["brief.yaml"], 0),
        (["brief.yaml", "--fail-on", "warning"], 1),
        (["brief.yaml", "--fail-on", "warning", "--exit-zero"], 0),
        (["--text", "hello"], 3),
        (["--text", "hello", "--fail-on", "never"], 3),
        (["--text", "hello", "--exit-zero"], 0),
        (["blocked.yaml"], 1),
        (["blocked.yaml", "--fail-on", "never"], 0),
        (["blocked.yaml", "--exit-zero"], 0),
        (["none.yaml"], 2),
        (["wrong.yaml"], 2),
        ([], 2),
        (["brief.yaml", "--text", "both"], 2),
        (["brief.yaml", "--format", "pdf"], 2),
        (["brief.yaml", "--what-if", "x"], 2),
        (["brief.yaml", "--why-not", "magic"], 2),
        (["-", "--ask"], 2),
    ],
)
def test_how_it_ends(arguments: list[str], status: int) -> None:
    Path("blocked.yaml").write_text("knowledge: {changes: daily}\nrequested: continual_pretraining\ndata: []\n")
    Path("wrong.yaml").write_text("knowledge: {changes: hourly}\nbehavior: {}\n")
    assert run(*arguments).exit_code == status


def test_mistakes_in_a_form_come_all_at_once_with_their_lines() -> None:
    Path("wrong.yaml").write_text("knowledge: {changes: hourly}\nbehavior: {}\n")
    said = run("wrong.yaml").output
    assert "wrong.yaml line 1: knowledge.changes" in said and "'daily'" in said
    assert "wrong.yaml line 2: behavior" in said and "did you mean 'behaviour'?" in said


def test_what_is_insufficient_asks(here: Path) -> None:
    found = advice("--text", "hello")
    assert found.primary == "insufficient" and found.missing
    assert run("--text", "hello").output.index("not stated") < len("What was understood") + 5


def test_init_writes_a_form_once(here: Path) -> None:
    done = run("init", "new.yaml")
    assert done.exit_code == 0 and "align advise new.yaml" in done.output
    assert run("new.yaml").exit_code == 3  # it says nothing yet
    again = run("init", "new.yaml")
    assert again.exit_code == 2 and "is there already" in again.output
    assert run("init").exit_code == 2 and Path("brief.yaml").read_text() == FORM
    assert "every field with what it means" in run("init", "--help").output


def test_files_are_counted_and_beat_what_is_claimed(here: Path) -> None:
    rows = write_rows("sft", here / "rows.jsonl", 60)
    found = advice("brief.yaml", "--data", str(rows))
    (need,) = [need for need in found.data if need.need == "sft_pairs"]
    assert (need.given, need.verdict) == (60, "thin")
    assert any("14,000" in c.dropped or "14000" in c.dropped for c in found.conflicts)
    (held,) = [need for need in advice("brief.yaml", "--data", f"eval_set={rows}").data if need.need == "eval_set"]
    assert held.given == 60
    named = FORM.replace("size: {rows: 14000}", "size: {rows: 14000}\n    path: rows.jsonl")
    Path("named.yaml").write_text(named)
    (need,) = [need for need in advice("named.yaml").data if need.need == "sft_pairs"]
    assert need.given == 60
    Path("named.yaml").write_text(named.replace("rows.jsonl", "gone.jsonl"))
    assert any("gone.jsonl is not there" in said for said in advice("named.yaml").not_understood)
    assert "no kind of data" in run("brief.yaml", "--data", "pairs=rows.jsonl").output
    assert run("brief.yaml", "--data", "gone.jsonl").exit_code == 2


def test_hardware_of_a_file_and_of_this_machine(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("gpus.yaml").write_text("hardware: {gpus: 2, memory_gb: 80}\n")
    Path("sized.yaml").write_text(FORM + "model: {params_b: 8}\n")
    hardware = advice("sized.yaml", "--hardware", "gpus.yaml").hardware
    assert hardware is not None and hardware.capacity_gb == 80 and hardware.chosen is not None
    Path("wrong.yaml").write_text("{gpus: -2}\n")
    assert "wrong.yaml: gpus" in run("brief.yaml", "--hardware", "wrong.yaml").output
    tool = here / "bin" / "nvidia-smi"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\necho '81559, NVIDIA H100 80GB HBM3'\necho '81559, NVIDIA H100 80GB HBM3'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:/usr/bin:/bin")
    run("brief.yaml", "--hardware", "auto", "--save", "filled.yaml")
    from align.core.config.project_file import read

    found = read("filled.yaml", bytes).project.hardware
    assert (found.gpus, found.memory_gb, found.gpu) == (2, 85.5, "NVIDIA H100 80GB HBM3")
    tool.write_text("#!/bin/sh\nexit 9\n")
    run("brief.yaml", "--hardware", "auto", "--save", "none.yaml")
    assert read("none.yaml", bytes).project.hardware.gpus == 0


def test_what_nvidia_smi_says_by_hand() -> None:
    assert parsed("24564, NVIDIA GeForce RTX 4090\n[N/A], broken\n") == [(25.8, "NVIDIA GeForce RTX 4090")]


def test_asking_and_replaying_come_to_the_same(here: Path) -> None:
    asked = run("--ask", "--save", "filled.yaml", "--format", "json", stdin="\n27\n" * 20)
    assert "How many" in asked.stderr and "(empty: I do not know) > " in asked.stderr
    assert "\n  2  it should keep to rules, or to a fixed form (e.g. each letter must" in asked.stderr
    first = Advice.model_validate_json(asked.stdout)
    again = advice("filled.yaml")
    assert (first.primary, first.plan, first.companions) == (again.primary, again.plan, again.companions)
    Path("answers.yaml").write_text("behaviour.rules_count: 27\ndata.sft_pairs.rows: 5000\nmodel.params_b: null\n")
    replayed = advice("--ask", "--answers", "answers.yaml")
    assert replayed.primary == "post_training"
    assert any(quote.source == "answers" for reason in replayed.reasons for quote in reason.quotes)
    Path("answers.yaml").write_text("rules: 27\n")
    assert run("--ask", "--answers", "answers.yaml").exit_code == 2


def test_an_answer_that_is_none_is_asked_again_and_the_end_of_input_is_unknown() -> None:
    done = run("--ask", stdin="rubbish\n")
    assert done.exit_code == 3 and ("one of:" in done.stderr or "a number:" in done.stderr)


def test_the_filled_form_is_a_form(here: Path) -> None:
    Path("words.md").write_text("One answer must keep 27 rules. We have 14,000 examples with the answer wanted.")
    assert run("words.md", "--save", "filled.yaml").exit_code in (0, 1)
    filled = yaml_loader.read(Path("filled.yaml").read_text(), "filled.yaml").values
    assert Project.model_validate(filled).behaviour.rules_count == 27
    assert advice("filled.yaml").primary == advice("words.md").primary
    refused = run("words.md", "--save", "filled.yaml")
    assert refused.exit_code == 2 and "--force" in refused.output
    assert run("words.md", "--save", "filled.yaml", "--force").exit_code in (0, 1)


def test_words_too_long_for_a_form_are_left_out_of_it(here: Path) -> None:
    Path("long.md").write_text("One answer must keep 27 rules. We have 14,000 examples of it. " + "It is so. " * 30_000)
    assert run("long.md", "--save", "filled.yaml", "--emit", "run.yaml").exit_code in (0, 1)
    assert advice("filled.yaml").primary == advice("long.md").primary
    project = run_file.load("run.yaml").project
    assert project is not None and project.description is None and project.behaviour.rules_count == 27


def test_the_run_file_loads_and_is_not_written_over(here: Path) -> None:
    done = run("brief.yaml", "--emit", "run.yaml")
    assert done.exit_code == 0 and "align train run.yaml --check" in done.stderr
    made = run_file.load("run.yaml")
    assert made.project is not None and made.project.behaviour.rules_count == 27
    assert Path("run.yaml").read_text().startswith("# align train run.yaml --check\n#\n# Training is the answer")
    assert run("brief.yaml", "--emit", "run.yaml").exit_code == 2
    rag = run("--text", "Prices change daily and each answer must cite its source.", "--emit", "rag.yaml")
    assert rag.exit_code == 2 and "the advice is rag" in rag.stderr and not Path("rag.yaml").exists()
    assert "\nRetrieval (RAG)" in rag.stdout  # the advice is given all the same


@pytest.mark.parametrize("option", ["--output", "--save", "--emit"])
def test_what_cannot_be_written_is_said(option: str) -> None:
    Path("file").write_text("")
    done = run("brief.yaml", option, "file/below.yaml")
    assert done.exit_code == 2 and "file/below.yaml\n    cannot be written: " in done.stderr


@pytest.mark.parametrize(("format_", "begins"), [("html", "<!doctype html>"), ("sarif", "{"), ("github", "::notice ")])
def test_output_goes_to_a_file(format_: str, begins: str, here: Path) -> None:
    done = run("brief.yaml", "--format", format_, "--output", "advice.out")
    assert done.stdout == "" and Path("advice.out").read_text().startswith(begins)
    assert run("brief.yaml", "--format", format_, "--output", "advice.out").exit_code == 0  # it may be written again


def test_findings_of_a_file_point_into_it() -> None:
    Path("blocked.yaml").write_text("requested: continual_pretraining\nknowledge:\n  changes: daily\ndata: []\n")
    (result, *_) = json.loads(run("blocked.yaml", "--format", "sarif").stdout)["runs"][0]["results"]
    place = result["locations"][0]["physicalLocation"]
    assert (result["ruleId"], place["artifactLocation"]["uri"]) == ("requested-differs", "blocked.yaml")
    assert place["region"]["startLine"] in (1, 3, 4)
    assert "file=blocked.yaml,line=" in run("blocked.yaml", "--format", "github").stdout


def test_why_not_and_what_if() -> None:
    done = run("brief.yaml", "--why-not", "rag")
    assert done.exit_code == 0 and "What supports it: no known fact" in done.output
    assert "sft is advised." in run("brief.yaml", "--why-not", "sft").output
    done = run("brief.yaml", "--what-if", "knowledge.changes=daily", "--what-if", "knowledge.source=proprietary")
    assert done.exit_code == 0 and "→" in done.output and "rag" in done.output
    assert "Nothing would change." in run("brief.yaml", "--what-if", "constraints.budget_usd=1").output
    told = json.loads(run("brief.yaml", "--what-if", "knowledge.changes=daily", "--format", "json").stdout)
    assert told["what_if"] == ["knowledge.changes=daily"] and told["differences"][0]["now"]
    assert Advice.model_validate(told["advice"]).primary in ("rag", "post_training")
    assert run("brief.yaml", "--what-if", "knowledge.changes=daily", "--format", "html").exit_code == 2


def test_thresholds_of_ones_own() -> None:
    Path("own.yaml").write_text("many_rules: {value: 50, source: ours}\n")
    before, after = advice("brief.yaml"), advice("brief.yaml", "--thresholds", "own.yaml")
    assert "R-POST-1" in [reason.rule for reason in before.reasons]
    assert "R-POST-1" not in [reason.rule for reason in after.reasons]
    assert before.provenance.thresholds != after.provenance.thresholds
    Path("own.yaml").write_text("many_rule: {value: 50}\n")
    assert "did you mean 'many_rules'?" in run("brief.yaml", "--thresholds", "own.yaml").output


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=300) | st.text(max_size=300).map(lambda text: text.encode("utf-8", "replace")))
def test_any_bytes_end_without_a_traceback(raw: bytes) -> None:
    done = run("-", stdin=raw)
    assert done.exit_code in (0, 1, 2, 3) and "Traceback" not in done.output


KEYS = st.sampled_from([*Project.model_fields, "rules_count", "nonsense"])
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(["daily", "sft"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS | st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(KEYS, VALUES, max_size=4))
def test_any_form_ends_without_a_traceback(values: dict[str, Any]) -> None:
    Path("any.json").write_text(json.dumps(values))
    done = run("any.json")
    assert done.exit_code in (0, 1, 2, 3) and "Traceback" not in done.output


def test_every_option_is_in_the_manuals() -> None:
    docs = Path(__file__).parents[2] / "docs"
    pages = " ".join((docs / name).read_text() for name in ("advise.md", "measuring.md", "llm_parser.md"))
    options = [option for parameter in advise.params for option in parameter.opts if option.startswith("--")]
    assert len(options) > 20
    assert [option for option in options if option not in pages] == []


def test_a_model_that_is_here_is_as_large_as_its_config_says(tiny_model_dir: Path) -> None:
    Path("brief.yaml").write_text(FORM + f"model: {{name: {tiny_model_dir}}}\n")
    for found in (advice("brief.yaml"), advice("--text", "One answer keeps 27 rules.", "--model", str(tiny_model_dir))):
        assert "model.name" not in [question.field for question in found.missing]
    Path("torn").mkdir()
    Path("torn/config.json").write_text("{")
    assert "model.name" in [question.field for question in advice("brief.yaml", "--model", "torn").missing]


def test_what_if_says_that_the_answer_stays() -> None:
    assert (
        "primary     post_training, as before" in run("brief.yaml", "--what-if", "behaviour.output_format=fixed").output
    )


def test_what_scores_is_no_kind_of_data() -> None:
    words = run("brief.yaml", "--why-not", "grpo").output
    assert "prompts without answers and a program can check an answer" in words


def test_a_line_is_named_for_what_stands_within_a_body_of_data() -> None:
    places = {q.quote: q.source for reason in advice("brief.yaml").reasons for q in reason.quotes}
    assert places["rows: 14000"] == "brief.yaml line 5"


def test_what_is_passed_over_of_a_long_brief_is_said(tmp_path: Path) -> None:
    (tmp_path / "long.md").write_text("The prices change daily. " * 4000)
    (told,) = advice(str(tmp_path / "long.md")).not_understood
    assert told == "of 100,000 characters only the first 60,000 and the last 20,000 were read"


def test_a_rule_that_cannot_be_loaded_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from align.api import advising as case

    usable = dict(case.rules())
    usable.pop("R-POST-1")
    monkeypatch.setattr(case, "rules", lambda: usable)
    left_out = "rule R-POST-1 cannot be loaded and was left out: align plugins doctor"
    assert left_out in advice("brief.yaml").not_understood


@pytest.mark.parametrize("shared", [True, False])
def test_rows_of_the_evaluation_among_those_to_learn_from_stop_a_launch(shared: bool) -> None:
    def rows(words: str) -> str:
        turns = (
            {"role": "user", "content": f"{words} {{}}, please, in one short line?"},
            {"role": "assistant", "content": "Yes."},
        )
        return "".join(json.dumps({"messages": turns}).replace("{}", str(i)) + "\n" for i in range(60))

    Path("train.jsonl").write_text(rows("What would you say of number"))
    Path("exam.jsonl").write_text(rows("What would you say of number" if shared else "Who has ever counted up to"))
    Path("brief.yaml").write_text(FORM.replace("size: {rows: 14000}", "path: train.jsonl"))
    found = advice("brief.yaml", "--data", "eval_set=exam.jsonl")
    assert ("contamination" in {warning.id for warning in found.warnings}) is shared


def test_a_fact_is_corrected_and_the_saved_form_has_it() -> None:
    Path("words.md").write_text("27 rules must hold at the same time. We have 14,000 labelled examples.")
    corrections = ["--set", "behaviour.rules_count=4", "--set", "data.0.kind=preference"]
    corrected = advice("words.md", *corrections, "--save", "form.yaml")
    settings = [fact.setting for fact in corrected.understood]
    assert "behaviour.rules_count=4" in settings and "data.0.kind=preference_pairs" in settings
    assert not corrected.conflicts
    saved = advice("form.yaml")
    assert (saved.primary, [s.stage for s in saved.plan]) == (corrected.primary, [s.stage for s in corrected.plan])
    by_name = align.advise(Path("words.md"), settings={"behaviour.rules_count": 4, "data.0.kind": "preference"})
    assert [fact.setting for fact in by_name.understood] == settings


def test_wrong_corrections_are_named_all_at_once() -> None:
    done = run("brief.yaml", "--set", "behaviour.rule_count=4", "--set", "data.0.kind=sft_pear")
    assert done.exit_code == 2 and "did you mean 'rules_count'?" in done.output
    assert "did you mean 'sft_pairs'?" in done.output


def test_a_pipe_gets_unbroken_lines_unless_columns_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    assert max(map(len, run("brief.yaml").output.splitlines())) > 120
    monkeypatch.setenv("COLUMNS", "70")
    prose = [line for line in run("brief.yaml").output.splitlines() if "=" not in line]
    assert max(map(len, prose)) <= 70
