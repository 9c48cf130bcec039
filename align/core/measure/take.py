"""Measuring from end to end: a model's directory, files and rewards to ``Measured``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace

from align.core.inference.probe_material import Material
from align.core.inference.probe_models import Probed
from align.core.inference.probes import Settings, measure
from align.core.rewards.base import Place
from align.core.rewards.scorer import Scorer
from align.schemas.errors import AlignError
from align.schemas.project import Measured
from align.schemas.rollout import RewardChoice


def take(
    model: str,
    files: Sequence[str],
    settings: Settings,
    *,
    rewards: Sequence[RewardChoice] = (),
    reference: str | None = None,
    chat: bool | None = None,
    tell: Callable[[str], None] = lambda probe: None,
) -> Measured:
    """What every probe finds that ``files`` hold rows for.

    model: a directory or hub id. rewards: what scores answers; none: word F1. reference: a file of ordinary text. chat:
    whether prompts that are strings are asked as a user's message; None: where the model has a chat template.
    Raises AlignError for files, models and rewards that do not work, and where the rows show nothing.
    """
    held = Material.read(files)
    ordinary = Material.read([reference] if reference else []).texts
    if reference and not ordinary:
        raise AlignError("holds no plain text", "give a file of ordinary text", where=reference)
    if not (held.questions or held.texts or held.pairs or (held.prompts and rewards)):
        what = "hold nothing to measure on: questions with answers, texts, pairs, or prompts with a --reward"
        raise AlignError(f"the files {what}", where=", ".join(files))
    with ExitStack() as opened:
        place = Place(seed=settings.seed)
        scorer = opened.enter_context(Scorer(rewards, place)) if rewards else None
        tell("loading the model")
        probed = Probed.load(model)
        has_template = probed.tokenizer.chat_template is not None
        settings = replace(settings, chat=has_template if chat is None else chat)
        return measure(probed, held, settings, scorer=scorer, reference=ordinary, tell=tell)
