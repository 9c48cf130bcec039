"""The public face of align: all that a plugin or a notebook needs. Importing it loads no torch.

Names are fetched from their homes on first use (PEP 562), so ``import align`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from align.advisor.render import render as render
    from align.api.advising import AdviceCase as AdviceCase
    from align.api.advising import BriefReader as BriefReader
    from align.api.advising import advise as advise
    from align.api.catalogue import describe_plugin as describe_plugin
    from align.api.catalogue import list_plugins as list_plugins
    from align.api.catalogue import list_rewards as list_rewards
    from align.api.data_checking import check_data as check_data
    from align.api.data_checking import preview_data as preview_data
    from align.api.estimating import RunEstimate as RunEstimate
    from align.api.estimating import estimate as estimate
    from align.api.evaluating import evaluate as evaluate
    from align.api.gating import gate as gate
    from align.api.gating import gate_calibrate as gate_calibrate
    from align.api.gating import gate_power as gate_power
    from align.api.labelling import label_data as label_data
    from align.api.launching import launch_script as launch_script
    from align.api.measuring import measure as measure
    from align.api.prelaunch import launch_problems as launch_problems
    from align.api.prelaunch import write_advice as write_advice
    from align.api.reporting import diff as diff
    from align.api.reporting import report as report
    from align.api.resuming import ResumeProof as ResumeProof
    from align.api.resuming import resume as resume
    from align.api.resuming import verify_resume as verify_resume
    from align.api.sampling import sample as sample
    from align.api.scoring import audit as audit
    from align.api.scoring import score as score
    from align.api.status import status as status
    from align.api.training import check as check
    from align.api.training import train as train
    from align.api.vote_ratings import arena_ratings as arena_ratings
    from align.core.algorithm.contract import Advantages as Advantages
    from align.core.algorithm.contract import Algorithm as Algorithm
    from align.core.algorithm.contract import CriticSpec as CriticSpec
    from align.core.algorithm.contract import Experience as Experience
    from align.core.algorithm.contract import LossOutput as LossOutput
    from align.core.algorithm.contract import LossTerm as LossTerm
    from align.core.algorithm.contract import Metric as Metric
    from align.core.algorithm.contract import Online as Online
    from align.core.algorithm.contract import RowGenerator as RowGenerator
    from align.core.config.run_file import load as load
    from align.core.data.batch import Batch as Batch
    from align.core.data.examples import Example as Example
    from align.core.data.formats import Format as Format
    from align.core.data.formats import Shape as Shape
    from align.core.engine.logger import Logger as Logger
    from align.core.engine.processes import Strategy as Strategy
    from align.core.evaluation.comparison import GateReport as GateReport
    from align.core.evaluation.eval import Eval as Eval
    from align.core.generation.generator_base import Generator as Generator
    from align.core.generation.generator_base import ModelHandle as ModelHandle
    from align.core.generation.generator_base import Request as Request
    from align.core.generation.generator_base import Sample as Sample
    from align.core.inference.eval_suite import EvalRun as EvalRun
    from align.core.report.differences import RunDifference as RunDifference
    from align.core.report.status import RunStatus as RunStatus
    from align.core.rewards.reward_base import Answer as Answer
    from align.core.rewards.reward_base import Reward as Reward
    from align.core.rewards.reward_base import Score as Score
    from align.core.training.sample_log import read_samples as read_samples
    from align.core.util.stopping import Interrupted as Interrupted
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
    from align.schemas.records import Content as Content
    from align.schemas.records import Kind as Kind
    from align.schemas.records import Message as Message
    from align.schemas.records import Record as Record
    from align.schemas.results import StageResult as StageResult
    from align.schemas.run import Run as Run

_HOMES = {
    "advisor.render": ("render",),
    "api.advising": ("AdviceCase", "BriefReader", "advise"),
    "api.catalogue": ("describe_plugin", "list_plugins", "list_rewards"),
    "api.data_checking": ("check_data", "preview_data"),
    "api.estimating": ("RunEstimate", "estimate"),
    "api.evaluating": ("evaluate",),
    "api.gating": ("gate", "gate_calibrate", "gate_power"),
    "api.labelling": ("label_data",),
    "api.launching": ("launch_script",),
    "api.measuring": ("measure",),
    "api.prelaunch": ("launch_problems", "write_advice"),
    "api.reporting": ("diff", "report"),
    "api.status": ("status",),
    "api.resuming": ("ResumeProof", "resume", "verify_resume"),
    "api.sampling": ("sample",),
    "api.scoring": ("audit", "score"),
    "api.training": ("check", "train"),
    "api.vote_ratings": ("arena_ratings",),
    "core.algorithm.contract": (
        "Advantages",
        "Algorithm",
        "CriticSpec",
        "Experience",
        "LossOutput",
        "LossTerm",
        "Metric",
        "Online",
        "RowGenerator",
    ),
    "core.config.run_file": ("load",),
    "core.data.batch": ("Batch",),
    "core.data.examples": ("Example",),
    "core.data.formats": ("Format", "Shape"),
    "core.engine.logger": ("Logger",),
    "core.engine.processes": ("Strategy",),
    "core.evaluation.comparison": ("GateReport",),
    "core.evaluation.eval": ("Eval",),
    "core.generation.generator_base": ("Generator", "ModelHandle", "Request", "Sample"),
    "core.inference.eval_suite": ("EvalRun",),
    "core.report.differences": ("RunDifference",),
    "core.report.status": ("RunStatus",),
    "core.rewards.reward_base": ("Answer", "Reward", "Score"),
    "core.training.sample_log": ("read_samples",),
    "core.util.stopping": ("Interrupted",),
    "hookspecs": ("Register", "hookimpl"),
    "schemas.advice": ("Advice",),
    "schemas.base": ("Config",),
    "schemas.errors": ("AlignError", "Problem"),
    "schemas.hardware": ("Footprint", "Hardware"),
    "schemas.project": ("Measured", "Project"),
    "schemas.records": ("Content", "Kind", "Message", "Record"),
    "schemas.results": ("StageResult",),
    "schemas.run": ("Run",),
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
