"""The public face of align: all that a plugin or a notebook needs. Importing it loads no torch.

Names are fetched from their homes on first use (PEP 562), so ``import align`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from align.advisor.render import render as render
    from align.api.advice import AdviceCase as AdviceCase
    from align.api.advice import BriefReader as BriefReader
    from align.api.advice import advise as advise
    from align.api.catalogue import describe_plugin as describe_plugin
    from align.api.catalogue import list_plugins as list_plugins
    from align.api.catalogue import list_rewards as list_rewards
    from align.api.data import check_data as check_data
    from align.api.data import preview_data as preview_data
    from align.api.estimating import RunEstimate as RunEstimate
    from align.api.estimating import estimate as estimate
    from align.api.labelling import label_data as label_data
    from align.api.measuring import measure as measure
    from align.api.sampling import sample as sample
    from align.api.scoring import audit as audit
    from align.api.scoring import score as score
    from align.api.training import check as check
    from align.api.training import train as train
    from align.core.algorithm import Algorithm as Algorithm
    from align.core.algorithm import Metric as Metric
    from align.core.algorithm import Outcome as Outcome
    from align.core.algorithm import Term as Term
    from align.core.data.collate import Batch as Batch
    from align.core.data.examples import Example as Example
    from align.core.data.formats import Format as Format
    from align.core.data.formats import Shape as Shape
    from align.core.rollout.generator import Generator as Generator
    from align.core.rollout.generator import Request as Request
    from align.core.rollout.generator import Sample as Sample
    from align.core.rollout.generator import Subject as Subject
    from align.core.rollout.online import Credit as Credit
    from align.core.rollout.online import CriticSpec as CriticSpec
    from align.core.rollout.online import Experience as Experience
    from align.core.rollout.online import Harvest as Harvest
    from align.core.rollout.online import Online as Online
    from align.core.rollout.reward import Answer as Answer
    from align.core.rollout.reward import Reward as Reward
    from align.core.rollout.reward import Score as Score
    from align.core.runfile import load as load
    from align.core.train.logger import Logger as Logger
    from align.core.train.strategy import Strategy as Strategy
    from align.hookspecs import Register as Register
    from align.hookspecs import hookimpl as hookimpl
    from align.schemas.advice import Advice as Advice
    from align.schemas.base import Config as Config
    from align.schemas.errors import AlignError as AlignError
    from align.schemas.errors import Problem as Problem
    from align.schemas.hardware import Footprint as Footprint
    from align.schemas.hardware import Hardware as Hardware
    from align.schemas.project import Measured as Measured
    from align.schemas.project import Project as Project
    from align.schemas.records import Record as Record
    from align.schemas.results import StageResult as StageResult
    from align.schemas.run import Run as Run

_HOMES = {
    "advisor.render": ("render",),
    "api.advice": ("AdviceCase", "BriefReader", "advise"),
    "api.catalogue": ("describe_plugin", "list_plugins", "list_rewards"),
    "api.data": ("check_data", "preview_data"),
    "api.estimating": ("RunEstimate", "estimate"),
    "api.labelling": ("label_data",),
    "api.measuring": ("measure",),
    "api.sampling": ("sample",),
    "api.scoring": ("audit", "score"),
    "api.training": ("check", "train"),
    "hookspecs": ("Register", "hookimpl"),
    "schemas.advice": ("Advice",),
    "schemas.base": ("Config",),
    "schemas.errors": ("AlignError", "Problem"),
    "schemas.hardware": ("Footprint", "Hardware"),
    "schemas.project": ("Measured", "Project"),
    "schemas.records": ("Record",),
    "schemas.run": ("Run",),
    "core.data.collate": ("Batch",),
    "core.algorithm": ("Algorithm", "Metric", "Outcome", "Term"),
    "core.data.examples": ("Example",),
    "core.data.formats": ("Format", "Shape"),
    "core.rollout.generator": ("Generator", "Request", "Sample", "Subject"),
    "core.rollout.online": ("Credit", "CriticSpec", "Experience", "Harvest", "Online"),
    "core.rollout.reward": ("Answer", "Reward", "Score"),
    "core.runfile": ("load",),
    "schemas.results": ("StageResult",),
    "core.train.logger": ("Logger",),
    "core.train.strategy": ("Strategy",),
}
_HOME = {name: f"align.{home}" for home, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return importlib.import_module("importlib.metadata").version("align-llm")
    if name not in _HOME:
        raise AttributeError(f"module 'align' has no attribute {name!r}")
    thing = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = thing  # asked once
    return thing


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME, "__version__"})
