"""Hashes of everything that advice depends on: equal hashes give equal bytes."""

from __future__ import annotations

import functools
import hashlib
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from align.advisor.project_facts import Facts
from align.advisor.rule import Rule
from align.advisor.thresholds import Thresholds
from align.schemas.advice import Provenance


def hash_inputs(facts: Facts, limit: Thresholds, rules: Mapping[str, Rule], tool: str, parser: str) -> Provenance:
    """Return sha256 of the rules' names and source, of the thresholds, of all evidence, of the reader's weights."""
    return Provenance(
        tool=tool,
        rules=_sha256([[name, _home(rule), _source(_home(rule)[0])] for name, rule in sorted(rules.items())]),
        thresholds=_sha256(limit.model_dump()),
        parser=parser,
        input=_sha256([[asdict(e) for e in facts.evidence], facts.languages, facts.rejected]),
        reader=facts.reading.weights if facts.reading else "",
    )


def _sha256(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return "sha256:" + hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _home(rule: Rule) -> tuple[str, str]:
    return getattr(rule, "__module__", ""), getattr(rule, "__qualname__", "")


@functools.cache
def _source(module: str) -> str:
    """Return the hash of a module's file; its name where it has no file."""
    file = getattr(sys.modules.get(module), "__file__", None)
    return hashlib.sha256(Path(file).read_bytes()).hexdigest() if file and Path(file).is_file() else module
