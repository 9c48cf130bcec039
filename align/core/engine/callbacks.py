"""Lightning callbacks of training: signals, held-out evaluation, checkpoints, metrics, the progress bar."""

from __future__ import annotations

import resource
import shutil
import signal
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import CheckpointIO

from align.core.algorithm import contract
from align.core.engine import checkpoint
from align.core.engine.checkpoint import set_random_state
from align.core.engine.module import AlignModule
from align.core.engine.sharded_checkpoint import ShardReader
from align.core.engine.steps import StepBatch, StepSource
from align.core.util import liveness, profile
from align.core.util.profile import profiled
from align.core.util.progress import Work, interval, on_terminal, say, working
from align.core.util.stopping import Interrupted, StopFlag
from align.schemas.errors import AlignError, Problem, did_you_mean
from align.schemas.renamed import RENAMED_METRICS

LINES = 10
"""Fewest lines about steps in a log, if the run has as many steps."""
LONG_WAIT = 15.0
"""Seconds between two steps after which a line says what is being waited for."""
SILENT = ("reward", "gold")
"""Held-out metrics that an evaluation may lack: when every reward abstains (a judge that is down)."""


class SignalHandler(Callback):
    """Let signals only raise a flag while steps are taken; all ranks agree on it in the step's one collective.

    From ``on_train_start`` on: earlier, Lightning adds its own handlers, which wait for other ranks inside the handler
    and so never return.
    """

    def __init__(self, signals: StopFlag) -> None:
        self.signals = signals

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Take over the signals."""
        assert isinstance(module, AlignModule)
        liveness.at_step(trainer.global_step + 1, module.total_steps)
        self.signals.listen()

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note that a step is done and which is next, for the messages and the log of ``align.core.util.liveness``."""
        assert isinstance(module, AlignModule) and isinstance(batch, StepBatch)
        profile.step_done()
        shown = {name: module.metrics[name] for name in ("loss", "reward") if name in module.metrics}
        liveness.step_done(trainer.global_step, batch.own_tokens, **shown)
        liveness.at_step(trainer.global_step + 1, module.total_steps)

    def teardown(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        """Give the signals back."""
        liveness.steps_end()
        self.signals.restore()


class DirectoryIO(CheckpointIO):
    """Lightning's door to ``align.core.engine.checkpoint``."""

    def __init__(
        self, facts: Mapping[str, Any] = MappingProxyType({}), logs: Callable[[], dict[str, str]] = dict
    ) -> None:
        """facts: written into every manifest. logs: returns the checksums of the loggers' files so far."""
        super().__init__()
        self.facts, self.logs = facts, logs

    def save_checkpoint(self, state: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Lightning calls it on rank 0 only."""
        paused = state.get("align", {}).get("paused")
        checkpoint.save(Path(path), state, {**self.facts, "paused": paused, "logs": self.logs()})

    def save_sharded(self, state: dict[str, Any], path: Any) -> None:
        """Write sharded tensors from the ranks that hold them. Collective: a strategy calls it on every rank."""
        paused = state.get("align", {}).get("paused")
        checkpoint.save_sharded(Path(path), state, {**self.facts, "paused": paused, "logs": self.logs()})

    def load_sharded(self, path: Any) -> tuple[dict[str, Any], ShardReader | None]:
        """Return the state with markers for sharded tensors, and what reads them; None if the checkpoint is whole."""
        return checkpoint.load_sharded(Path(path))

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Every rank reads the same directory."""
        return checkpoint.load(Path(path))

    def remove_checkpoint(self, path: Any) -> None:
        """Remove a checkpoint; Lightning's own callbacks may call it."""
        shutil.rmtree(path, ignore_errors=True)


class CheckpointCallback(Checkpoint):
    """Checkpoints at step boundaries, the best one protected; early stopping; exact resume.

    A checkpoint that is due at a step with an evaluation is made after it, so that its outcome is inside.
    (A Checkpoint by class, because Lightning calls those after all others: their state is then the step's.)
    """

    def __init__(
        self,
        root: Path,
        steps: StepSource,
        signals: StopFlag,
        validates: bool,
        on_pause: Callable[[int], None] = lambda step: None,
    ) -> None:
        """on_pause: called with the step when a pause is saved, before it is raised."""
        self.root, self.steps, self.signals, self.validates, self.on_pause = root, steps, signals, validates, on_pause
        self.best_value: float | None = None
        self.best_step: int | None = None
        self.evaluations_without_gain = 0
        self.saved_step = 0

    def evaluation_due(self, module: AlignModule, step: int) -> bool:
        """Return True if Lightning evaluates after this step."""
        if not self.validates:
            return False
        every = module.stage.validation.eval_steps or self.steps.evaluate_every
        due = step % every == 0 if every else self.steps.locate(step)[1] == 0
        return due or step >= module.total_steps

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Back to the random states of the checkpoint; nothing random happens between here and the first step."""
        assert isinstance(module, AlignModule)
        self.saved_step = trainer.global_step
        restored = module.take_restored_random()
        # A run that goes on with another number of ranks has no state for each; their own seeds then stand.
        if restored is not None and len(restored) == trainer.world_size:
            set_random_state(restored[trainer.global_rank])

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        """Save where due and no evaluation follows; stop here if a signal came."""
        assert isinstance(module, AlignModule)
        if trainer.global_step >= module.total_steps:
            trainer.should_stop = True  # Lightning then evaluates once more, also off the interval
        # Whoever decided to stop, Lightning evaluates once more, and that may have been the best yet.
        evaluates = self.evaluation_due(module, trainer.global_step) or (self.validates and trainer.should_stop)
        if not evaluates:
            self._save_if_due(trainer, module, now=module.stopping or trainer.should_stop)

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Judge the evaluation, then save. The one before the first step is not judged, but must have the metric."""
        assert isinstance(module, AlignModule)
        metric, mode = checkpoint.goal_of(module.stage, module.algorithm)
        value = module.held_out_metrics.get("val/" + metric)
        if value is None and metric not in SILENT:
            raise _no_such_metric(module, metric)
        if trainer.sanity_checking:
            return
        better = value is not None and (
            self.best_value is None or (value < self.best_value if mode == "min" else value > self.best_value)
        )
        if better:
            self.best_value, self.best_step, self.evaluations_without_gain = value, trainer.global_step, 0
        elif value is not None:  # else nobody scored a held-out answer, and there is nothing to judge
            self.evaluations_without_gain += 1
        patience = module.stage.validation.early_stopping_patience
        if patience is not None and self.evaluations_without_gain >= patience:
            trainer.should_stop = True
        self._save_if_due(trainer, module, now=better or trainer.should_stop or module.stopping)

    def _save_if_due(self, trainer: Trainer, module: AlignModule, now: bool) -> None:
        step = trainer.global_step
        if now or module.paused or step % module.stage.checkpoint.save_steps == 0 or step >= module.total_steps:
            self.save(trainer, module)
        if module.paused is not None and step < module.total_steps:
            self.on_pause(step)
            raise module.paused
        if module.stopping and step < module.total_steps:
            raise Interrupted(self.signals.received or signal.SIGTERM, step)

    def interrupt(self, trainer: Trainer, module: AlignModule, why: BaseException) -> NoReturn:
        """Save what the last step left and raise, when ``why`` interrupted the sampling of a phase. Collective."""
        self.save(trainer, module)
        if isinstance(why, AlignError):
            saved = trainer.global_step
            last = Problem(module.stage.name, f"stopped; step {saved} is saved", "--resume goes on from there")
            raise AlignError.gather([*why.problems, *([last] if saved else [])]) from None
        raise Interrupted(self.signals.received or signal.SIGTERM, trainer.global_step)

    @profiled("checkpoint")
    def save(self, trainer: Trainer, module: AlignModule) -> None:
        """Write the checkpoint of this step. Collective."""
        step = trainer.global_step
        if step == self.saved_step:
            return
        if not checkpoint.all_finite(p for p in module.parameters() if p.requires_grad):
            raise RuntimeError(f"weights are not finite after step {step}, although its loss and gradient were")
        self.saved_step = step
        path = checkpoint.at(self.root, step)
        trainer.save_checkpoint(path)
        liveness.note("checkpoint", step=step)
        if trainer.is_global_zero:
            checkpoint.rotate(self.root, module.stage.checkpoint.save_total_limit, self.best_step)
        trainer.strategy.barrier("checkpoint")

    def on_load_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Tell Lightning that it stands at the start of a (shorter) epoch, which holds the phase's remaining steps.

        Its own bookkeeping of restarts inside an epoch depends on which hook saved; this does not.
        """
        self.steps.load_state_dict(checkpoint["callbacks"][self.state_key]["steps"])
        steps = checkpoint["align"]["steps"]
        fit = checkpoint["loops"]["fit_loop"]
        phase, _ = self.steps.locate(steps)
        for progress, count in ((fit["epoch_progress"], phase), (fit["epoch_loop.batch_progress"], steps)):
            progress["total"] = dict.fromkeys(progress["total"], count)
            progress["current"] = dict.fromkeys(progress["current"], 0)
        fit["epoch_progress"]["current"] = dict.fromkeys(fit["epoch_progress"]["current"], phase)
        fit["epoch_loop.batch_progress"]["is_last_batch"] = False

    def state_dict(self) -> dict[str, Any]:
        """Return the state that early stopping and the choice of the best checkpoint depend on."""
        return {
            "best_value": self.best_value,
            "best_step": self.best_step,
            "evaluations_without_gain": self.evaluations_without_gain,
            "steps": self.steps.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state."""
        self.best_value, self.best_step = state["best_value"], state["best_step"]
        self.evaluations_without_gain = state["evaluations_without_gain"]


def _no_such_metric(module: AlignModule, metric: str) -> AlignError:
    known = [name.removeprefix("val/") for name in module.held_out_metrics]
    new = RENAMED_METRICS.get(metric)
    return AlignError(
        f"is {metric!r}, which the held-out rows do not give",
        f"that metric is called {new} now" if new else did_you_mean(metric, known),
        where=f"{module.stage.name}: validation.metric_for_best_model",
    )


class MetricsCallback(Callback):
    """Metrics to the loggers, one row a step, and to Lightning's ``callback_metrics`` for other callbacks."""

    def __init__(self, steps: StepSource) -> None:
        self.steps = steps

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        """The step's row."""
        assert isinstance(module, AlignModule)
        self._write(trainer, module, module.metrics)

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        """The evaluation's row; the one before the first step is made by Lightning's sanity check."""
        assert isinstance(module, AlignModule)
        self._write(trainer, module, module.held_out_metrics)

    @profiled("logging")
    def _write(self, trainer: Trainer, module: AlignModule, metrics: Mapping[str, float]) -> None:
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in metrics.items()})
        step = trainer.global_step
        for logger in trainer.loggers:
            with contract.calling(logger, "log_metrics"):
                logger.log_metrics({**metrics, "epoch": self.steps.epochs(step)}, step)
            logger.save()


