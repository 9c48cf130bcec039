"""The run directory: what a run is, what has been done, and what may go on.

run.yaml  manifest.json  .lock
STAGE/  stage.json  metrics.csv  data_report.json  checkpoints/  export/  done.json

Every JSON file carries the sha256 of its content (``atomic_files``). Nothing that training depends on is in one
file only, so a damaged file is reported and does not stop the run: settings and inputs are in the checkpoints too, and
a stage whose ``done.json`` is damaged is finished again from its last checkpoint.
"""

from __future__ import annotations

import ast
import os
import platform
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

from align.core.config import run_file
from align.core.data.sources import data_files
from align.core.engine import checkpoint
from align.core.models.architecture import base_of, is_adapter, resolve_model_path
from align.core.plugin_system.registry import registry
from align.core.rewards.scorer import decisive, reward_of
from align.core.util import atomic_files
from align.core.util.atomic_files import Damaged, digest, sha256
from align.core.util.event_log import LOGS
from align.core.util.signs_of_life import RANKS
from align.schemas.errors import AlignError, Problem
from align.schemas.results import StageResult
from align.schemas.run import Choice, Override, RewardChoice, Run, Source, Stage
from align.schemas.text import shown_argument

# --- inputs ----------------------------------------------------------------------------------------------------------

# The inputs of a stage, identified by content: a resumed run must learn from the same bytes as before.
#
# A path is only a location: a relative one, a link or a copy elsewhere is the same input, and other bytes at the same
# path are another. So settings that decide what is learned are compared without their paths, and the files that they
# name by sha256: the model (under an adapter too), its tokenizer and template, the data, reward files.

Content = Mapping[str, str]
"""sha256 of each file of an input, by its name in the directory; a file that is an input by itself is called ''."""

MODEL_FILES = (
    *("*.safetensors", "config.json", "generation_config.json", "adapter_config.json", "*.py"),
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.model", "*.tiktoken"),
    *("chat_template*", "additional_chat_templates/*"),
)
"""The files in a model's directory that loading reads. Others there (notes, evaluations) may change."""

THREADS = 4
"""Files hashed at a time; hashlib releases the GIL."""


class Input(NamedTuple):
    """One input of a stage. name: the setting that names it. path: as it is spelt. files: those it consists of."""

    name: str
    path: str
    files: Callable[[], Mapping[str, Path]]

    def content(self) -> Content:
        """Return the sha256 of every file; for what is not on this machine (a judge, a hub data set) only its name.

        Raises AlignError if there is no such model.
        """
        files = self.files()
        if not files:
            return {self.path: ""}
        with ThreadPoolExecutor(THREADS) as pool:
            return dict(zip(files, pool.map(sha256, files.values()), strict=True))

    def place(self, output: Path) -> str:
        """Return the resolved path; inside the run's directory a relative one, so that the directory may be moved."""
        local = Path(self.path).expanduser()
        if not local.exists():
            return self.path  # of the hub, or gone
        real, home = (Path(os.path.realpath(path)) for path in (local, output))
        return f"output:{real.relative_to(home)}" if real.is_relative_to(home) else str(real)


def inputs(stage: Stage) -> Iterator[Input]:
    """Yield everything that a stage reads and that decides what it learns, except its rows (``rows``).

    ``stage`` is located: no path is called ``stage:NAME``.
    """
    model = stage.model
    spelt = model.path if model.revision is None else f"{model.path}@{model.revision}"
    yield Input("model.path", spelt, partial(_model, model.path, model.revision, model.trust_remote_code))
    yield from _named("model", {"chat_template": model.chat_template}, ["chat_template"])
    yield from _named("algorithm", stage.algorithm.settings, registry.build("algorithm", stage.algorithm).reads)
    if stage.rollout is not None:
        choices = [(f"rollout.rewards.{i}", choice) for i, choice in enumerate(stage.rollout.rewards)]
        choices += [("rollout.gold", stage.rollout.gold)] if stage.rollout.gold else []
        for name, choice in choices:
            yield from _named(name, choice.settings, reward_of(choice).reads)
            yield from _arguments(f"{name}.settings", choice.settings.get("settings"))
    for index, choice in enumerate(stage.validation.rewards):
        yield from _named(f"validation.rewards.{index}", choice.settings, reward_of(choice).reads)
        yield from _arguments(f"validation.rewards.{index}.settings", choice.settings.get("settings"))
    yield from _named("validation", {"suite": stage.validation.suite}, ["suite"])


