"""Run files: every problem at once with place, value and fix; stages over defaults; overrides; and back to YAML."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from align.core.config.run_file import dump, load, overriding
from align.core.config.yaml_loader import write
from align.schemas.errors import AlignError
from align.schemas.run import Adapter, Choice, Run, Train, Validation

Check = Callable[..., Run]

GOOD = "output: out\nmodel: {path: base}\ndata: {train: rows.jsonl}\nalgorithm: dpo\n"
STAGES = "output: out\nmodel: {path: base}\ndata: {train: rows.jsonl}\n"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Check:
    """``run(text, *overrides)`` loads a file ``run.yaml`` of that text."""
    monkeypatch.chdir(tmp_path)

    def loaded(text: str, *overrides: str) -> Run:
        Path("run.yaml").write_text(text)
        return load("run.yaml", overrides)

    return loaded


def said(run: Check, text: str, *overrides: str) -> str:
    with pytest.raises(AlignError) as raised:
        run(text, *overrides)
    return str(raised.value)


# What a run file means


def test_a_file_without_stages_is_one_stage_named_after_its_algorithm(run: Check) -> None:
    got = run(GOOD)
    assert [stage.name for stage in got.stages] == ["dpo"]
    assert got.stages[0].algorithm == Choice(type="dpo") and got.stages[0].data.train[0].path == "rows.jsonl"
    assert run(GOOD + "name: mine").stages[0].name == "mine"


def test_a_stage_is_laid_over_the_defaults_mapping_by_mapping(run: Check) -> None:
    got = run(
        STAGES
        + """
train: {num_train_epochs: 2, batch_size: 8}
algorithm: {type: dpo, beta: 0.3}
stages:
  - {name: a, train: {num_train_epochs: 3}, model: {adapter: {r: 4}}}
  - {name: b, algorithm: {loss_type: ipo}, model: {path: "stage:a"}}
  - {name: c, algorithm: sft, data: {train: [{path: x, weight: 2}, y]}}
"""
    )
    a, b, c = got.stages
    assert (a.train.num_train_epochs, a.train.batch_size, b.train.num_train_epochs) == (3, 8, 2)
    assert a.model.path == "base" and a.model.adapter == Adapter(r=4) and b.model.adapter is None
    assert a.algorithm == Choice(type="dpo", settings={"beta": 0.3})
    assert b.algorithm == Choice(type="dpo", settings={"beta": 0.3, "loss_type": "ipo"})
    assert c.algorithm == Choice(type="sft"), "another type is another thing"
    assert [source.path for source in c.data.train] == ["x", "y"], "lists are replaced"


HELD_OUT = """
data: {train: rows.jsonl, validation_fraction: 0.1}
train: {num_train_epochs: 3, max_grad_norm: 0.5}
validation: {eval_steps: 5}
algorithm: {type: dpo, beta: 0.3}
stages:
  - {name: a}
  - {name: b, data: {validation_fraction: null}, train: {num_train_epochs: null}, algorithm: {beta: null}}
