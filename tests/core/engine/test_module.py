"""The module's step, evaluation and state by hand, without a Trainer: every number against a sum written out here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from align.core.algorithm.contract import Algorithm, CriticSpec, LossOutput, LossTerm, Metric, Online
from align.core.data.batch import Batch, MicroBatch, collate
from align.core.data.examples import Example, InMemory, TokenSequence
from align.core.data.step_plan import FORWARD
from align.core.engine.checkpoint import random_state
from align.core.engine.module import AlignModule, NonFinite, StageHooks
from align.core.engine.optimizer import gradient_norm
from align.core.engine.steps import EpochSteps, MicroBatcher, StepBatch, StepLoader, fixed_steps
from align.core.models.policy import Policy
from align.core.models.reference import ReferenceModel
from align.schemas.errors import AlignError
from align.schemas.run import Stage, Train
from align.testing import toy_examples, toy_policy

EXAMPLES = toy_examples("unpaired")
"""Eight, of 2, 7, 1, 9, 3, 1, 1 and 6 scored tokens; their columns say 1 of all but every third."""


class Toy(Algorithm):
    """Twice the mean of −log p over tokens, and half the mean of its square over examples, shifted by a statistic."""

    name = "toy"
    paper = "none: a test"
    learns_from = ("unpaired",)
    learning_rate = 0.004

    def loss(self, batch: Batch) -> LossOutput:
        x_T = -batch.logp_T if batch.ref_logp_T is None else batch.ref_logp_T - batch.logp_T
        x_E = batch.sum_per_sequence(x_T)
        x_E = (
            x_E + batch.step.get("shift", 0.0) + (0 if batch.value_T is None else batch.sum_per_sequence(batch.value_T))
        )
        terms = [LossTerm(x_T, "token", 2.0), LossTerm(x_E.square(), "example", 0.5)]
        return LossOutput(
            terms, {"x": x_T, "most": Metric(x_T, "max"), "least": Metric(x_T, "min"), "all": Metric(x_T, "sum")}
        )

    def derived(self, metrics: Mapping[str, float]) -> Mapping[str, float]:
        return {"twice": 2 * metrics["loss"]}


class Shifted(Toy):
    """The statistic is the mean of log p over sequences of the step turned round."""

    def auxiliary(self, examples: Sequence[Example]) -> Sequence[Example]:
        return list(examples)[::-1][:3]

    def statistics(self, batch: Batch) -> Mapping[str, Tensor]:
        assert not batch.logp_T.requires_grad
        return {"shift": batch.sum_per_sequence(batch.logp_T)}


class Poisoned(Toy):
    """The loss of one example is not finite."""

    poison = math.nan

    def loss(self, batch: Batch) -> LossOutput:
        bad_B = batch.length_B == 9
        return LossOutput(
            [LossTerm(-batch.logp_T * batch.expand_to_tokens(torch.where(bad_B, self.poison, 1.0)), "token")], {}
        )


class Critical(Online):
    name = "critical"
    paper = "none: a test"
    learning_rate = 0.004

    @property
    def critic(self) -> CriticSpec:
        return CriticSpec(None, 0.03, warmup=2)


def stage(**sections: Any) -> Stage:
    plain = {"name": "toy", "model": {"path": "nowhere"}, "data": {"train": "nowhere"}, "algorithm": "toy"}
    return Stage.model_validate(plain | sections)


def module(algorithm: Algorithm | None = None, ranks: int = 1, steps: int = 10, **sections: Any) -> AlignModule:
    """A module over a toy policy, and what of a trainer it asks."""
    kept = {name: sections.pop(name, None) for name in ("reference", "critic")}
    names, hooks = sections.pop("held_out_names", ()), sections.pop("hooks", StageHooks())
    learner, reference, critic = algorithm or Toy(Toy.Config()), kept["reference"], kept["critic"]
    it = AlignModule(stage(**sections), toy_policy(), learner, reference, steps, names, critic, hooks)
    strategy = SimpleNamespace(backward=lambda loss, _: loss.backward())
    it.trainer = SimpleNamespace(strategy=strategy, world_size=ranks, global_step=0, should_stop=False)  # type: ignore[assignment]
    return it


def cutter(
    algorithm: Algorithm, size: int | None = 3, rank: int = 0, ranks: int = 1, tokens: int = 4096
) -> MicroBatcher:
    return MicroBatcher(algorithm, Train(micro_batch_size=size), "padded", 0, tokens, rank, ranks, FORWARD["cpu"])


def one_step(
    it: AlignModule, examples: Sequence[Example] = EXAMPLES, size: int | None = 3, tokens: int = 4096
) -> Tensor:
    """Run a step as Lightning does, up to the optimizer; its gradients stay."""
    step = cutter(it.algorithm, size, ranks=it.trainer.world_size, tokens=tokens).step(0, examples)
    loss = it.training_step(step, 0)
    loss.backward()
    return loss


def close(it: AlignModule, rates: Sequence[float] = (0.5,)) -> None:
    groups = [{"network": name, "lr": rate} for name, rate in zip(it.networks, rates, strict=True)]
    it.on_before_optimizer_step(SimpleNamespace(param_groups=groups))


def by_hand(policy: Policy, examples: Sequence[Example], shift: Any = 0.0) -> tuple[Tensor, list[Tensor]]:
    """The toy's loss with its graph, one example after the other; and each one's −log p."""
    parts = [-policy(collate([example], "padded", 0)).logp_T for example in examples]
    tokens = 2 * torch.cat(parts).sum() / sum(map(len, parts))
    return tokens + 0.5 * sum((part.sum() + shift).square() for part in parts) / len(parts), parts


def gradients(network: torch.nn.Module) -> list[Tensor]:
    return [p.grad.clone() for p in network.parameters() if p.grad is not None]


# --- a step ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 3, 8])
def test_a_step_is_the_sum_over_the_whole_step_by_its_counts(size: int) -> None:
    """With the gradient of what a step of before left behind nowhere in it."""
    it = module()
    for parameter in it.parameters():
        parameter.grad = torch.full_like(parameter, 7.0)
    one_step(it, size=size)
    close(it)
    loss, parts = by_hand(twin := toy_policy(), EXAMPLES)
    loss.backward()
    for mine, theirs in zip(gradients(it.policy), gradients(twin), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
    x_T = torch.cat(parts).detach()
    norm = math.sqrt(sum(float(g.double().square().sum()) for g in gradients(twin)))
    assert it.metrics == pytest.approx(
        {
            "loss": loss.item(),
            "x": float(x_T.mean()),
            "most": float(x_T.max()),
            "least": float(x_T.min()),
            "all": float(x_T.sum()),
            "twice": 2 * loss.item(),
            "grad_norm": norm,
            "learning_rate": 0.5,
            "num_tokens": 61.0,
        },
        rel=1e-4,
    )


def test_ranks_are_averaged_so_each_multiplies_by_their_number() -> None:
    """Also of the micro-batches that are run backward here; what is logged is the loss itself."""
    one, four = module(), module(ranks=4)
    (whole,) = (cutter(one.algorithm).step(0, EXAMPLES),)
    for it in (one, four):
        it.training_step(whole, 0).backward()
        close(it)
    for mine, theirs in zip(gradients(four.policy), gradients(one.policy), strict=True):
        torch.testing.assert_close(mine, 4 * theirs)
    assert four.metrics["loss"] == one.metrics["loss"]


def test_statistics_of_the_step_come_first_and_carry_no_gradient() -> None:
    it = module(Shifted(Shifted.Config()))
    one_step(it, size=2)
    close(it)
    twin = toy_policy()
    with torch.no_grad():
        shift = torch.stack([twin(collate([e], "padded", 0)).logp_T.sum() for e in EXAMPLES[:-4:-1]]).mean()
    loss, _ = by_hand(twin, EXAMPLES, shift)
    loss.backward()
    assert it.metrics["loss"] == pytest.approx(loss.item(), rel=1e-4)
    for mine, theirs in zip(gradients(it.policy), gradients(twin), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


class Fixed(ReferenceModel):
    """Another model; notes after which steps it was told."""

    def __init__(self) -> None:
        self.other, self.told, self.kept = toy_policy(seed=1), list[tuple[Policy, int]](), 0

    def logp(self, micro: MicroBatch) -> Tensor:
        with torch.no_grad():
            return self.other(micro).logp_T

    def after_step(self, policy: Policy, step: int) -> None:
        self.told.append((policy, step))

    def state_dict(self) -> dict[str, Any]:
        return {"kept": 5}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.kept = state["kept"]


def test_the_reference_is_what_the_loss_gets_and_follows_each_step() -> None:
    it = module(reference=(reference := Fixed()))
    loss = one_step(it, EXAMPLES[:1])
    (mine,), micro = [toy_policy()], collate(EXAMPLES[:1], "padded", 0)
    gap_T = reference.logp(micro) - mine(micro).logp_T
    assert float(loss) == pytest.approx(float(2 * gap_T.mean() + 0.5 * gap_T.sum() ** 2), rel=1e-4)
    known = Example(
        "known", (TokenSequence("completion", *TOKENS, np.array([-1.0, -3.0], np.float32)),), {"label": 1.0}
    )
    loss = one_step(it, [known])
    gap_T = torch.tensor([-1.0, -3.0]) - mine(collate([known], "padded", 0)).logp_T
    assert float(loss) == pytest.approx(float(2 * gap_T.mean() + 0.5 * gap_T.sum() ** 2), rel=1e-4)
    closures: list[int] = []
    for done in (0, 1):
        it.trainer.global_step = done
        optimizer = torch.optim.SGD(it.policy.parameters(), 0.0)
        it.optimizer_step(0, 0, optimizer, optimizer_closure=lambda done=done: closures.append(done))
    assert closures == [0, 1]
    assert reference.told == [(it.policy, 1), (it.policy, 2)]


TOKENS = np.array([3, 4, 5], np.int32), np.array([False, True, True])


def test_a_critic_s_values_reach_the_loss_and_its_parameters() -> None:
    it = module(critic=(critic := toy_policy("value", seed=2)))
    assert it.networks == {"policy": it.policy, "critic": critic}
    loss = one_step(it, EXAMPLES[:1])
    micro = collate(EXAMPLES[:1], "padded", 0)
    x_T, value_T = -toy_policy()(micro).logp_T, critic(micro).value_T
    assert value_T is not None
    assert float(loss) == pytest.approx(float(2 * x_T.mean() + 0.5 * (x_T.sum() + value_T.sum()) ** 2), rel=1e-4)
    close(it, (0.5, 0.25))
    assert (it.metrics["learning_rate"], it.metrics["learning_rate/critic"]) == (0.5, 0.25)
    norms = [math.sqrt(sum(float(g.square().sum()) for g in gradients(network))) for network in it.networks.values()]
    assert [it.metrics["grad_norm"], it.metrics["grad_norm/critic"]] == pytest.approx(norms, rel=1e-4)


def test_tokens_are_counted_over_steps_and_a_phase_s_numbers_stand_beside_a_step_s() -> None:
    it = module(hooks=StageHooks(phase_metrics=lambda: {"reward": 3.0}))
    for seen in (61.0, 122.0):
        one_step(it)
        close(it)
        assert (it.metrics["num_tokens"], it.metrics["reward"]) == (seen, 3.0)


def test_a_signal_is_noted_with_the_step() -> None:
    for stop in (False, True):
        it = module(hooks=StageHooks(stop_requested=lambda stop=stop: stop))
        one_step(it)
        close(it)
        assert it.stopping is stop and "_stop" not in it.metrics and "_bad" not in it.metrics


def test_a_step_that_teaches_nothing_moves_nothing() -> None:
    """Not by its decay either: what has no gradient is passed over."""
    it = module()
    one_step(it, [])
    assert any(p.grad is not None for p in it.parameters()), "ranks would wait for each other"
    close(it)
    assert it.metrics["loss"] == 0 and not gradients(it)
    assert it.optimizer_zero_grad(0, 0, None) is None


# --- clipping -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("limit", "factors"), [(None, (1, 1)), (0.5, (0.1, 0.5)), (2.0, (0.4, 1)), (5.0, (1, 1))])
def test_each_network_is_clipped_by_its_own_norm(limit: float | None, factors: tuple[float, float]) -> None:
    """Norms 5 and 1: scaled down to the limit where they are above it, and by nothing where they are not."""
    it = module(critic=toy_policy("value", seed=2), train={"max_grad_norm": limit})
    for network, norm in zip(it.networks.values(), (5.0, 1.0), strict=True):
        *rest, first = network.parameters()
        for parameter in rest:
            parameter.grad = None
        first.grad = torch.zeros_like(first)
        first.grad.view(-1)[0] = norm
    it.metrics = {"grad_norm": 5.0, "grad_norm/critic": 1.0}
    it.configure_gradient_clipping(None)
    found = [float(gradients(network)[0].norm()) for network in it.networks.values()]
    for norm, unclipped, factor in zip(found, (5.0, 1.0), factors, strict=True):
        assert norm == (unclipped if factor == 1 else pytest.approx(unclipped * factor, rel=1e-5))


def test_clipping_is_torch_s() -> None:
    """Which adds 1e-6 to the norm; of a gradient as small as 1e-3 that is a thousandth."""
    it, theirs = module(train={"max_grad_norm": 1e-4}), toy_policy()
    for network in (it.policy, theirs):
        for parameter in network.parameters():
            parameter.grad = torch.full_like(parameter, 1e-5)
    it.metrics = {"grad_norm": float(torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1e-4))}
    it.configure_gradient_clipping(None)
    for mine, other in zip(gradients(it.policy), gradients(theirs), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=0)


# --- what is not finite ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_names_its_micro_batch_and_stops(poison: float) -> None:
    it = module(Poisoned(Poisoned.Config()))
    it.algorithm.poison = poison  # type: ignore[attr-defined]
    it.trainer.global_step = 6
    one_step(it, size=1)
    with pytest.raises(AlignError, match=r"step 7[\s\S]*its rows: toy:3\n") as stopped:
        close(it)
    assert "such step in a row" not in str(stopped.value)


def test_a_gradient_that_is_not_finite_suspects_every_row() -> None:
    it = module()
    one_step(it, EXAMPLES[:3])
    next(it.policy.parameters()).grad.view(-1)[0] = math.inf  # type: ignore[union-attr]
    with pytest.raises(AlignError, match="its rows: toy:0, toy:1, toy:2\n"):
        close(it)


@pytest.mark.parametrize(("rows", "named"), [(0, ""), (1, "; its rows: r0"), (8, "r7"), (10, "r7 and 2 more")])
def test_eight_rows_are_named_and_the_others_counted(rows: int, named: str) -> None:
    for in_a_row, again in ((1, ""), (2, ", the 2th such step in a row")):
        error = NonFinite(4, {"loss": 1.5, "grad_norm": math.inf}, [f"r{i}" for i in range(rows)], in_a_row)
        (problem,) = error.problems
        assert problem.where == "step 4"
        assert problem.what.startswith(f"the loss is 1.5 and the gradient norm inf{again}")
        assert problem.what.endswith(named or again or "inf") and "r8" not in problem.what


def test_under_a_scaler_an_infinite_gradient_is_its_business_and_an_infinite_loss_is_not() -> None:
    it = module(train={"precision": "16-mixed"})
    one_step(it)
    next(it.policy.parameters()).grad.view(-1)[0] = math.inf  # type: ignore[union-attr]
    close(it)
    assert it.skipped == 0 and gradients(it)
    it = module(Poisoned(Poisoned.Config()), train={"precision": "16-mixed"})
    one_step(it)
    with pytest.raises(AlignError):
        close(it)


def test_steps_are_left_out_up_to_so_many_in_a_row() -> None:
    """Two bad, one good, three bad: the third in a row is one too many, the sixth step in all."""
    it = module(Poisoned(Poisoned.Config()), train={"on_nonfinite": "skip", "max_skipped": 2})
    good = EXAMPLES[4:]
    for bad, counts in ((True, (1, 1)), (True, (2, 2)), (False, (2, 0)), (True, (3, 1)), (True, (4, 2))):
        one_step(it, EXAMPLES if bad else good)
        close(it)
        assert (it.skipped, it.skipped_in_a_row) == counts and bool(gradients(it)) is not bad
        assert it.metrics.get("skipped") == (counts[0] if bad else None)
    one_step(it)
    with pytest.raises(AlignError, match="the 3th such step in a row"):
        close(it)


# --- held-out rows --------------------------------------------------------------------------------------------------


def evaluated(it: AlignModule, sets: Sequence[Sequence[Example]], batch: int = 3) -> dict[str, float]:
    it.on_validation_epoch_start()
    assert not it.policy.training
    with torch.no_grad():
        for index, examples in enumerate(sets):
            for number, step in enumerate(fixed_steps(InMemory(examples), cutter(it.algorithm, 2), batch)):
                it.validation_step(step, number, index)
    it.on_validation_epoch_end()
    assert it.policy.training
    return it.held_out_metrics


def test_a_held_out_set_is_one_step_whatever_it_is_cut_into() -> None:
    it = module(held_out_names=[None])
    loss, parts = by_hand(toy_policy(), EXAMPLES)
    expected = {"loss": loss, "twice": 2 * loss, "x": (x_T := torch.cat(parts).detach()).mean(), "all": x_T.sum()}
    expected |= {"most": x_T.max(), "least": x_T.min()}
    for _ in range(2):  # a second evaluation begins anew
        found = evaluated(it, [EXAMPLES])
        assert found == pytest.approx({f"val/{name}": float(value) for name, value in expected.items()}, rel=1e-4)


def test_a_set_of_one_example_is_divided_by_one() -> None:
    found = evaluated(module(held_out_names=[None]), [EXAMPLES[:1]])
    assert found["val/loss"] == pytest.approx(by_hand(toy_policy(), EXAMPLES[:1])[0].item(), rel=1e-4)


def test_an_online_stage_measures_each_set_itself() -> None:
    hooks = StageHooks(evaluate_prompts=lambda index, step: {"loss": step - 5.0 + index})
    it = module(held_out_names=["domain", "general"], hooks=hooks)
    it.trainer.global_step = 7
    it.on_validation_epoch_start()
    it.validation_step(None, 0)  # type: ignore[arg-type]
    it.validation_step(None, 0, 1)  # type: ignore[arg-type]
    it.on_validation_epoch_end()
    domain, general = {"loss": 2.0, "twice": 4.0}, {"loss": 3.0, "twice": 6.0}
    expected = {f"val/domain/{name}": value for name, value in domain.items()}
    expected |= {f"val/{name}": value for name, value in domain.items()}
    assert it.held_out_metrics == expected | {f"val/general/{name}": value for name, value in general.items()}


def test_named_sets_stand_apart_and_the_first_is_the_one_that_judges() -> None:
    it = module(held_out_names=["domain", "general"])
    found = evaluated(it, [EXAMPLES[:3], EXAMPLES[3:]])
    (first, _), (second, _) = by_hand(toy_policy(), EXAMPLES[:3]), by_hand(toy_policy(), EXAMPLES[3:])
    assert found["val/domain/loss"] == found["val/loss"] == pytest.approx(float(first), rel=1e-4)
    assert found["val/general/loss"] == pytest.approx(float(second), rel=1e-4)
    assert found["val/general/twice"] == 2 * found["val/general/loss"]


def test_statistics_of_held_out_steps_are_their_own() -> None:
    it = module(Shifted(Shifted.Config()), held_out_names=[None])
    twin = toy_policy()
    with torch.no_grad():
        shift = torch.stack([twin(collate([e], "padded", 0)).logp_T.sum() for e in EXAMPLES[:-4:-1]]).mean()
    assert evaluated(it, [EXAMPLES], 8)["val/loss"] == pytest.approx(float(by_hand(twin, EXAMPLES, shift)[0]), rel=1e-4)


# --- state ----------------------------------------------------------------------------------------------------------


def test_without_a_reference_there_is_nothing_of_it_to_save() -> None:
    saved: dict[str, Any] = {"state_dict": {}}
    (it := module()).on_save_checkpoint(saved)
    assert saved["align"]["reference"] == {}
    it.on_load_checkpoint(saved)


def test_rolling_back_ends_the_run_and_is_saved() -> None:
    (it := module()).roll_back()
    assert it.rolled_back is True and it.trainer.should_stop is True


def test_every_network_is_split_over_the_mesh_once() -> None:
    module(critic=toy_policy("value", seed=2)).configure_model()  # no strategy splits: nothing happens
    split: list[tuple[Policy, Any]] = []
    hooks = StageHooks(shard=lambda network, mesh: split.append((network, mesh)))
    it = module(critic=(critic := toy_policy("value", seed=2)), hooks=hooks)
    it._device_mesh = "mesh"  # type: ignore[assignment]
    it.configure_model()
    it.configure_model()
    assert split == [(it.policy, "mesh"), (critic, "mesh")]


def test_a_new_module_has_seen_and_decided_nothing() -> None:
    it = module()
    assert (it.metrics, it.held_out_metrics) == ({}, {})
    assert (it.skipped, it.skipped_in_a_row, it.tokens_seen) == (0, 0, 0)
    assert it.stopping is False and it.rolled_back is False and it.strict_loading is False
    assert it.paused is None and it.take_restored_random() is None


def test_what_is_saved_is_taken_back() -> None:
    it = module(reference=Fixed())
    it.tokens_seen, it.skipped, it.skipped_in_a_row, it.rolled_back = 11, 3, 2, True
    it.metrics, it.held_out_metrics = {"loss": 1.0}, {"val/loss": 2.0}
    it.trainer.global_step, it.trainer.should_stop = 9, True
    it.policy.model.lm_head.requires_grad_(False)
    state = it.state_dict() | {"stray": torch.zeros(1)}
    saved: dict[str, Any] = {"state_dict": state}
    it.on_save_checkpoint(saved)
    assert state.keys() - saved["state_dict"].keys() == {"policy.model.lm_head.weight", "stray"}
    assert saved["align"]["steps"] == 9 and saved["align"]["paused"] is None
    again = module(reference=Fixed())
    again.on_load_checkpoint(saved)
    for name in ("tokens_seen", "skipped", "skipped_in_a_row", "rolled_back", "metrics", "held_out_metrics"):
        assert getattr(again, name) == getattr(it, name), name
    assert again.trainer.should_stop and again.reference is not None and again.reference.kept == 5  # type: ignore[attr-defined]
    restored = again.take_restored_random()
    assert restored is saved["align"]["random"] and len(restored) == 1 and again.take_restored_random() is None
    now = random_state()
    assert restored[0]["python"] == now["python"]
    assert torch.equal(restored[0]["torch"], now["torch"])
    it.pause(AlignError("too long", "look at it", where="here"))
    it.on_save_checkpoint(saved)
    (problem,) = saved["align"]["paused"]
    assert (problem["where"], problem["what"]) == ("here", "too long")


# --- optimizer ------------------------------------------------------------------------------------------------------


def test_decay_is_on_matrices_and_each_network_has_its_rate_and_its_start() -> None:
    """A warm-up of one step of ten and a line down; the policy waits for two steps, the critic does not."""
    settings = {"adam_beta1": 0.5, "adam_beta2": 0.75, "adam_epsilon": 1e-3, "weight_decay": 0.2}
    critic = toy_policy("value", seed=2)
    sections = {"optimizer": settings, "schedule": {"type": "linear", "warmup_steps": 1}}
    it = module(Critical(Critical.Config()), critic=critic, **sections)
    it.policy.model.lm_head.requires_grad_(False)
    made = it.configure_optimizers()
    optimizer, schedule = made["optimizer"], made["lr_scheduler"]["scheduler"]
    assert made["lr_scheduler"]["interval"] == "step" and isinstance(optimizer, torch.optim.AdamW)
    groups = optimizer.param_groups
    assert [(g["network"], g["weight_decay"], g["initial_lr"]) for g in groups] == [
        ("policy", 0.2, 0.004),
        ("policy", 0.0, 0.004),
        ("critic", 0.2, 0.03),
        ("critic", 0.0, 0.03),
    ]
    assert all((p.ndim >= 2) is (g["weight_decay"] > 0) for g in groups for p in g["params"])
    learned = {id(p) for network in it.networks.values() for p in network.parameters() if p.requires_grad}
    assert {id(p) for g in groups for p in g["params"]} == learned
    assert all((g["betas"], g["eps"], g["fused"]) == ((0.5, 0.75), 1e-3, True) for g in groups)
    rates = []
    for _ in range(11):
        rates.append([groups[0]["lr"] / 0.004, groups[2]["lr"] / 0.03])
        optimizer.step()
        schedule.step()
    line = [0.0, *(1 - step / 9 for step in range(10))]
    assert [rate for _, rate in rates] == pytest.approx(line)
    assert [rate for rate, _ in rates] == pytest.approx([0.0, 0.0, *line[2:]])


def test_without_a_critic_the_policy_learns_from_the_first_step() -> None:
    groups = module().configure_optimizers()["optimizer"].param_groups
    assert [group["lr"] for group in groups] == [0.004, 0.004]


def test_without_a_gradient_its_norm_is_zero() -> None:
    assert gradient_norm(toy_policy().parameters()) == 0.0


def test_the_fused_optimizer_would_unscale_before_clipping() -> None:
    (group, *_) = module(train={"precision": "16-mixed"}).configure_optimizers()["optimizer"].param_groups
    assert not group["fused"]


@pytest.mark.parametrize(
    ("given", "adapter", "rate"), [(None, None, 0.004), (None, {"r": 2}, 0.04), (0.1, None, 0.1), (0.1, {"r": 2}, 0.1)]
)
def test_the_peak_rate(given: float | None, adapter: dict[str, Any] | None, rate: float) -> None:
    it = module(optimizer={"learning_rate": given}, model={"path": "nowhere", "adapter": adapter})
    assert it.learning_rate == pytest.approx(rate)


# --- where steps come from ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ranks", [1, 3])
def test_a_step_is_shared_out_over_the_ranks(ranks: int) -> None:
    steps = [cutter(Shifted(Shifted.Config()), 2, rank, ranks).step(4, EXAMPLES) for rank in range(ranks)]
    sources = [source for step in steps for micro in step.micros for source in micro.sources]
    assert sorted(sources) == [f"toy:{i}" for i in range(8)]
    assert sorted(s for step in steps for micro in step.auxiliary for s in micro.sources) == ["toy:5", "toy:6", "toy:7"]
    for step in steps:
        assert (step.index, step.tokens) == (4, 61)
        assert step.denominators == {"token": 30, "sequence": 8, "example": 8, "token:completion": 30}
        assert all(micro.examples <= 2 and "label" in micro.columns for micro in step.micros)
    assert len({len(step.micros) for step in steps}) == 1
    assert cutter(Toy(Toy.Config())).step(0, EXAMPLES).auxiliary == []
    assert len(cutter(Toy(Toy.Config()), None, tokens=20).step(0, EXAMPLES).micros) > 2


def test_a_step_on_another_device_is_the_same_step() -> None:
    step = cutter(Shifted(Shifted.Config())).step(2, EXAMPLES).to("meta")
    assert (step.index, step.tokens, step.denominators["token"]) == (2, 61, 30)
    for micro in (*step.micros, *step.auxiliary):
        assert micro.input_ids_RL.device.type == micro.columns.get("label", micro.last_B).device.type == "meta"


def epochs(**train: Any) -> EpochSteps:
    settings = Train(batch_size=3, **train)
    return EpochSteps(InMemory(EXAMPLES), cutter(Toy(Toy.Config())), settings, seed=1)


@pytest.mark.parametrize(
    ("train", "steps"),
    [
        ({}, 3),
        ({"num_train_epochs": 2}, 6),
        ({"num_train_epochs": 1.6}, 5),
        ({"num_train_epochs": 0.01}, 1),
        ({"max_steps": 7}, 7),
    ],
)
def test_the_number_of_steps(train: dict[str, Any], steps: int) -> None:
    """Three an epoch: 3, 3 and 2 of the eight examples."""
    assert epochs(**train).total_steps == steps


def sources(step: StepBatch) -> list[str]:
    return sorted(source for micro in step.micros for source in micro.sources)


def test_an_epoch_goes_on_in_its_middle_and_the_last_one_ends_where_the_run_does() -> None:
    phases = epochs(max_steps=7)
    whole = [[sources(step) for step in phases.loader(phase, 0)] for phase in range(3)]
    assert [len(steps) for steps in whole] == [3, 3, 1]
    for steps in whole[:2]:
        assert sorted(source for step in steps for source in step) == [e.source for e in EXAMPLES]
    assert whole[0] != whole[1]
    assert [sources(step) for step in phases.loader(1, 2)] == whole[1][2:]
    assert [step.index for step in phases.loader(1, 1)] == [1, 2] and len(phases.loader(1, 1)) == 2
    assert [phases.locate(done) for done in (0, 2, 3, 7)] == [(0, 0), (0, 2), (1, 0), (2, 1)]
    assert [phases.epochs(done) for done in (0, 3, 6)] == [0, 1, 2]
    phases.load_state_dict(phases.state_dict())


@pytest.mark.parametrize(
    "train", [{"max_steps": 1}, {"max_steps": 4}, {"num_train_epochs": 0.5}, {"num_train_epochs": 2}, {"max_steps": 9}]
)
def test_the_rows_are_those_of_all_its_steps(train: dict[str, Any]) -> None:
    phases = epochs(**train)
    read = set[str]()
    for phase in range(phases.locate(phases.total_steps - 1)[0] + 1):
        for step in phases.loader(phase, 0):
            read.update(sources(step))
    assert [EXAMPLES[i].source for i in phases.rows()] == sorted(read)


def test_a_source_of_weight_0_and_draws_beyond_an_epoch_are_followed() -> None:
    """Two sources of four rows with weights 3 and 1: an epoch of eight draws takes all of one, two of the other."""
    mixed = InMemory(EXAMPLES)
    mixed.sources, mixed.weights = np.repeat([0, 1], 4).astype(np.int32), (3.0, 1.0)
    for epochs_wanted, rows in ((1, 6), (2, 8)):
        steps = EpochSteps(
            mixed, cutter(Toy(Toy.Config())), Train(batch_size=3, num_train_epochs=epochs_wanted), seed=1
        )
        assert len(steps.rows()) == rows


def test_held_out_steps_are_in_the_order_of_the_file() -> None:
    loader = fixed_steps(InMemory(EXAMPLES), cutter(Toy(Toy.Config())), 3)
    assert len(loader) == 3
    assert [sources(step) for step in loader] == [
        ["toy:0", "toy:1", "toy:2"],
        ["toy:3", "toy:4", "toy:5"],
        ["toy:6", "toy:7"],
    ]
    assert len(StepLoader(lambda index: None, 3)) == 3  # type: ignore[arg-type,return-value]