def data_inputs(stage: Stage) -> Iterator[Input]:
    """Yield the sources of a stage's rows: training and held-out ones."""
    for part, sources in (("train", stage.data.train), ("validation", stage.data.validation or ())):
        for index, source in enumerate(sources):
            yield Input(f"data.{part}.{index}.path", source.path, partial(_rows, source))


def without_paths(settings: Mapping[str, Any], reads: Collection[str]) -> dict[str, Any]:
    """Return a plugin's settings without those that name a file or model, which are compared by content."""
    return {name: value for name, value in settings.items() if not (name in reads and isinstance(value, str))}


def _named(where: str, settings: Mapping[str, Any], reads: Collection[str]) -> Iterator[Input]:
    """Yield the files and models that a plugin's settings name. reads: the settings that may."""
    for name in sorted(reads & settings.keys()):
        if isinstance(value := settings[name], str):
            yield Input(f"{where}.{name}", value, partial(_file_or_model, value))


def _arguments(where: str, settings: Any) -> Iterator[Input]:
    """Yield the settings of a Python reward that name an existing file."""
    for name, value in settings.items() if isinstance(settings, Mapping) else ():
        if isinstance(value, str) and _file_or_model(value):
            yield Input(f"{where}.{name}", value, partial(_file_or_model, value))


def _file_or_model(path: str) -> dict[str, Path]:
    """Return the files of a model, or a file and, if it is Python, what it imports; empty if not on this machine."""
    local = Path(path).expanduser()
    try:
        if local.is_dir():
            return _model(path, None, trusted=False)
        if not local.is_file():
            return {}
        file = local.resolve()
        return {"": file} | {str(near.relative_to(file.parent)): near for near in sorted(_imported(file) - {file})}
    except (OSError, ValueError):  # longer than a name may be, or with a NUL
        return {}


def _model(path: str, revision: str | None, trusted: bool) -> dict[str, Path]:
    """Return the files that loading a model reads, including those of the base under an adapter."""
    directory = resolve_model_path(path, revision, trusted)
    found = {path for pattern in MODEL_FILES for path in directory.glob(pattern) if path.is_file()}
    files = {str(path.relative_to(directory)): path for path in sorted(found)}
    if is_adapter(directory):
        below = resolve_model_path(*base_of(directory), trusted)
        if not is_adapter(below):  # loading refuses an adapter on an adapter
            files |= {f"base/{name}": path for name, path in _model(str(below), None, trusted).items()}
    return files


def _rows(source: Source) -> dict[str, Path]:
    root = Path(source.path).expanduser()
    return {str(file.relative_to(root)) if file != root else "": file for file in data_files(source)}


def _imported(file: Path) -> set[Path]:
    """Return a Python file and the neighbours that it imports, also indirectly; found by parsing, not by running."""
    found, ahead = set[Path](), [file] if file.suffix == ".py" else []
    while ahead:
        found.add(path := ahead.pop())
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError, RecursionError):
            continue  # loading it will say so
        for place, name in _names(tree, path, file.parent):
            parts = name.split(".")
            # Importing a.b.c runs a/__init__.py and a/b/__init__.py too.
            for near in (place.joinpath(*parts[: n + 1]) for n in range(len(parts))):
                ahead += [p for p in (near.with_suffix(".py"), near / "__init__.py") if p.is_file() and p not in found]
    return found