"""


def test_null_in_a_stage_undoes_the_default_above(run: Check) -> None:
    a, b = run("output: out\nmodel: {path: base}\n" + HELD_OUT).stages
    assert (a.data.validation_fraction, a.train.num_train_epochs, a.validation.eval_steps) == (0.1, 3.0, 5)
    assert (b.data.validation_fraction, b.train.num_train_epochs, b.validation.eval_steps) == (0.0, 1.0, None)
    assert a.algorithm == Choice(type="dpo", settings={"beta": 0.3}) and b.algorithm == Choice(type="dpo")
    assert b.data.train[0].path == "rows.jsonl" and b.train.max_grad_norm == 0.5, "what stands beside it is left alone"


def test_null_undoes_a_whole_section(run: Check) -> None:
    text = "output: out\nmodel: {path: base}\n" + HELD_OUT
    a, b = run(
        text.replace("name: b, ", "name: b, validation: null, train: null, ").replace(
            ", train: {num_train_epochs: null}", ""
        )
    ).stages
    assert (a.validation.eval_steps, a.train.num_train_epochs, b.validation, b.train) == (5, 3.0, Validation(), Train())
    gone = said(run, text.replace("data: {validation_fraction: null}", "data: null"))
    assert "stages[1].data\n    is missing" in gone


def test_null_that_is_a_value_stays_one(run: Check) -> None:
    """``max_grad_norm: null`` is no clipping, not the default of 1."""
    text = "output: out\nmodel: {path: base}\n" + HELD_OUT
    _, b = run(text.replace("num_train_epochs: null", "max_grad_norm: null")).stages
    assert b.train.max_grad_norm is None
    text = STAGES.replace("path: base", "path: base, adapter: {r: 4}")
    a, b = run(text + "algorithm: sft\nstages: [{name: a}, {name: b, model: {adapter: null}}]\n").stages
    assert a.model.adapter == Adapter(r=4) and b.model.adapter is None


@pytest.mark.parametrize("key", ["data.validation_fraction", "stages.a.data.validation_fraction"])
def test_null_on_the_command_line_undoes_what_the_file_says(run: Check, key: str) -> None:
    (only,) = run(GOOD + "train: {num_train_epochs: 2}\n", "train.num_train_epochs=null").stages
    assert only.train.num_train_epochs == 1.0
    text = ("output: out\nmodel: {path: base}\n" + HELD_OUT).replace("data: {validation_fraction: null}, ", "")
    other = f"stages.{'b' if key == 'data.validation_fraction' else 'a'}.data.validation_fraction"
    fractions = [stage.data.validation_fraction for stage in run(text, f"{key}=null", f"{other}=0.2").stages]
    assert fractions == ([0.0, 0.2] if key == "data.validation_fraction" else [0.2, 0.1])
    assert run(text, "stages.b.algorithm.beta=null").stages[1].algorithm == Choice(type="dpo")


@pytest.mark.parametrize(
    "text", ["train: {num_train_epochs: }", "train: {num_train_epochs: null}", "optimizer: {weight_decay: ~}"]
)
def test_null_over_nothing_is_a_value_that_was_forgotten(run: Check, text: str) -> None:
    assert "is null; must be a number" in said(run, GOOD + text)
    assert "is null; must be a number" in said(run, STAGES + "stages:\n- {algorithm: dpo, " + text + "}")


def test_a_default_that_only_some_stages_read_is_theirs_alone(run: Check) -> None:
    text = (
        STAGES
        + "reference: {type: moving-average, ref_model_mixup_alpha: 0.2}\nstages: [{algorithm: sft}, {algorithm: dpo}]"
    )
    sft, dpo = run(text).stages
    assert (dpo.reference.type, dpo.reference.ref_model_mixup_alpha) == ("moving-average", 0.2)
    assert sft.reference.type == "auto"


def test_numbers_are_numbers_and_words_are_words(run: Check) -> None:
    got = run(GOOD + "optimizer: {learning_rate: 5e-7}\nloggers: [csv]\n", "output=no")
    assert got.stages[0].optimizer.learning_rate == 5e-7
    assert got.output == "no"


# Overrides


def test_overrides_reach_every_corner(run: Check) -> None:
    got = run(
        STAGES + "loggers: [csv, tensorboard]\nstages:\n- algorithm: sft\n- {name: second, algorithm: dpo}\n",
        "train.num_train_epochs=0.5",
        "model.adapter.r=4",
        "stages.second.algorithm.beta=0.2",
        "stages.0.train.num_train_epochs=2",
        "stages[0].data.train=[a.jsonl, {path: b.jsonl, weight: 2}]",
        "stages[0].data.train[0].weight=3",
        "loggers.1=wandb",
        "output=a=b",
    )
    first, second = got.stages
    assert (first.train.num_train_epochs, second.train.num_train_epochs, second.algorithm.settings) == (
        2,
        0.5,
        {"beta": 0.2},
    )
    assert second.model.adapter == Adapter(r=4)
    assert [(source.path, source.weight) for source in first.data.train] == [("a.jsonl", 3), ("b.jsonl", 2)]
    assert [logger.type for logger in first.loggers] == ["csv", "wandb"]
    assert got.output == "a=b"


def test_an_override_to_another_plugin_leaves_the_settings_of_the_first_behind(run: Check) -> None:
    assert run(GOOD, "algorithm.beta=0.2", "algorithm=sft").stages[0].algorithm == Choice(type="sft")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("num_train_epochs", "command line: num_train_epochs\n    is not an override\n    write KEY=VALUE"),
        ("=3", "command line: =3\n    is not an override\n    write KEY=VALUE"),
        ("train..max_steps=3", "command line: train..max_steps=3\n    is not an override\n    write KEY=VALUE"),
        ("train.num_train_epochs=-3", "command line: train.num_train_epochs\n    is -3; must be greater than 0"),
        ("train.num_train_epoch=3", "command line: train.num_train_epoch\n    is not a key here\n"
         "    did you mean 'num_train_epochs'?"),
        ("algorithm.bta=3", "command line: algorithm.bta\n    is not a key here\n    did you mean 'beta'?"),
        ("data.train.7.path=x", "command line: data.train.7.path\n    data.train has no '7'\n    give it in the file"),
        ("output.name=x", "command line: output.name\n    output has no 'name'\n    give it in the file"),
        ("stages.x.seed=1", "command line: stages.x.seed\n    stages has no 'x'\n    give it in the file"),
        ("loggers=[csv", "command line: loggers line 1\n    is not YAML"),
        ("train.num_train_epochs=.nan",
         "command line: train.num_train_epochs line 1\n    is .nan; must be a finite number\n"
         "    write one of ordinary size"),
    ],
)  # fmt: skip
def test_overrides_are_reported_like_the_file(run: Check, override: str, message: str) -> None:
    assert said(run, GOOD, override).startswith(message)


def test_an_override_that_no_stage_would_read_is_refused(run: Check) -> None:
    text = (
        STAGES
        + "stages: [{algorithm: sft, train: {num_train_epochs: 1}}, {algorithm: dpo, train: {num_train_epochs: 2}}]"
    )
    assert said(run, text, "train.num_train_epochs=3") == (
        "command line: train.num_train_epochs\n    is not read: every stage has its own\n"
        "    set stages.NAME.train.num_train_epochs, or remove it"
    )


# What is wrong is said, all at once, in file order


def test_every_problem_at_once_with_line_value_and_fix(run: Check) -> None:
    text = """\
