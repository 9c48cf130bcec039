"""The thresholds of advice: every number of thresholds.yaml with its source, and a user's own over them."""

from __future__ import annotations

import functools
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt, ValidationError, model_validator

from align.schemas.base import DeferredConfig
from align.schemas.errors import AlignError, Problem, did_you_mean


class Floor(DeferredConfig):
    """The amount of data a method needs: below <= warn <= comfortable, in rows or tokens."""

    below: NonNegativeInt
    """Less is an error."""
    warn: NonNegativeInt
    """Less is thin."""
    comfortable: NonNegativeInt
    """The amount in published work."""

    @model_validator(mode="after")
    def _ordered(self) -> Floor:
        if not self.below <= self.warn <= self.comfortable:
            raise ValueError("below, warn and comfortable must not fall")
        return self


class Thresholds(DeferredConfig):
    """The numbers that rules compare with, as ``limit.many_rules``, ``limit.sft_rows.warn``; see thresholds.yaml."""

    version: PositiveInt
    sft_rows: Floor
    sft_tokens: Floor
    preference_rows: Floor
    feedback_rows: Floor
    reward_model_rows: Floor
    prompt_rows: Floor
    corpus_tokens: Floor
    eval_rows: Floor
    few_rules: NonNegativeInt
    many_rules: NonNegativeInt
    near_target: PositiveFloat
    quick_answer_s: PositiveFloat
    low_traffic_per_day: PositiveFloat
    lora_rows: PositiveInt
    standard_errors: PositiveFloat
    unseen_bits_ratio: PositiveFloat
    solvable_share: PositiveFloat
    flat_share: PositiveFloat
    bytes_per_token: PositiveFloat
    tokens_per_row: PositiveInt
    tokens_per_answer: PositiveInt
    tokens_per_sequence: PositiveInt
    tokens_per_doc: PositiveFloat
    prompt_tokens: PositiveInt
    sources: dict[str, str]
    """The source of each number."""

    @classmethod
    def load(cls, path: Path | str | None = None) -> Thresholds:
        """Return the shipped thresholds, overridden by those of a user's file.

        Raises AlignError with every fault of the file.
        """
        shipped = yaml.load((files("align.advisor") / "thresholds.yaml").read_text(encoding="utf-8"), yaml.CSafeLoader)
        return _made(_laid_over(shipped, _read(Path(path)), str(path)) if path else shipped, str(path or ""))


@functools.cache
def shipped() -> Thresholds:
    """Return the shipped thresholds, for what does not depend on a user's file: how words are read."""
    return Thresholds.load()


def _read(path: Path) -> dict[str, Any]:
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), yaml.CSafeLoader)
    except OSError as error:
        fix = "give the path of a thresholds file"
        raise AlignError(f"cannot be read: {error.strerror}", fix, where=str(path)) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise AlignError(f"is not YAML: {' '.join(str(error).split())}", where=str(path)) from None
    if not isinstance(values, dict):
        raise AlignError("is not a mapping", "write many_rules: {value: 25, source: ...}", where=str(path))
    return values


def _laid_over(shipped: dict[str, Any], own: dict[Any, Any], file: str) -> dict[str, Any]:
    """Override thresholds; one that names no source gets ``file`` as its source."""
    laid, problems = dict(shipped), []
    for name, value in own.items():
        if name not in shipped:
            problems.append(Problem(f"{file}: {name}", "is no threshold", did_you_mean(str(name), shipped)))
        elif name == "version":
            laid[name] = value
        elif not isinstance(value, dict):
            keys = ", ".join(key for key in shipped[name] if key != "source")
            problems.append(
                Problem(f"{file}: {name}", f"is {value!r}, not a mapping", f"write {name}: {{{keys}: ...}}")
            )
        else:
            laid[name] = {**shipped[name], "source": file, **value}
            problems += [
                Problem(f"{file}: {name}.{key}", "is not known", did_you_mean(str(key), shipped[name]))
                for key in value
                if key not in shipped[name]
            ]
    if problems:
        raise AlignError.gather(problems)
    return laid


def _made(values: dict[str, Any], file: str) -> Thresholds:
    plain = {name: _plain(value) for name, value in values.items()}
    sources = {name: str(value["source"]) for name, value in values.items() if isinstance(value, dict)}
    try:
        return Thresholds.model_validate({**plain, "sources": sources}, strict=False)
    except ValidationError as error:
        where = f"{file}: " if file else ""
        raise AlignError.gather(
            Problem(where + ".".join(map(str, e["loc"])), e["msg"][:1].lower() + e["msg"][1:])
            for e in error.errors(include_url=False)
        ) from None


def _plain(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return value["value"] if "value" in value else {key: v for key, v in value.items() if key != "source"}