def _names(tree: ast.AST, path: Path, root: Path) -> Iterator[tuple[Path, str]]:
    """Yield each module that a file at ``path`` may import, and the directory that its name starts from.

    root: what absolute names start from, in a neighbour of a neighbour too.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield root, alias.name
        elif isinstance(node, ast.ImportFrom):
            # One dot is the file's own directory, each further one the directory above.
            place = path.parents[min(node.level, len(path.parents)) - 1] if node.level else root
            for alias in node.names:  # a name of the module, or a module of the package
                yield place, ".".join(filter(None, [node.module, alias.name]))


ROWS = "rows.jsonl"
"""The file in the export of a stage that makes rows."""

_SPEED_ONLY = ("devices", "loggers", "checkpoint", "gate")
_SPEED_ONLY_TRAIN = ("micro_batch_tokens", "micro_batch_size", "layout", "shared_prefix")
_SPEED_ONLY_DATA = ("dataset_num_proc",)
_SPEED_ONLY_ROLLOUT = ("watch", "samples", "num_completions_to_print", "sync_tolerance")
_SPEED_ONLY_MODEL = ("attn_implementation", "gradient_checkpointing")
_BY_CONTENT_MODEL = ("path", "revision", "chat_template")


def training_settings(stage: Stage) -> dict[str, Any]:
    """Return the settings that decide the weights: all but those that change speed, memory or bookkeeping only.

    Paths are left out: the files there are compared by content (``inputs``). ``stage`` is as the run
    file has it, so that a run directory may be moved.
    """
    facts = stage.model_dump(mode="json", exclude=set(_SPEED_ONLY))
    for key in _SPEED_ONLY_TRAIN:
        facts["train"].pop(key)
    for key in _SPEED_ONLY_DATA:
        facts["data"].pop(key)
    for key in (*_SPEED_ONLY_MODEL, *_BY_CONTENT_MODEL):
        facts["model"].pop(key)
    for source in (*facts["data"]["train"], *(facts["data"]["validation"] or ())):
        source.pop("path")
    algorithm = registry.build("algorithm", stage.algorithm)
    facts["algorithm"]["settings"] = without_paths(facts["algorithm"]["settings"], algorithm.reads)
    facts["validation"]["rewards"] = [_decisive(choice) for choice in stage.validation.rewards]
    facts["validation"].pop("suite")
    if stage.rollout is not None:
        facts["rollout"]["rewards"] = [_decisive(choice) for choice in stage.rollout.rewards]
        for key in _SPEED_ONLY_ROLLOUT:
            facts["rollout"].pop(key)
        facts["rollout"]["generator"] = _generator(stage.rollout.generator)
        facts["rollout"]["gold"] = stage.rollout.gold and _decisive(stage.rollout.gold)
    return facts


def _generator(choice: Choice) -> dict[str, Any]:
    """Return a generator's name and its settings that decide what is sampled."""
    made = registry.build("generator", choice)
    return {"type": choice.type} | {name: getattr(made.config, name) for name in sorted(made.decisive)}


def _decisive(choice: RewardChoice) -> dict[str, Any]:
    """Return a reward's settings that decide the weights, without paths."""
    plain = decisive(choice)
    return {**plain, "settings": without_paths(plain["settings"], reward_of(choice).reads)}


def located(stage: Stage, export_of: Callable[[str, bool], str]) -> Stage:
    """The stage with every ``stage:NAME`` replaced by ``export_of(NAME, whether rows are meant)``."""

    def walk(value: Any, rows: bool) -> Any:
        if isinstance(value, dict):
            return {key: walk(inner, rows) for key, inner in value.items()}
        if isinstance(value, list):
            return [walk(inner, rows) for inner in value]
        kind, _, name = value.partition(":") if isinstance(value, str) else ("", "", "")
        return export_of(name, rows) if kind == "stage" else value

    plain = stage.model_dump()
    return Stage.model_validate({key: walk(value, key == "data") for key, value in plain.items()})


def _stages_read(stage: Stage) -> set[str]:
    """Return the names of the stages whose exports a stage reads."""
    names = set[str]()

    def note(name: str, rows: bool) -> str:
        names.add(name)
        return f"stage:{name}"

    located(stage, note)
    return names


