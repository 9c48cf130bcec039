"""Making preference data: of each prompt's completions the best over the worst, as rewards score them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from align.api.input_types import RewardLike, as_reward, plugin_choice, sampling_settings
from align.core.inference.preferences import Journal, LabelSummary, label, read_prompts
from align.core.rewards.reward_base import RewardContext
from align.core.rewards.scorer import Scorer, decisive
from align.core.util.progress import Work, working
from align.core.util.system_errors import explaining
from align.schemas.errors import AlignError
from align.schemas.run import Choice, Model


@explaining()
def label_data(
    prompts: str | Path,
    output: str | Path,
    rewards: Sequence[RewardLike],
    *,
    model: str | Path | None = None,
    n: int = 4,
    generator: str | Choice = "local",
    seed: int = 0,
    **sampling: Any,
) -> LabelSummary:
    """Make a preference file of a file of prompts, and return what came of each prompt.

    Completions are the row's own ``completions`` (a list), or sampled from ``model``. Work that was stopped goes on
    where it was when it is called again with the same prompts and settings. Where no prompt gives a pair, no output is
    written.

    output: a .jsonl that is not there yet. rewards: one or more, summed by their weight. n: completions of each prompt,
    2 or more. sampling: settings of ``sampling`` in a run file. Imports torch where a ``model`` is named.
    Raises AlignError for files, models, rewards and settings that do not work, and where ``output`` exists.
    """
    if not rewards or n < 2:
        raise AlignError("needs a reward, and at least 2 completions of each prompt", where="label_data")
    choices = [as_reward(reward) for reward in rewards]
    settings = sampling_settings(sampling)
    chosen = None if model is None else plugin_choice(generator)
    records, digest = read_prompts(str(prompts), sampled=model is not None)
    # All that decides a label: work that was begun with other settings must not be continued.
    parts: list[Any] = [digest, [decisive(choice) for choice in choices], seed]
    parts += [] if chosen is None else [str(model), n, settings.model_dump(), chosen.model_dump()]
    fingerprint = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    with ExitStack() as opened:
        journal = Journal(Path(output), fingerprint)
        opened.callback(journal.close)
        place = RewardContext(seed=seed, home=journal.directory)
        scorer = opened.enter_context(Scorer(choices, place))
        sampler = None
        if chosen is not None:
            with working("loading PyTorch and transformers"):
                from align.api.sampling import open_sampler
                from align.core.inference.sampler import handle_for

            handle = handle_for(Model(path=str(model)))
            sampler = opened.enter_context(open_sampler(handle, settings, chosen, n=n, seed=seed))
        progress = opened.enter_context(Work("judging prompts", len(records)))
        return label(records, scorer, journal, sampler, progress.update)