output: out
modell: {path: base}
model: {path: base, dtype: float23, adapter: {r: 0, target_modules: 3}}
data:
  train: [{path: rows.jsonl, format: alpca}]
  max_lenght: 128
batch_size: 4
train:
  num_train_epochs: "2"
  max_steps: 10.5
  max_grad_norm: [1]
algorithm:
  type: dpo
  beta: -1
  bta: 2
loggers: [csv, {type: wanb}]
devices: {count: many, strategy: dpp}
seed: true
"""
    assert (
        said(run, text)
        == """\
run.yaml line 2: modell
    is not a key here
    did you mean 'model'?
run.yaml line 3: model.dtype
    is 'float23'; must be 'float32', 'bfloat16', 'float16' or 'float64'
    did you mean 'float32'?
run.yaml line 3: model.adapter.r
    is 0; must be greater than 0
run.yaml line 3: model.adapter.target_modules
    is 3; must be 'all-linear' or a list
run.yaml line 5: data.train[0].format
    no format is called 'alpca'
    did you mean 'alpaca'?
run.yaml line 6: data.max_lenght
    is not a key here
    did you mean 'max_length'?
run.yaml line 7: batch_size
    is not a key here
    write it as train.batch_size
run.yaml line 9: train.num_train_epochs
    is '2'; must be a number
run.yaml line 10: train.max_steps
    is 10.5; must be a whole number
run.yaml line 11: train.max_grad_norm
    is a list; must be a number
run.yaml line 14: algorithm.beta
    is -1; must be greater than 0
run.yaml line 15: algorithm.bta
    is not a key here
    did you mean 'beta'?
run.yaml line 16: loggers[1].type
    no logger is called 'wanb'
    did you mean 'wandb'?
run.yaml line 17: devices.count
    is 'many'; must be a whole number or 'auto'
run.yaml line 17: devices.strategy.type
    no strategy is called 'dpp'
    did you mean 'ddp'?
run.yaml line 18: seed
    is true; must be a whole number"""
    )


def test_what_is_missing_is_named_with_what_it_is_for(run: Check) -> None:
    assert (
        said(run, "model: {dtype: float32}\ndata: {max_length: 3}")
        == """\