class StageDirectory:
    """One stage's place."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.phases = path / "phases"
        self.export = path / "export"

    @property
    def begun(self) -> bool:
        """True if there is something to resume from: a checkpoint, or a phase of a stage that makes rows."""
        return bool(checkpoint.steps(self.checkpoints)) or any(self.phases.glob("*.json"))

    def result(self) -> StageResult | None:
        """Return the finished stage's result; None if it is not finished or its ``done.json`` is damaged."""
        try:
            metrics = atomic_files.read_json(self.path / "done.json")["metrics"]
        except (FileNotFoundError, Damaged):
            return None
        return StageResult(self.path.name, self.path, self.export, metrics)

    def finish(self, stage: Stage, metrics: Mapping[str, float], logs: Mapping[str, str] | None = None) -> None:
        """Mark the stage as finished; the last file written.

        logs: the checksums of its loggers' files (``align.core.engine.logger.Verified``).
        """
        facts = {
            "metrics": dict(metrics),
            "settings": digest(training_settings(stage)),
            "logs": dict(logs or {}),
            "files": atomic_files.file_sums(self.export),
        }
        atomic_files.write_json(self.path / "done.json", facts)

    def record_export(self) -> None:
        """Record the export's files again, after another model took its place (a gate rolled the stage back)."""
        facts = atomic_files.read_json(self.path / "done.json")
        atomic_files.write_json(self.path / "done.json", {**facts, "files": atomic_files.file_sums(self.export)})

    def verify_export(self) -> None:
        """Raise AlignError unless every file of the export is, to the byte, what the finished stage wrote."""
        again = f"remove {self.path / 'done.json'}, and --resume exports it again from the last checkpoint"
        try:
            files = atomic_files.read_json(self.path / "done.json", again)["files"]
        except FileNotFoundError:
            raise AlignError("is not there yet", "train that stage first", where=str(self.export)) from None
        if why := atomic_files.difference(self.export, files):
            raise AlignError(f"is not what the stage exported: {why}", again, where=str(self.export))

    def check(self, stage: Stage, output: Path, resume: bool) -> None:
        """Raise AlignError if another stage is here, or an interrupted one and ``resume`` is not set.

        Damaged files are reported on stderr; their content is taken from the others.
        """
        checkpoint.refuse_other_formats(self.checkpoints)
        finishing = "the stage is finished again from what it saved"
        done = self._read("done.json", finishing if self.begun else "the stage is trained again")
        noted = self._read("stage.json", "its settings are compared with those in the checkpoints")
        if done is None and not self.begun:
            return
        now = training_settings(stage)
        # stage.json names the settings that differ; the digests in done.json and checkpoints only show that some do.
        known = done or checkpoint.latest_manifest(self.checkpoints) or {}
        changed: list[str] = []
        if noted is not None:
            changed = _differences(noted["settings"], now)
        elif known.get("settings", digest(now)) != digest(now):
            changed = ["which ones is not known"]
        if done is not None and noted is not None:
            changed += _moved_to_other(noted, stage, output)
        if changed:
            raise AlignError(
                "holds a stage that was started with other settings: " + "; ".join(changed),
                "choose another output, or put the settings back",
                where=str(self.path),
            )
        if done is None and not resume:
            raise AlignError(
                f"holds an interrupted run, saved after step {checkpoint.last_step(self.checkpoints)}",
                "add --resume to go on, or choose another output",
                where=str(self.path),
            )

    def begin(self, stage: Stage, output: Path, find: Callable[[str, bool], str]) -> None:
        """Compare the content of what the stage reads with what it began with, and record it in ``stage.json``.

        find: returns the path of an earlier stage's export. Raises AlignError if something has changed since.
        """
        here = located(stage, find)
        named = list(inputs(here))
        rows = list(data_inputs(here))
        if stage.data.stream:  # its rows are never all read before training, so its files are compared
            named, rows = [*named, *rows], []
        found = {each.name: each.content() for each in named}
        noted = self._read("stage.json", None)
        before = noted or checkpoint.latest_manifest(self.checkpoints) or self._phase()
        if self.begun and before is not None and (changed := list(_changed(before["inputs"], found))):
            raise AlignError(
                "has inputs that changed since it began: " + "; ".join(changed),
                "put them back as they were, or choose another output",
                where=str(self.path),
            )
        facts = {
            "settings": training_settings(stage),
            "inputs": found,
            "rows": {each.name: each.content() for each in rows},
            "places": {each.name: each.place(output) for each in (*named, *rows)},
        }
        atomic_files.write_json(self.path / "stage.json", facts)

    def inputs(self) -> dict[str, Any]:
        """Return the checksums of what the stage learns from, as ``begin`` recorded them."""
        found: dict[str, Any] = atomic_files.read_json(self.path / "stage.json", "start again with --resume")["inputs"]
        return found

    def _phase(self) -> dict[str, Any] | None:
        """Return the first undamaged phase of a stage that makes rows, or None."""
        names = [str(path.relative_to(self.path)) for path in sorted(self.phases.glob("*.json"))]
        return next(filter(None, (self._read(name, None) for name in names)), None)

    def _read(self, name: str, otherwise: str | None) -> dict[str, Any] | None:
        """Return a file's content, or None if it is absent or damaged.

        otherwise: the consequence of damage, printed with it on stderr; None to print nothing.
        """
        try:
            return atomic_files.read_json(self.path / name)
        except FileNotFoundError:
            return None
        except Damaged as error:
            if otherwise is not None:
                print(Problem(str(self.path / name), f"is damaged: {error.why}", otherwise), file=sys.stderr)
            return None


