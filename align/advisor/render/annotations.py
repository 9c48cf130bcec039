"""Advice as annotations of the brief's lines: SARIF 2.1.0, and GitHub Actions."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import quote as escaped

from align.advisor.render.outline import heading
from align.advisor.render.source_location import BriefFile
from align.schemas.advice import Advice, Quote
from align.schemas.text import visible

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
GITHUB = {"error": "error", "warning": "warning", "note": "notice"}

RULES = {
    "requested-differs": "The method asked for is not the one that is advised.",
    "insufficient": "Too little is known to advise.",
    "question": "A fact that matters is not known.",
}
"""Ids of annotations that are no warning of a rule; ``question`` is followed by its id: ``question-data``."""


@dataclass(frozen=True, slots=True)
class Annotation:
    """One message, and the quotes that place it in the brief."""

    id: str
    level: Literal["error", "warning", "note"]
    text: str
    quotes: tuple[Quote, ...] = ()


def annotations_of(advice: Advice) -> Iterator[Annotation]:
    """Yield the annotations: a request that differs from the advice, warnings, and questions."""
    asked, because = advice.requested, tuple(quote for reason in advice.reasons for quote in reason.quotes)
    if asked is not None and not asked.agrees:
        text = f"{asked.requested} is asked for, but {asked.recommended} is advised: {asked.because}"
        own = tuple(quote for quote in because if quote.fact.startswith("requested"))
        yield Annotation("requested-differs", "error" if asked.blocking else "note", text, own or because)
    for warning in advice.warnings:
        yield Annotation(warning.id, warning.level, warning.text, tuple(warning.quotes))
    if advice.primary == "insufficient":
        yield Annotation("insufficient", "warning", advice.summary)
    for question in advice.missing:
        text = f"{question.question} ({question.field}; decides: {question.would_change})"
        yield Annotation(f"question-{question.id}", "note", text)


def sarif(advice: Advice, brief: BriefFile | None) -> str:
    """Return SARIF 2.1.0 as JSON text; results have locations where the brief is a file."""
    found = list(annotations_of(advice))
    about = {annotation.id: _about(annotation, advice) for annotation in found}
    driver = {
        "name": "align advise",
        "version": visible(advice.provenance.tool),
        "rules": [{"id": visible(id), "shortDescription": {"text": text}} for id, text in about.items()],
    }
    answer = {
        "primary": advice.primary,
        "confidence": advice.confidence,
        "probability": advice.probability,
        "summary": visible(advice.summary),
    }
    run = {
        "tool": {"driver": driver},
        "columnKind": "unicodeCodePoints",
        "properties": answer,
        "results": [_result(annotation, list(about).index(annotation.id), brief) for annotation in found],
    }
    return json.dumps({"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}, indent=1, ensure_ascii=False) + "\n"


def _about(annotation: Annotation, advice: Advice) -> str:
    kind = annotation.id.partition("-")[0] if annotation.id.startswith("question") else annotation.id
    by = next((warning.rule for warning in advice.warnings if warning.id == annotation.id), "")
    return RULES.get(kind) or f"{visible(annotation.id).replace('_', ' ')} ({visible(by)})"


def _result(annotation: Annotation, rule: int, brief: BriefFile | None) -> dict[str, Any]:
    text = visible(annotation.text)
    words = " ".join(quote.quote for quote in annotation.quotes)
    mark = hashlib.sha256(f"{annotation.id}\0{words}".encode("utf-8", "replace")).hexdigest()[:32]
    result: dict[str, Any] = {
        "ruleId": visible(annotation.id),
        "ruleIndex": rule,
        "level": annotation.level,
        "message": {"text": text},
        "partialFingerprints": {"words/v1": mark},
    }
    if brief is not None:
        place = brief.first(annotation.quotes)
        region = {
            "startLine": place.line,
            "startColumn": place.column,
            "endLine": place.end_line,
            "endColumn": place.end_column,
        }
        file = {"uri": escaped(brief.path)}
        result["locations"] = [{"physicalLocation": {"artifactLocation": file, "region": region}}]
    return result


def github(advice: Advice, brief: BriefFile | None) -> str:
    """Return workflow commands, one a line: the answer as a notice, then every annotation at its place."""
    lines = [f"::notice title=align advise::{_data(f'{heading(advice)}. {advice.summary}')}"]
    for annotation in annotations_of(advice):
        properties = {"title": annotation.id}
        if brief is not None:
            place = brief.first(annotation.quotes)
            properties |= {"file": brief.path, "line": str(place.line), "endLine": str(place.end_line)}
            if place.line == place.end_line:  # columns are for one line only
                properties |= {"col": str(place.column), "endColumn": str(place.end_column)}
        listed = ",".join(f"{name}={_property(value)}" for name, value in properties.items())
        lines.append(f"::{GITHUB[annotation.level]} {listed}::{_data(annotation.text)}")
    return "\n".join(lines) + "\n"


def _data(text: str) -> str:
    """Escape line ends and per cent signs of a workflow command's text, so that no text can start a command."""
    return visible(text).replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
