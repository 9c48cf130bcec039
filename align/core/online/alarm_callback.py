"""Alarms of an online stage, looked for at the end of each phase: printed, and where the run file wants it, obeyed."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from align.core.engine.module import AlignModule
from align.core.online.monitor import CHECK, EQUAL, UNSCORED, VARY, Alarm, Watcher
from align.core.online.phases import RolloutSteps
from align.schemas.errors import AlignError, Problem
from align.schemas.run import Watch

AVERAGED = {"entropy", "kl"}
"""Metrics that the loss logs at every step: a phase is judged by their mean."""

NOUGHT = 1e-6
ZERO_LOSS = (
    "a loss of 0 is normal here: with one step a phase every ratio is 1 and the advantages of a group sum to 0; their "
    "gradient does not. Watch reward and val/reward"
)


class AlarmCallback(Callback):
    """Every rank sees the same metrics, and so comes to the same alarms. note: keeps them (rank 0)."""

    def __init__(self, settings: Watch, phases: RolloutSteps, note: Callable[[Sequence[str]], None]) -> None:
        self.settings, self.phases, self.note = settings, phases, note
        self.watcher = Watcher(settings, phases.algorithm.compares)
        self.reported: list[str] = []
        self.sums: dict[str, tuple[float, int]] = {}

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        """Check the phase that ends with this step, or with the stage."""
        assert isinstance(module, AlignModule)
        phase, within = self.phases.locate(trainer.global_step)
        for name in AVERAGED & module.metrics.keys():  # a step that taught nothing has none of them
            total, count = self.sums.get(name, (0.0, 0))
            self.sums[name] = (total + module.metrics[name], count + 1)
        if within:
            if trainer.global_step < self.phases.total_steps:
                return
            phase += 1  # the stage ends within a phase: ``locate`` counts only those that are complete
        means = {name: total / count for name, (total, count) in self.sums.items()}
        self.sums = {}
        alarms = self.watcher.look(phase, {**module.metrics, **means})
        nought = self.phases.steps_per_phase == 1 and abs(module.metrics["loss"]) < NOUGHT < module.metrics["grad_norm"]
        if phase == 1 and nought and trainer.is_global_zero:
            print(ZERO_LOSS, file=sys.stderr)
        if alarms and trainer.is_global_zero:
            for alarm in alarms:
                what = alarm.what
                if alarm.name == UNSCORED and self.phases.unscored:
                    what = f"{what}: {self.phases.unscored}"
                print(Problem(f"{module.stage.name}, phase {phase}", what, alarm.fix), file=sys.stderr)
            self.reported += [f"phase {phase}: {alarm.what}" for alarm in alarms]
            self.note(self.reported)
        serious = [alarm for alarm in alarms if not alarm.hint]
        if serious and self.settings.action == "pause":
            module.pause(_pause(module.stage.name, phase, serious))
        elif serious and self.settings.action == "rollback":
            module.roll_back()

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Report a stage in which no phase had anything to learn from; its exit status, 0, does not show it."""
        assert isinstance(module, AlignModule)
        signals = self.watcher.signals
        if not signals or signals[""]:
            return
        fix = CHECK if signals[UNSCORED] else VARY
        last = Problem(module.stage.name, f"learned nothing from its rewards: {_lacked(signals)}", fix)
        if trainer.is_global_zero:
            print(last, file=sys.stderr)
            self.reported.append(last.what)
            self.note(self.reported)

    def state_dict(self) -> dict[str, Any]:
        """Return the monitor's state and the alarms that were raised."""
        return {
            "watcher": self.watcher.state_dict(),
            "said": list(self.reported),
            "sums": dict(self.sums),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state."""
        self.watcher.load_state_dict(state["watcher"])
        self.reported = list(state["said"])
        self.sums = {name: (total, count) for name, (total, count) in state["sums"].items()}


def _lacked(signals: Counter[str]) -> str:
    """Return what the phases lacked, for a message."""
    phases = f"its {signals.total()} phases" if signals.total() > 1 else "its only phase"
    words = {UNSCORED: "no answer was scored", EQUAL: "the answers of each group all got the same reward"}
    return f"in {phases} " + ", or ".join(words[name] for name in words if signals[name])


def _pause(stage: str, phase: int, alarms: Sequence[Alarm]) -> AlignError:
    found = [Problem(f"{stage}, phase {phase}", alarm.what, alarm.fix) for alarm in alarms]
    last = Problem(stage, "is paused and saved, as rollout.watch.action says", "--resume goes on as if nothing were")
    return AlignError.gather([*found, last])