class RunDirectory:
    """The whole run's place; open it with ``with`` to keep others out."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.path = Path(run.output)
        self._lock = FileLock(self.path / ".lock")

    def stage(self, name: str) -> StageDirectory:
        """One stage's place."""
        return StageDirectory(self.path / name)

    def export_of(self, name: str, rows: bool) -> str:
        """Return the path of an earlier stage's export: its model, or the rows that it made."""
        export = self.stage(name).export
        return str(export / ROWS if rows else export)

    def __enter__(self) -> RunDirectory:
        held = list(self.path.iterdir()) if self.path.is_dir() else []
        if self.path / "run.yaml" not in held and not all(map(_of_starting_run, held)):
            raise AlignError("holds something else than a run", "choose another output", where=str(self.path))
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise AlignError(
                "another process is running in it", "wait for it, or choose another output", where=str(self.path)
            ) from None
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def begin(self, resume: bool) -> None:
        """Check every stage, then write ``run.yaml`` and open the manifest."""
        for stage in self.run.stages:
            self.stage(stage.name).check(stage, self.path, resume)
        checkpoint.remove_partial(self.path)
        atomic_files.write_atomic(
            self.path / "run.yaml", run_file.dump(self.run).encode()
        )  # first: it marks the directory
        for stage in self.run.stages:
            checkpoint.remove_partial(self.stage(stage.name).checkpoints)
        self.note(
            versions={name: _version(name) for name in ("align-llm", "torch", "lightning", "transformers", "peft")},
            python=platform.python_version(),
            command=[Path(sys.argv[0]).name, *map(shown_argument, sys.argv[1:])],
            started=datetime.now(UTC).isoformat(timespec="seconds"),
            overrides=[override.model_dump() for override in self.run.overrides],
        )

    def note_files(self) -> None:
        """Record the checksums of files that hold none themselves, because people and other programs read them."""
        self.note(files=self.sums(self.path / "run.yaml", self.path / "advice.json"))

    def sums(self, *files: Path) -> dict[str, str]:
        """Return the sha256 of each of these files that exists, by file name."""
        return {path.name: atomic_files.sha256(path) for path in files if path.is_file()}

    def begin_stage(self, stage: Stage) -> None:
        """Verify what the stage reads: earlier stages' exports, and everything else against what it began with.

        Raises AlignError if something differs, or if the stage was paused and killed before that was reported.
        """
        for name in sorted(_stages_read(stage)):
            self.stage(name).verify_export()
        place = self.stage(stage.name)
        place.begin(stage, self.path, self.export_of)
        newest = checkpoint.latest_manifest(place.checkpoints) or {}
        # Without paused_at the process died between saving the pause and reporting it: report it once, then resume.
        if newest.get("paused") and self.noted(stage.name).get("paused_at") != newest["name"]:
            self.note(stage.name, paused_at=newest["name"])
            raise AlignError.gather(Problem(**problem) for problem in newest["paused"])

    def noted(self, stage: str) -> dict[str, Any]:
        """Return the manifest's facts about a stage; empty if it is damaged."""
        found: dict[str, Any] = _manifest(self.path).get("stages", {}).get(stage, {})
        return found

    def note(self, stage: str | None = None, **facts: Any) -> None:
        """Add facts to ``manifest.json``, of the run or of one stage. A damaged file is reported and replaced."""
        manifest = _manifest(self.path) or {"stages": {}}
        (manifest if stage is None else manifest["stages"].setdefault(stage, {})).update(facts)
        atomic_files.write_json(self.path / "manifest.json", manifest)