class ProgressBar(Callback):
    """The progress of training, on stderr of one process: a bar on a terminal, else lines for a log.

    A line comes at the first and the last step, at every evaluation, after each tenth of the steps, and in between as
    often as ``progress.interval`` lets it. ``sft: step 12/120  loss 2.3124  1,234 tok/s  0:02:10 left``
    """

    def __init__(self, title: str) -> None:
        self.title = title
        self._bar: Work | None = None
        self._waiting: Work | None = None  # while it samples, or evaluates
        self._rows = False
        self._last_step = 0

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Start the bar, or write the line that training starts."""
        assert isinstance(module, AlignModule)
        if not trainer.is_global_zero:
            return
        self._rows = not on_terminal()
        self._since = self._last = time.monotonic()
        self._first = self._last_step = trainer.global_step
        self._tokens, self._scored = 0, 0.0
        if self._rows:
            done = f", {trainer.global_step:,} of them done before" if trainer.global_step else ""
            say(f"{self.title}: training, {module.total_steps:,} steps{done}")
        else:
            # Entered by hand, here and in _wait: it ends in another hook.
            self._bar = Work(self.title, module.total_steps, shown=True).__enter__()
            self._bar.update(trainer.global_step)

    def on_train_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Show that an online phase samples first, which may take longer than all of its steps."""
        assert isinstance(module, AlignModule)
        if module.stage.rollout is not None:
            self._wait(trainer, "sampling and scoring answers")

    def on_train_batch_start(self, *_: Any) -> None:
        """End the display of sampling."""
        self._wait_no_more()

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, *_: Any) -> None:
        """One step further."""
        assert isinstance(module, AlignModule) and isinstance(batch, StepBatch)
        if self._bar is None and not self._rows:
            return
        self._tokens += batch.tokens
        self._scored += batch.denominators.get("token", 0.0)
        now, step = time.monotonic(), trainer.global_step
        seconds = max(now - self._since, 1e-9)
        shown = ("reward", "loss") if module.stage.rollout is not None else ("loss",)
        facts = [f"{name} {module.metrics[name]:z.4f}" for name in shown if name in module.metrics]
        facts.append(f"{self._tokens / seconds:,.0f} tok/s")
        if self._bar is not None:
            facts += [f"{self._scored / seconds:,.0f} scored/s", f"{_memory_gib():.1f} GiB"]
            self._bar.update(step, "  ".join(facts))
            return
        first_or_last = step == self._first + 1 or step >= module.total_steps
        enough_steps = step - self._last_step >= module.total_steps / LINES
        enough_time = now - self._last >= interval(seconds)
        if first_or_last or enough_steps or enough_time:
            left = seconds / max(1, step - self._first) * (module.total_steps - step)
            facts.append(f"{timedelta(seconds=round(left))} left")
            self._say(f"step {step:,}/{module.total_steps:,}  {'  '.join(facts)}", step)

    def on_validation_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Show that held-out rows are evaluated; before the first step too."""
        self._wait(trainer, "evaluating held-out rows")

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Show the metric that judges checkpoints."""
        assert isinstance(module, AlignModule)
        self._wait_no_more()
        metric, _ = checkpoint.goal_of(module.stage, module.algorithm)
        value = module.held_out_metrics.get("val/" + metric)
        if not on_terminal() and trainer.is_global_zero and value is not None:
            self._say(f"step {trainer.global_step:,}/{module.total_steps:,}  held-out {metric} {value:z.4f}")

    def on_exception(self, trainer: Trainer, module: LightningModule, exception: BaseException) -> None:
        """Restore the terminal: after an exception Lightning calls no teardown."""
        self.teardown(trainer, module, "")

    def teardown(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        """Leave the last state on the screen."""
        self._wait_no_more()
        if self._bar is not None:
            last = self._bar.line()
            self._bar.__exit__()
            self._bar = None
            say(last)

    def _wait(self, trainer: Trainer, what: str) -> None:
        self._wait_no_more()
        if trainer.is_global_zero:
            self._waiting = working(f"{self.title}: {what}", shown=True, patience=LONG_WAIT).__enter__()

    def _wait_no_more(self) -> None:
        if self._waiting is not None:
            self._waiting.__exit__()
            self._waiting = None

    def _say(self, line: str, step: int | None = None) -> None:
        self._last = time.monotonic()
        self._last_step = self._last_step if step is None else step
        say(f"{self.title}: {line}")


def _memory_gib() -> float:
    """Peak memory of the device, or of this process on a CPU."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
