"""The LightningModule: one training step for every algorithm.

Automatic optimisation, with one Lightning batch per optimizer step: all micro-batches but the last are run backward
here, the last by Lightning. So nothing is divided by ``accumulate_grad_batches``, whatever the number of
micro-batches, and every step boundary is a batch boundary: checkpoints and resuming need no half-steps.

    loss = sum over terms of  weight * (sum of values over the step) / (count over the step)

Each micro-batch adds its share; the counts come from the step plan, so no rank asks another. Ranks' gradients are
averaged (DDP, FSDP2), hence the factor ``world_size``.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule
from numpy.typing import NDArray
from torch import Tensor

from align.core.algorithm import contract
from align.core.algorithm.contract import Algorithm, LossOutput, Metric
from align.core.data.batch import Batch, MicroBatch
from align.core.engine.checkpoint import all_gather_objects, random_state
from align.core.engine.optimizer import adamw, factor, factor_of_each, gradient_norm, parameter_groups
from align.core.engine.steps import StepBatch
from align.core.models.policy import Policy, reshard
from align.core.models.reference import ReferenceModel
from align.core.util.profile import profiled, waiting_once_computed
from align.schemas.errors import AlignError
from align.schemas.run import Stage

Reduce = Literal["mean", "sum", "min", "max"]
_START: Mapping[str, float] = {"mean": 0.0, "sum": 0.0, "min": float("inf"), "max": float("-inf")}


class StepMetrics:
    """Sums and counts of one optimizer step's (or one evaluation's) metrics, over all micro-batches and ranks.

    They lie in one table, which carries everything that ranks must agree on (loss, metrics, flags), so that a step
    takes one collective however many metrics there are. Every rank must add the same names in the same order; a rank
    without values adds empty tensors.
    """

    def __init__(self) -> None:
        self._how: dict[str, Reduce] = {}
        self._value: dict[str, Tensor] = {}
        self._count: dict[str, Tensor] = {}

    def add(self, name: str, entry: Metric | Tensor, count: float | None = None) -> None:
        """Add values. ``count`` replaces their number as the mean's denominator share."""
        metric = entry if isinstance(entry, Metric) else Metric(entry)
        values = metric.values.detach().double().flatten()
        counted: float | Tensor = values.numel()
        if metric.where is not None:
            mask = metric.where.flatten()
            neutral = {"min": math.inf, "max": -math.inf}.get(metric.reduce, 0.0)
            values, counted = torch.where(mask, values, neutral), mask.sum()
        if name not in self._how:
            self._how[name] = metric.reduce
            self._value[name] = torch.full((), _START[metric.reduce], dtype=torch.float64, device=values.device)
            self._count[name] = torch.zeros((), dtype=torch.float64, device=values.device)
        if metric.reduce in ("mean", "sum"):
            self._value[name] = self._value[name] + values.sum()
        elif values.numel():
            extreme = values.min() if metric.reduce == "min" else values.max()
            pick = torch.minimum if metric.reduce == "min" else torch.maximum
            self._value[name] = pick(self._value[name], extreme)
        self._count[name] = self._count[name] + (counted if count is None else count)

    def compute(self) -> dict[str, float]:
        """Reduce over all ranks and return plain numbers; a mean over nothing is left out. Collective.

        The host waits here until the device has done all that it was given.
        """
        if not self._how:
            return {}
        table = torch.stack([torch.stack(list(self._value.values())), torch.stack(list(self._count.values()))])
        tables = gather(table)
        counts = tables[:, 1].sum(0)
        reduced = {how: getattr(np, how)(tables[:, 0], axis=0) for how in ("sum", "min", "max")}
        result: dict[str, float] = {}
        for column, (name, how) in enumerate(self._how.items()):
            if how == "sum":
                result[name] = float(reduced["sum"][column])
            elif counts[column]:
                value = reduced["sum" if how == "mean" else how][column]
                result[name] = float(value / counts[column] if how == "mean" else value)
        return result