def _of_starting_run(path: Path) -> bool:
    """Return whether a run that has not written ``run.yaml`` yet may have put this into its directory.

    Under torchrun, other ranks may write their signs of life and logs before rank 0 opens the directory.
    """
    if path.name == ".lock" or path.name.startswith(atomic_files.PARTIAL):
        return True
    return path.is_dir() and all(inner.name in (RANKS, LOGS) for inner in path.iterdir())


def _manifest(output: Path) -> dict[str, Any]:
    """Return its content. A damaged one is reported and set aside, not refused: training reads nothing from it."""
    path = output / "manifest.json"
    try:
        return atomic_files.read_json(path)
    except FileNotFoundError:
        return {}
    except Damaged as error:
        aside = atomic_files.set_aside(path).name
        print(Problem(str(path), f"is damaged: {error.why}", f"a new one is started; kept as {aside}"), file=sys.stderr)
        return {}


def remembered(run: Run) -> Run:
    """Return the run with the overrides that its directory has recorded, so that they are not asked for again.

    Those of a damaged manifest are asked for again.
    """
    if run.project is None:
        return run
    try:
        noted = atomic_files.read_json(Path(run.output) / "manifest.json").get("overrides", [])
    except (FileNotFoundError, Damaged):
        return run
    given = {override.rule for override in run.overrides}
    kept = [override for override in map(Override.model_validate, noted) if override.rule not in given]
    return run.model_copy(update={"overrides": [*run.overrides, *kept]})


def _changed(before: Mapping[str, Content], now: Mapping[str, Content]) -> Iterator[str]:
    """Yield a phrase such as ``model.path (model.safetensors)`` for every input whose content has changed.

    A setting of a Python reward that names a file only now is not one: the function may have written that file.
    """
    for name in sorted(before.keys() | {name for name in now if ".settings." not in name}):
        old, new = before.get(name, {}), now.get(name, {})
        files = sorted(file for file in old.keys() | new.keys() if old.get(file) != new.get(file))
        if files:
            more = f" and {len(files) - 3} more" if len(files) > 3 else ""
            named = ", ".join(filter(None, files[:3]))
            yield f"{name} ({named}{more})" if named else name


def _moved_to_other(noted: Mapping[str, Any], stage: Stage, output: Path) -> Iterator[str]:
    """Yield the inputs of a finished stage whose paths now lead elsewhere, to other content.

    Inputs in their old place are not read, even if they changed: the stage will not read them again.
    """
    before: dict[str, Content] = {**noted["inputs"], **noted["rows"]}
    for each in _readable(stage, output):
        places = (each.place(output), each.path, os.path.realpath(each.path))
        if each.name in before and noted["places"].get(each.name) not in places:
            yield from _changed({each.name: before[each.name]}, {each.name: each.content()})


def _readable(stage: Stage, output: Path) -> Iterator[Input]:
    """Yield every input of a stage, its rows too, with ``stage:NAME`` replaced by that stage's export."""
    here = located(stage, lambda name, rows: str(output / name / "export" / (ROWS if rows else "")))
    yield from inputs(here)
    yield from data_inputs(here)


def _differences(before: Mapping[str, Any], after: Mapping[str, Any], prefix: str = "") -> list[str]:
    """``train.batch_size was 8, is 16`` for every leaf that differs."""
    found: list[str] = []
    for key in sorted(before.keys() | after.keys()):
        old, new = before.get(key), after.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += _differences(old, new, f"{prefix}{key}.")
        elif old != new:
            found.append(f"{prefix}{key} was {old!r}, is {new!r}")
    return found


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
