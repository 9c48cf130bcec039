"""Rewards outside training: what one gives to a file's completions, and what it gives to junk."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from align.api.input_types import RewardLike, as_reward
from align.core.inference.audit import Audit
from align.core.inference.audit import audit as attack
from align.core.rewards.reward_base import RewardContext
from align.core.rewards.score_file import InputLine, Verdict, lines_of, read_lines, score_lines
from align.core.rewards.scorer import RunningReward
from align.core.util.system_errors import explaining
from align.schemas.errors import AlignError
from align.schemas.run import Choice, Model, Sampling

if TYPE_CHECKING:
    from align.core.inference.difficulty import Difficulty

Rows = str | Path | Iterable[Mapping[str, Any]]
"""A JSONL file, or rows."""
Device = Literal["cpu", "cuda"]


@dataclass(frozen=True, slots=True)
class RewardAudit:
    """A reward under attack. unusable: lines without what an attack needs, and why. difficulty: with a model."""

    attacked: Audit
    difficulty: Difficulty | None
    unusable: Sequence[InputLine]

    @property
    def passes(self) -> bool:
        """Return True if junk is paid less than gold."""
        return not self.attacked.faults

    def to_json(self) -> dict[str, Any]:
        """Return the attacks and the difficulty as plain data."""
        return asdict(self.attacked) | {"difficulty": asdict(self.difficulty) if self.difficulty else None}


@explaining()
def score(
    reward: RewardLike,
    rows: Rows,
    *,
    together: int = 1,
    device: Device = "cpu",
    report: Callable[[Verdict], None] = lambda verdict: None,
) -> list[Verdict]:
    """Return a reward's score for each row, in order; a row that cannot be scored says why.

    reward: ``"math"``, ``"rewards.py:polite"``, or with settings ``{"type": "length", "target": 200}``. rows: a JSONL
    file or mappings, with ``completion`` and the columns that the reward needs. together: completions in one call.
    device: for rewards that are models. report: called with each score as it comes.
    Raises AlignError for a file that cannot be read and for a reward that cannot be opened.
    """
    lines = _lines(rows)
    verdicts = []
    with closing(_opened(reward, device)) as opened:
        for verdict in score_lines(opened, lines, together):
            report(verdict)
            verdicts.append(verdict)
    return verdicts


@explaining()
def audit(
    reward: RewardLike,
    rows: Rows,
    *,
    limit: int = 100,
    model: str | Path | None = None,
    n: int = 8,
    max_completion_length: int = 256,
    seed: int = 0,
    device: Device = "cpu",
) -> RewardAudit:
    """Attack a reward with junk on rows before a model does, and return what it paid.

    rows: a JSONL file or mappings, with ``prompt``, and ``solution`` or ``completion``; the first ``limit`` usable ones
    are attacked. model: a directory or hub id; ``n`` of its completions of each prompt, of at most
    ``max_completion_length`` tokens, show how many groups will teach nothing. device: for rewards that are models.
    Imports torch where a ``model`` is named. Raises AlignError for what cannot be read, opened or loaded.
    """
    if limit < 1 or n < 2:
        raise AlignError("needs at least 1 row, and 2 completions of each prompt", where="audit")
    lines = _lines(rows, completion=False)
    usable = [line for line in lines if not line.fault][:limit]
    with ExitStack() as stack:
        opened = stack.enter_context(closing(_opened(reward, device)))
        sampler = encode = None
        if model is not None:
            from align.api.sampling import open_sampler
            from align.core.inference.sampler import handle_for

            sampling = Sampling(max_completion_length=max_completion_length)
            handle, local = handle_for(Model(path=str(model))), Choice(type="local")
            sampler = stack.enter_context(open_sampler(handle, sampling, local, n=n, seed=seed))
            tokenizer = handle.tokenizer

            def encode(text: str) -> list[int]:
                return list(tokenizer.encode(text, add_special_tokens=False))

        name = str(rows) if isinstance(rows, str | Path) else "rows"
        attacked = attack(opened, usable, name, encode)
        seen = None
        if sampler is not None:
            from align.core.inference.difficulty import estimate_difficulty

            seen = estimate_difficulty(opened, usable, sampler)
    return RewardAudit(attacked, seen, [line for line in lines if line.fault])


def _lines(rows: Rows, completion: bool = True) -> list[InputLine]:
    if isinstance(rows, str | Path):
        return read_lines(Path(rows), completion)
    return lines_of(rows, completion)


def _opened(reward: RewardLike, device: Device) -> RunningReward:
    return RunningReward(as_reward(reward), RewardContext(accelerator=device))