class EvalMetrics:
    """Sums over one held-out set, whose loss is averaged as if the whole set were one optimizer step."""

    def __init__(self) -> None:
        self.sums = StepMetrics()
        self.counts: Counter[str] = Counter()
        self.terms: list[tuple[str, float]] = []

    def update(self, outcome: LossOutput) -> None:
        """Add one micro-batch's values."""
        self.terms = [(term.per, term.weight) for term in outcome.terms]
        for index, term in enumerate(outcome.terms):
            self.sums.add(f"_term{index}", Metric(term.values, "sum"))
        for name, metric in outcome.metrics.items():
            self.sums.add(name, metric)

    def compute(self) -> dict[str, float]:
        """Return the set's metrics, ``loss`` first. Collective."""
        metrics = self.sums.compute()
        sums = [metrics.pop(f"_term{index}") for index in range(len(self.terms))]
        loss = sum(w * x / max(self.counts[per], 1) for (per, w), x in zip(self.terms, sums, strict=True))
        return {"loss": loss, **metrics}


@profiled("waiting")
def gather(table: Tensor) -> NDArray[np.float64]:
    """Return the tables of all ranks, on the host: [...] -> [world, ...]. Collective."""
    parts = [table]
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        parts = [torch.empty_like(table) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, table)
    return torch.stack(parts).cpu().numpy()


ROWS_NAMED = 8
"""Most rows that the message about a non-finite step names."""


class NonFinite(AlignError):
    """NaN or infinity in a loss or gradient; nothing was updated."""

    def __init__(self, step: int, metrics: Mapping[str, float], rows: list[str], in_a_row: int) -> None:
        self.step, self.rows = step, rows
        more = f" and {len(rows) - ROWS_NAMED} more" if len(rows) > ROWS_NAMED else ""
        named = f"; its rows: {', '.join(rows[:ROWS_NAMED])}{more}" if rows else ""
        again = f", the {in_a_row}th such step in a row" if in_a_row > 1 else ""
        super().__init__(
            f"the loss is {metrics['loss']} and the gradient norm {metrics['grad_norm']}{again}{named}",
            "look at these rows; a lower learning rate, a warm-up or a wider dtype may help; "
            "train.on_nonfinite: skip leaves such steps out and counts them",
            where=f"step {step}",
        )


@dataclass(frozen=True, slots=True)
class StageHooks:
    """Functions that a kind of stage adds to the steps of training; the defaults add nothing.

    shard: splits a network in place over Lightning's device mesh.
    stop_requested: returns true once a signal asked this process to stop.
    phase_metrics: returns the metrics of the phase that the step belongs to.
    evaluate_prompts: (index of a held-out set, optimizer step) -> its metrics, in place of the loss on its rows.
    evaluate_completions: (index of a held-out set, optimizer step) -> metrics in addition to the loss on its rows.
    evaluate_suite: (optimizer step) -> metrics of evals that have nothing to do with the held-out rows.
    """

    shard: Callable[[Policy, Any], None] | None = None
    stop_requested: Callable[[], bool] = lambda: False
    phase_metrics: Callable[[], Mapping[str, float]] = dict
    evaluate_prompts: Callable[[int, int], dict[str, float]] | None = None
    evaluate_completions: Callable[[int, int], dict[str, float]] = lambda index, step: {}
    evaluate_suite: Callable[[int], dict[str, float]] = lambda step: {}