run.yaml line 1: output
    is missing
    The run directory.
run.yaml line 1: model.path
    is missing
    A local directory, a hub id, or ``stage:NAME`` for what an earlier stage exported.
run.yaml line 1: algorithm
    is missing
run.yaml line 2: data.train
    is missing
    Training rows: a path, or a list of sources with weights."""
    )


def test_a_wrong_default_is_said_once_and_at_its_own_line(run: Check) -> None:
    text = (
        STAGES + "train: {num_train_epochs: -1}\nstages: [{algorithm: sft}, {algorithm: dpo, train: {batch_size: 0}}]"
    )
    assert (
        said(run, text)
        == """\
run.yaml line 4: train.num_train_epochs
    is -1; must be greater than 0
run.yaml line 5: stages[1].train.batch_size
    is 0; must be greater than 0"""
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD + "stages: []", "run.yaml line 5: stages\n    is a list; "),
        (GOOD + "stages: {a: 1}", "run.yaml line 5: stages\n    must be a list of stages"),
        (STAGES + "name: x\nstages: [{algorithm: sft}]", "run.yaml line 4: name\n    belongs to one stage"),
        (STAGES + "stages: [{algorithm: sft}, {algorithm: sft}]",
         "run.yaml line 4: stages[1].name\n    is 'sft', as an earlier stage's\n    give it another `name`"),
        (GOOD + "name: a/b", "run.yaml line 5: name\n    is 'a/b'; must be letters, digits, - and _"),
        (GOOD + "name: run.yaml", "run.yaml line 5: name\n    is 'run.yaml'; must be letters"),
        (STAGES + "stages:\n- algorithm: dpo\n  model: {path: 'stage:sft'}\n- algorithm: sft",
         "run.yaml line 6: stages[0].model.path\n    is 'stage:sft'; that stage does not come earlier"),
        (STAGES + "stages:\n- algorithm: sft\n- algorithm: dpo\n  model: {path: 'stage:stf'}",
         "run.yaml line 7: stages[1].model.path\n    is 'stage:stf'; no stage has that name\n    did you mean 'sft'?"),
        (STAGES + "algorithm: {beta: 0.2}", "run.yaml line 4: algorithm.type\n    is missing"),
        (STAGES + "algorithm: [dpo]", "run.yaml line 4: algorithm\n    is a list; must be a mapping"),
        (GOOD + "loggers: csv", "run.yaml line 5: loggers\n    is 'csv'; must be a list"),
        (GOOD + "train:", "run.yaml line 5: train\n    is null; must be a mapping"),
        (STAGES + "algorithm: {type: dpo, settings: {beta: 0.2}}", "run.yaml line 4: algorithm.settings\n    is not a"),
        (GOOD + "train: {max_steps: 1, max_steps: 2}",
         "run.yaml line 5: train.max_steps\n    stands a second time on line 5"),
        ("", "run.yaml\n    is not a mapping of keys to values"),
        ("- a", "run.yaml\n    is not a mapping of keys to values"),
        (GOOD + "data: [", "run.yaml line 5\n    is not YAML"),
    ],
)  # fmt: skip
def test_mistakes(run: Check, text: str, message: str) -> None:
    assert said(run, text).startswith(message)


def test_the_file_itself(run: Check, tmp_path: Path) -> None:
    with pytest.raises(AlignError, match=r"nowhere.yaml\n    cannot be read: No such file"):
        load("nowhere.yaml")
    with pytest.raises(AlignError, match="cannot be read: Is a directory"):
        load(tmp_path)
    Path("latin.yaml").write_bytes(b"output: out\nname: caf\xe9")
    with pytest.raises(AlignError, match=r"latin.yaml line 2\n    is not UTF-8"):
        load("latin.yaml")
    Path("long.yaml").write_text("#" * 300_000)
    with pytest.raises(AlignError, match="has 300000 bytes"):
        load("long.yaml")
    Path("bom.yaml").write_bytes(b"\xef\xbb\xbf" + GOOD.encode())
    assert load("bom.yaml").output == "out"


def test_a_secret_in_the_wrong_place_is_not_printed(run: Check) -> None:
    message = said(run, GOOD + "loggers: [{type: wandb, api_key: hunter2}]\ntrain: {num_train_epochs: hunter2}")
    assert "loggers[0].api_key\n    is not a key here" in message and message.count("hunter2") == 1


# Accepted but unread is refused

UNREAD = [
    ("reference: {ref_model_mixup_alpha: 0.3}",
     "reference.ref_model_mixup_alpha", "is read by reference type moving-average only"),
    ("reference: {type: copy, ref_model_sync_steps: 3}",
     "reference.ref_model_sync_steps", "is read by reference type moving-average only"),
    ("algorithm: sft\nreference: {type: copy}", "reference.type", "is not read: this algorithm uses no reference"),
    ("validation: {early_stopping_patience: 2}", "validation.early_stopping_patience",
     "is not read without data.validation or data.validation_fraction"),
    ("data: {train: r, stream_window: 5}", "data.stream_window", "is read with data.stream: true only"),
    ("data: {train: r, validation: v, validation_fraction: 0.1}", "data.validation_fraction",
     "is not read together with data.validation"),
    ("data: {train: {path: run.yaml, split: test}}", "data.train[0].split", "is read for the hub only"),
    ("data: {train: {path: ., subset: main}}", "data.train[0].subset", "is read for the hub only"),
    ("data: {train: {path: r, name: main}}", "data.train[0].name", "is read for held-out sources only"),
    ("model: {path: ., revision: main}", "model.revision", "is read for the hub only"),
    ("checkpoint: {export: best}", "checkpoint.export", "is best, and nothing is held out"),
    ("data: {train: r, stream: true, validation_fraction: 0.1}\ntrain: {max_steps: 1}\nalgorithm: pretrain",
     "data.validation_fraction", "is not read: a stream is never seen whole"),
    ("train: {max_skipped: 5}", "train.max_skipped", "is read with train.on_nonfinite: skip only"),
    ("schedule: {type: constant, min_lr_rate: 0.1}",
     "schedule.min_lr_rate", "is not read: a constant rate does not decay"),
    ("algorithm: {type: dpo, loss_type: hinge, label_smoothing: 0.1}", "algorithm.label_smoothing",
     "is not read by loss_type 'hinge'; it is read by sigmoid, robust, exo_pair"),
]  # fmt: skip


@pytest.mark.parametrize(("lines", "key", "why"), UNREAD)
def test_a_key_that_nothing_reads_is_refused(run: Check, lines: str, key: str, why: str) -> None:
    replaced = {line.split(":")[0] for line in lines.splitlines()}
    rest = "".join(line + "\n" for line in GOOD.splitlines() if line.split(":")[0] not in replaced)
    message = said(run, rest + lines)
    assert f": {key}\n    {why}" in message and message.count("\n    is ") == 1


@pytest.mark.parametrize(
    "lines",
    [
        "reference: {type: moving-average, ref_model_mixup_alpha: 0.3, ref_model_sync_steps: 5}",
        "data: {train: r, validation_fraction: 0.1}\nvalidation: {early_stopping_patience: 2}",
        "data: {train: r, stream: true, stream_window: 5}\ntrain: {max_steps: 3}\nalgorithm: pretrain",
        "train: {on_nonfinite: skip, max_skipped: 5}",
        "data: {train: {path: some/hub, split: test, subset: main}}",
        "data: {train: {path: ., split: test}}",
        "data: {train: {path: run.yaml, split: train, subset: null}}",
        "data: {train: r, validation: {path: v, name: general}}\ncheckpoint: {export: best}",
        "model: {path: some/hub, revision: main}",
        "model: {path: ., revision: null}",
    ],
)
def test_a_key_that_is_read_is_not(run: Check, lines: str) -> None:
    replaced = {line.split(":")[0] for line in lines.splitlines()}
    rest = "".join(line + "\n" for line in GOOD.splitlines() if line.split(":")[0] not in replaced)
    assert run(rest + lines)


def test_a_stream_needs_an_end(run: Check) -> None:
    text = "output: o\nmodel: {path: m}\nalgorithm: pretrain\ndata: {train: r, stream: true}"
    assert said(run, text).startswith("run.yaml line 4: data.stream\n    needs train.max_steps")


# And back

number = st.floats(1e-9, 1e9, allow_nan=False)
word = st.text(min_size=1, max_size=8)


def sections(**keys: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=keys)


stage = st.fixed_dictionaries(
    {
        "model": st.fixed_dictionaries(
            {"path": word.map("m/".__add__)},
            optional={"adapter": sections(r=st.integers(1, 99), target_modules=st.lists(word)), "chat_template": word},
        ),
        "data": st.fixed_dictionaries(
            {
                "train": st.lists(
                    st.fixed_dictionaries(
                        {"path": word.map("d/".__add__)},
                        optional={"weight": number, "columns": st.dictionaries(word, word, max_size=2), "subset": word},
                    ),
                    min_size=1,
                    max_size=2,
                )
            },
            optional={"validation": st.lists(word.map("v/".__add__), min_size=1, max_size=2), "allow": st.lists(word)},
        ),
        "algorithm": st.one_of(
            st.sampled_from(["sft", "dpo", "simpo"]),
            st.fixed_dictionaries({"type": st.just("dpo")}, optional={"beta": number}),
        ),
    },
    optional={
        "optimizer": sections(learning_rate=number, weight_decay=number),
        "train": sections(num_train_epochs=number, max_grad_norm=st.none() | number, dropout=st.booleans()),
        "devices": sections(strategy=st.sampled_from(["auto", "ddp"]), count=st.just("auto") | st.integers(1, 8)),
        "loggers": st.lists(st.sampled_from(["csv", "tensorboard"])),
        "seed": st.integers(0, 2**32 - 1),
    },
)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(output=word, stages=st.lists(stage, min_size=1, max_size=3))
def test_a_resolved_run_loads_again_unchanged(run: Check, output: str, stages: list[dict[str, Any]]) -> None:
    named = [{"name": f"s{i}", **values} for i, values in enumerate(stages)]
    first = run(write({"output": output, "stages": named}))
    again = run(dump(first))
    assert again == first
    assert dump(again) == dump(first)


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 300), cut=st.integers(0, 8), put=st.text(alphabet="ab:-[]{}&*!|'\"#,\n 01.e~", max_size=6))
def test_a_damaged_file_is_a_run_or_an_align_error(run: Check, at: int, cut: int, put: str) -> None:
    text = (
        STAGES
        + "train: {num_train_epochs: 2, max_steps: 7}\nstages:\n- algorithm: sft\n- algorithm: {type: dpo, beta: 0.2}\n"
    )
    try:
        run(text[:at] + put + text[at + cut :])
    except AlignError as error:
        assert all(problem.where for problem in error.problems)


def test_a_project_and_overrides_come_back(run: Check) -> None:
    about = "project: {description: A bot., data: [], behaviour: {rules_count: 27}}\n"
    loaded = run(GOOD + about + "overrides: [{rule: R-X-1, reason: a test}]\n", "project.evals.target=0.9")
    assert loaded.project is not None and loaded.project.data == []
    assert (loaded.project.behaviour.rules_count, loaded.project.evals.target) == (27, 0.9)
    assert run(dump(loaded)) == loaded
    assert "project" not in dump(run(GOOD)) and "overrides" not in dump(run(GOOD))
    empty = run(GOOD + "project: {}\n")
    assert empty.project is not None and run(dump(empty)) == empty


@pytest.mark.parametrize(
    ("rules", "reasons", "said"),
    [
        (["R-X-1"], [], "1 overrides and 0 reasons"),
        (["R-X-1"], ["\t"], "reason\n    is empty"),
    ],
)
def test_overriding_wants_a_reason_each(run: Check, rules: list[str], reasons: list[str], said: str) -> None:
    with pytest.raises(AlignError) as error:
        overriding(run(GOOD + "project: {}\n"), rules, reasons)
    assert said in str(error.value)


def test_overriding_takes_the_place_of_what_stood_there(run: Check) -> None:
    before = run(GOOD + "project: {}\noverrides: [{rule: A, reason: old}, {rule: B, reason: kept}]\n")
    after = overriding(before, ["A", "C"], ["new", "also"])
    assert [(o.rule, o.reason) for o in after.overrides] == [("B", "kept"), ("A", "new"), ("C", "also")]
    assert overriding(run(GOOD), [], []) == run(GOOD)
    with pytest.raises(AlignError, match="no advice to override"):
        overriding(run(GOOD), ["A"], ["why"])