class AlignModule(LightningModule):
    """A policy, the algorithm that trains it, and the reference that it is compared with."""

    def __init__(
        self,
        stage: Stage,
        policy: Policy,
        algorithm: Algorithm,
        reference: ReferenceModel | None,
        total_steps: int,
        held_out_names: Sequence[str | None] = (),
        critic: Policy | None = None,
        hooks: StageHooks = StageHooks(),  # frozen
    ) -> None:
        super().__init__()
        self.stage, self.policy, self.algorithm, self.total_steps = stage, policy, algorithm, total_steps
        self.critic = critic
        self.held_out_names = held_out_names
        self.hooks = hooks
        self._sharded = False
        # In a tuple, so that it is neither saved, wrapped nor trained with the module.
        self._reference = (reference,)
        self.strict_loading = False  # a checkpoint holds what is trained, not the frozen base
        self.metrics: dict[str, float] = {}
        self.held_out_metrics: dict[str, float] = {}
        self.skipped = self.skipped_in_a_row = self.tokens_seen = 0
        self.stopping = False
        self.paused: AlignError | None = None  # set by an alarm: save and stop
        self.rolled_back = False  # set by an alarm: stop, and export the best checkpoint
        self._restored_random: list[dict[str, Any]] | None = None
        self._metrics = StepMetrics()
        self._shares: list[tuple[Tensor, tuple[str, ...]]] = []  # of each micro-batch its loss, and its rows
        self._nothing_learned = False

    @property
    def reference(self) -> ReferenceModel | None:
        """The reference policy, if the algorithm uses one."""
        return self._reference[0]

    @property
    def learning_rate(self) -> float:
        """Peak rate: the run file's, else the algorithm's vetted one, ten times it for an adapter.

        (LoRA learns best at about ten times the rate of full fine-tuning: Thinking Machines, LoRA Without Regret.)
        """
        given = self.stage.optimizer.learning_rate
        return given or self.algorithm.learning_rate * (10 if self.stage.model.adapter else 1)

    # --- one micro-batch -------------------------------------------------------------------------------------------

    def _batch(self, micro: MicroBatch, statistics: Mapping[str, Tensor]) -> tuple[Batch, Tensor]:
        """Return the loss's input, and a zero that ties every parameter to the graph: DDP waits for each gradient."""
        reference = micro.ref_logp_T
        if reference is None and self.reference is not None:
            reference = self.reference.logp(micro)
        scores, anchor, value_T = self.policy(micro), 0.0, None
        if self.critic is not None:
            values = self.critic(micro)
            anchor, value_T = values.anchor, values.value_T
        batch = self.policy.batch(micro, scores, statistics, ref_logp_T=reference, value_T=value_T)
        return batch, scores.anchor + anchor

    def _statistics(self, step: StepBatch) -> dict[str, Tensor]:
        """Means over the step's auxiliary examples, equal on all ranks."""
        if not step.auxiliary:
            return {}
        sums = StepMetrics()
        with torch.no_grad():
            for micro in step.auxiliary:
                with contract.calling(self.algorithm, "statistics"):
                    found = self.algorithm.statistics(self._batch(micro, {})[0])
                for name, values in found.items():
                    sums.add(name, values)
        torch.clear_autocast_cache()  # its casts of the weights have no graph: the loss could not reach the weights
        # Filled there: a copy from the host would wait.
        return {name: torch.full((), value, device=self.device) for name, value in sums.compute().items()}

    def _loss_contribution(
        self, micro: MicroBatch, statistics: Mapping[str, Tensor], counts: Mapping[str, float]
    ) -> Tensor:
        """Return one micro-batch's share of the step's loss, with its graph, and add it to the step's metrics."""
        batch, anchor = self._batch(micro, statistics)
        if not counts["example"]:  # an online phase in which no answer taught anything
            self._metrics.add("loss", Metric(anchor, "sum"))
            return anchor
        outcome = contract.loss(self.algorithm, batch)
        share = outcome.loss_contribution(counts) + anchor
        self._metrics.add("loss", Metric(share, "sum"))
        for name, metric in outcome.metrics.items():
            self._metrics.add(name, metric)
        self._shares.append((share.detach(), micro.sources))
        return share

    def configure_model(self) -> None:
        """Split the policy over the mesh, where the strategy asks for it."""
        if self.hooks.shard is not None and not self._sharded:  # Lightning may call this more than once
            for network in self.networks.values():
                self.hooks.shard(network, self.device_mesh)
            self._sharded = True

    @property
    def networks(self) -> dict[str, Policy]:
        """The networks that are trained: ``policy``, and ``critic`` where there is one."""
        return {"policy": self.policy} | ({} if self.critic is None else {"critic": self.critic})

    # --- training --------------------------------------------------------------------------------------------------

    @profiled("loss")
    def training_step(self, step: StepBatch, batch_idx: int) -> Tensor:
        """Run the step's micro-batches; Lightning runs the last one backward."""
        self._drop_gradients()
        self._metrics, self._shares = StepMetrics(), []
        self._nothing_learned = not step.denominators["example"]
        statistics = self._statistics(step)
        *earlier, last = step.micros
        for micro in earlier:
            share = self._loss_contribution(micro, statistics, step.denominators)
            # Under DDP we are inside its forward: this backward adds to .grad unreduced, the last reduces the sum.
            self.trainer.strategy.backward(share * self.trainer.world_size, None)
        self.tokens_seen += step.tokens
        return self._loss_contribution(last, statistics, step.denominators) * self.trainer.world_size

    @profiled("backward")
    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Run a micro-batch backward; the strategy calls it for every one."""
        if self.trainer.world_size == 1:
            super().backward(loss, *args, **kwargs)
            return
        with waiting_once_computed(loss):
            super().backward(loss, *args, **kwargs)

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Any) -> None:
        """Do nothing: Lightning calls it after ``training_step``, which holds gradients already."""

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Reduce the step's metrics, flags and norms over the ranks, in one collective; gradients take the only other.

        It is also the only time in a step that the host waits for the device (``statistics`` is another): before the
        optimizer may step, it must know that loss and gradient are finite.
        """
        stop = float(self.hooks.stop_requested())
        self._metrics.add("_stop", Metric(torch.full((), stop, device=self.device), "max"))
        if self._shares:
            shares = torch.stack([share for share, _ in self._shares])
            self._metrics.add("_bad", Metric(~shares.isfinite(), "max"))
        for name, network in self.networks.items():
            self._metrics.add(
                "_" + _of("grad_norm", name), Metric(gradient_norm(network.parameters()).to(self.device), "max")
            )
        metrics = self._metrics.compute()
        self.stopping = metrics.pop("_stop") > 0
        bad = metrics.pop("_bad", 0.0) > 0
        norms = {name: metrics.pop("_" + name) for name in (_of("grad_norm", network) for network in self.networks)}
        with contract.calling(self.algorithm, "derived"):
            metrics |= self.algorithm.derived(metrics)
        metrics |= norms
        for group in optimizer.param_groups:
            metrics[_of("learning_rate", group["network"])] = group["lr"]
        metrics["num_tokens"] = float(self.tokens_seen)
        self.metrics = {**metrics, **self.hooks.phase_metrics()}
        # With 16-mixed an infinite gradient under a finite loss is the scaler's business: it skips and rescales.
        scaled = self.stage.train.precision == "16-mixed"
        if bad or not (all(map(math.isfinite, norms.values())) or scaled):
            self._refuse_step()
        else:
            self.skipped_in_a_row = 0
            if self._nothing_learned:
                self._drop_gradients()

    def configure_gradient_clipping(self, optimizer: Any, *_: Any, **__: Any) -> None:
        """Clip each network by its global norm, also where Lightning's sharded plugins refuse to."""
        limit = self.stage.train.max_grad_norm or math.inf
        for name, network in self.networks.items():
            norm = self.metrics[_of("grad_norm", name)]
            gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
            if norm > limit and gradients:
                torch._foreach_mul_(gradients, limit / (norm + 1e-6))

    def _refuse_step(self) -> None:
        """Keep a non-finite step from the optimizer: stop with the rows named, or skip the step and count it."""
        self.skipped += 1
        self.skipped_in_a_row += 1
        self.metrics["skipped"] = float(self.skipped)
        if self.stage.train.on_nonfinite == "stop" or self.skipped_in_a_row > self.stage.train.max_skipped:
            # Where the loss is finite and the gradient is not, any row of the step may be the cause.
            all_rows = [row for _, rows in self._shares for row in rows]
            bad_rows = [row for share, rows in self._shares if not share.isfinite() for row in rows]
            gathered = all_gather_objects((bad_rows, all_rows))
            suspects = {row for bad, _ in gathered for row in bad} or {row for _, rows in gathered for row in rows}
            raise NonFinite(self.trainer.global_step + 1, self.metrics, sorted(suspects), self.skipped_in_a_row)
        self._drop_gradients()

    def _drop_gradients(self) -> None:
        # After a pass without gradient FSDP2's root has its gathered weights for parameters. Those whose gradient the
        # optimizer knows are the sharded ones: it would add to that of the step before.
        reshard(self)
        for parameter in self.parameters():
            parameter.grad = None  # AdamW passes over parameters without gradient: weights and moments stay

    @profiled("optimizer")
    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, then let a moving reference follow."""
        super().optimizer_step(*args, **kwargs)
        if self.reference is not None:
            self.reference.after_step(self.policy, self.trainer.global_step + 1)

    # --- held-out rows ---------------------------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        """Begin with empty sums for each held-out set."""
        self._held_out: dict[int, EvalMetrics] = {}
        self._prompt_metrics: dict[int, dict[str, float]] = {}
        self.policy.eval()

    @profiled("evaluation")
    def validation_step(self, step: StepBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Add one step of held-out rows; of an online stage, score completions to the held-out set's prompts."""
        if self.hooks.evaluate_prompts is not None:
            metrics = self.hooks.evaluate_prompts(dataloader_idx, self.trainer.global_step)
            self._prompt_metrics[dataloader_idx] = metrics
            return
        held_out = self._held_out.setdefault(dataloader_idx, EvalMetrics())
        held_out.counts.update(step.denominators)
        statistics = self._statistics(step)
        for micro in step.micros:
            held_out.update(contract.loss(self.algorithm, self._batch(micro, statistics)[0]))

    @profiled("evaluation")
    def on_validation_epoch_end(self) -> None:
        """Compute the metrics: ``val/loss`` for the only or first set, ``val/NAME/loss`` for named ones."""
        self.held_out_metrics = {}
        computed = {index: held_out.compute() for index, held_out in sorted(self._held_out.items())}
        for index, closed in sorted((computed | self._prompt_metrics).items()):
            prefix = f"val/{self.held_out_names[index]}/" if self.held_out_names[index] else "val/"
            with contract.calling(self.algorithm, "derived"):
                closed |= self.algorithm.derived(closed)
            closed |= self.hooks.evaluate_completions(index, self.trainer.global_step)
            self.held_out_metrics |= {prefix + name: value for name, value in closed.items()}
            if index == 0:
                self.held_out_metrics |= {"val/" + name: value for name, value in closed.items()}
        scores = self.hooks.evaluate_suite(self.trainer.global_step)
        self.held_out_metrics |= {"val/" + name: value for name, value in scores.items()}
        self.policy.train()

    def on_train_start(self) -> None:
        """Switch to training mode, which Lightning leaves to us. (Unwanted dropout was set to zero at loading.)"""
        self.policy.train()

    # --- decisions of callbacks ------------------------------------------------------------------------------------

    def pause(self, why: AlignError) -> None:
        """Save after this step and raise ``why``."""
        self.paused = why

    def roll_back(self) -> None:
        """Stop after this step and export the best checkpoint."""
        self.rolled_back = True
        self.trainer.should_stop = True

    def take_restored_random(self) -> list[dict[str, Any]] | None:
        """Return the random states of all ranks that a checkpoint held, once; None if there are none (any more)."""
        states, self._restored_random = self._restored_random, None
        return states

    # --- state -----------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what is trained, and everything else that the next step depends on. Collective."""
        trained = {name for name, p in self.named_parameters() if p.requires_grad}
        buffers = {name for name, _ in self.named_buffers()}
        kept = {k: v for k, v in checkpoint["state_dict"].items() if k in trained or k in buffers}
        checkpoint["state_dict"] = kept
        checkpoint["align"] = {
            "steps": self.trainer.global_step,
            "tokens_seen": self.tokens_seen,
            "skipped": self.skipped,
            "skipped_in_a_row": self.skipped_in_a_row,
            "metrics": self.metrics,
            "held_out_metrics": self.held_out_metrics,
            # Decisions: a run that is killed before it has acted on one must not train on when it is resumed.
            "ended": self.trainer.should_stop,
            "rolled_back": self.rolled_back,
            "paused": None if self.paused is None else [asdict(problem) for problem in self.paused.problems],
            "reference": self.reference.state_dict() if self.reference is not None else {},
            "random": all_gather_objects(random_state()),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore all of it; the random states wait for the first step."""
        state = checkpoint["align"]
        self.tokens_seen = state["tokens_seen"]
        self.skipped, self.skipped_in_a_row = state["skipped"], state["skipped_in_a_row"]
        self.metrics, self.held_out_metrics = state["metrics"], state["held_out_metrics"]
        self.rolled_back = state["rolled_back"]
        self.trainer.should_stop = state["ended"]  # Lightning then leaves its loop before the first step
        if self.reference is not None:
            self.reference.load_state_dict(state["reference"])
        self._restored_random = state["random"]

    def configure_optimizers(self) -> Any:
        """AdamW, decay on matrices only, and the schedule over the plan's own number of steps.

        (Reading ``trainer.estimated_stepping_batches`` here would make Lightning drop the loader's state.)
        """
        spec = self.algorithm.critic
        rates = {"policy": self.learning_rate} | ({} if spec is None else {"critic": spec.learning_rate})
        warmup = 0 if spec is None else spec.warmup
        groups = parameter_groups(self.networks, rates, self.stage.optimizer.weight_decay)
        optimizer = adamw(groups, self.stage)
        factors = factor_of_each(groups, factor(self.stage.schedule, self.total_steps), warmup)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factors)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def _of(metric: str, network: str) -> str:
    """``grad_norm`` of the policy, ``grad_norm/critic`` of another network."""
    return metric if network == "policy" else f"{metric}/{network}"
