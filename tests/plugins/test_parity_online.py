"""TRL 1.16 as an independent oracle of RLOO and GRPO: same weights, answers and rewards, same loss and gradients.

TRL's trainers are given the answers in place of sampling them, and do the rest themselves: the weights that sampled,
the reference and the weights that learn are three different ones, so that ratios, clipping and KL all matter. Eight
answers are one step of one micro-batch, where TRL's denominators are the exact ones.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import LlamaForCausalLM
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from align.core.algorithm.contract import Experience, Online, example_of
from align.core.data.batch import collate
from align.core.models.policy import Policy
from align.plugins.algorithms.grpo import GRPO
from align.plugins.algorithms.rloo import RLOO
from align.schemas.run import Rollout
from align.testing import step_gradients
from tests.plugins.oracle import assert_same, settings
from tests.tiny import save_tiny, tiny_model, tiny_tokenizer

GROUP, MOST = 4, 12
DRAW = np.random.default_rng(0)
PROMPTS = [DRAW.integers(4, 320, length).astype(np.int32) for length in (5, 9)]
ANSWERS = [DRAW.integers(4, 320, length).astype(np.int32) for length in (3, 7, 12, 1, 6, 12, 2, 9)]
REWARDS = [1.0, 0.0, 0.3, -0.5, 2.0, 1.9, 0.25, 1.0]
WEIGHTS = DRAW.uniform(0.5, 2.0, len(ANSWERS)).astype(np.float32)
Result = tuple[float, dict[str, torch.Tensor]]


def learner() -> LlamaForCausalLM:
    """A little away from the weights that sampled: some ratios beyond 1.2, some below 0.8."""
    model = tiny_model(0)
    draw = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.03 * torch.randn(parameter.shape, generator=draw)
    return model


def trainer_of(kind: type, config: type, folder: Path, **more: Any) -> Any:
    """One of TRL's trainers, which is told the answers and rewards."""
    args = {"per_device_train_batch_size": 8, "num_generations": GROUP, "max_completion_length": MOST, "beta": 0.1}
    model = tiny_model(0)
    model.config._name_or_path = str(save_tiny(folder / "reference", seed=1))
    trainer = kind(
        model=model,
        reward_funcs=lambda completions, **_: list(trainer.told),
        args=settings(config, folder, **args | more),
        train_dataset=Dataset.from_list([{"prompt": f"prompt {i}"} for i in range(2)]),
        processing_class=tiny_tokenizer(),
    )
    asked = [PROMPTS[i // GROUP].tolist() for i in range(8)]
    said, texts = [answer.tolist() for answer in ANSWERS], [f"answer {i}" for i in range(8)]
    few = (asked, said, texts)
    trainer._generate = lambda prompts: few if kind is RLOOTrainer else (asked, said, None, texts, None, {}, None, None)
    trainer.told = REWARDS
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    return trainer


@pytest.fixture(scope="module")
def grpo_trainer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return trainer_of(GRPOTrainer, GRPOConfig, tmp_path_factory.mktemp("grpo"), num_iterations=2)


@pytest.fixture(scope="module")
def rloo_trainer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return trainer_of(RLOOTrainer, RLOOConfig, tmp_path_factory.mktemp("rloo"))


def oracle(trainer: Any, rewards: list[float | None], weight: np.ndarray | None = None) -> tuple[Result, list[float]]:
    """TRL's loss and gradients, and the advantages that they are made of."""
    trainer.told = rewards
    trainer.model.load_state_dict(tiny_model(0).state_dict())
    inputs = trainer._generate_and_score_completions([{"prompt": f"prompt {i // GROUP}"} for i in range(8)])
    trainer.model.load_state_dict(learner().state_dict())
    trainer.model.zero_grad()
    if weight is not None:
        trainer.use_vllm = trainer.vllm_importance_sampling_correction = True
        inputs["importance_sampling_ratio"] = torch.from_numpy(weight)[:, None]
    try:
        loss = trainer.compute_loss(trainer.model, inputs)
    finally:
        trainer.use_vllm = False
    loss.backward()
    gradients = {f"model.{n}": p.grad.clone() for n, p in trainer.model.named_parameters()}
    return (loss.item(), gradients), inputs["advantages"].tolist()


def experience(rewards: list[float | None]) -> list[list[Experience]]:
    """The same answers as ours, measured by our policy."""
    made = []
    for i, (answer, reward) in enumerate(zip(ANSWERS, rewards, strict=True)):
        one = Experience("toy", PROMPTS[i // GROUP], answer, "stop", np.zeros(0, np.float32), reward)
        micro = collate([example_of(one, {})], "padded", 0)
        with torch.no_grad():
            one.logp, one.ref_logp = (Policy(tiny_model(seed))(micro).logp_T.numpy() for seed in (0, 1))
        made.append(one)
    return [made[:GROUP], made[GROUP:]]


def ours(
    algorithm: Online,
    rewards: list[float | None],
    weight: np.ndarray | None = None,
    cut: Any = ((0, 3, 4), (1, 2, 5, 6, 7)),
) -> tuple[Result, list[float]]:
    algorithm.configure(Rollout.model_validate({"rewards": ["toy"], "sampling": {"max_completion_length": MOST}}))
    groups = experience(rewards)
    answers = [e for group in groups for e in group]
    for e in answers:
        e.ref_logp = e.ref_logp if algorithm.uses_reference else None
    advantages = algorithm.compute_advantages(groups)
    token_data = {**advantages.token_data, "old_logp": [e.logp for e in answers if e.logp is not None]}
    if weight is not None:
        token_data["weight"] = [np.full(len(e.tokens), w, np.float32) for e, w in zip(answers, weight, strict=True)]
    examples = [e for group in algorithm.examples(groups, replace(advantages, token_data=token_data)) for e in group]
    result = step_gradients(algorithm, Policy(learner()), None, examples, cut)
    return result, [float(values[0]) for values in advantages.token_data["advantage"]]


def told(trainer: Any, **chosen: Any) -> Any:
    """TRL's trainer under other settings (what its constructor copies out of the config)."""
    trainer.loss_type = chosen.get("loss_type", "dapo")
    trainer.scale_rewards = chosen.get("scale_rewards", "group")
    trainer.importance_sampling_level = chosen.get("level", "token")
    trainer.beta = chosen.get("beta", 0.0)
    trainer.epsilon_low, trainer.epsilon_high = chosen.get("epsilon", 0.2), chosen.get("epsilon_high", 0.2)
    trainer.args.delta = chosen.get("delta")
    trainer.args.use_bias_correction_kl = chosen.get("corrected", True)
    return trainer


AVERAGING = {"grpo": "sequence", "dapo": "token", "bnpo": "token", "dr_grpo": "constant"}
GRPO_CASES = [
    *(
        (
            {"loss_type": loss, "level": level, "beta": beta},
            {"averaging": AVERAGING[loss], "importance_sampling_level": level, "beta": beta},
        )
        for loss in AVERAGING
        for level in ("token", "sequence")
        for beta in (0.0, 0.1)
    ),
    *(
        ({"loss_type": loss, "scale_rewards": scale}, {"averaging": AVERAGING[loss], "scale_rewards": scale})
        for loss in ("grpo", "dapo", "dr_grpo")
        for scale in ("batch", "none")
    ),
    ({"loss_type": "cispo", "epsilon_high": 5.0}, {"objective": "cispo"}),
    (
        {"loss_type": "cispo", "epsilon_high": 1.1, "beta": 0.1},
        {"objective": "cispo", "epsilon_high": 0.1, "beta": 0.1},
    ),
    (
        {"loss_type": "cispo", "epsilon_high": 1.1, "level": "sequence"},
        {"objective": "cispo", "epsilon_high": 0.1, "importance_sampling_level": "sequence"},
    ),
    ({"epsilon_high": 0.28}, {"epsilon_high": 0.28}),
    ({"delta": 1.3}, {"delta": 1.3}),
    (
        {"delta": 1.3, "loss_type": "grpo", "level": "sequence"},
        {"delta": 1.3, "averaging": "sequence", "importance_sampling_level": "sequence"},
    ),
    ({"beta": 0.1, "corrected": False}, {"beta": 0.1, "use_bias_correction_kl": False}),
    (
        {"loss_type": "grpo", "level": "sequence", "epsilon": 3e-4, "epsilon_high": 4e-4},
        {"averaging": "sequence", "importance_sampling_level": "sequence", "epsilon": 3e-4, "epsilon_high": 4e-4},
    ),
]


@pytest.mark.parametrize(("theirs", "mine"), GRPO_CASES, ids=str)
def test_grpo(theirs: dict[str, Any], mine: dict[str, Any], grpo_trainer: Any) -> None:
    wanted, advantages = oracle(told(grpo_trainer, **theirs), REWARDS)
    got, given = ours(GRPO(GRPO.Config(num_generations=GROUP, **mine)), REWARDS)
    assert given == pytest.approx(advantages, rel=1e-5, abs=1e-6)
    assert_same(wanted, got)


def test_the_ratios_are_such_that_clipping_matters(grpo_trainer: Any) -> None:
    """Else the cases above would show little."""
    losses = {
        str(chosen): oracle(told(grpo_trainer, **chosen), REWARDS)[0][0]
        for chosen in ({}, {"epsilon_high": 0.28}, {"delta": 1.3}, {"epsilon": 0.9, "epsilon_high": 9.0}, {"beta": 0.1})
    }
    assert len({round(loss, 5) for loss in losses.values()}) == len(losses), losses


@pytest.mark.parametrize("loss", ["grpo", "dapo", "dr_grpo", "cispo"])
def test_grpo_with_a_correction_for_the_generator(loss: str, grpo_trainer: Any) -> None:
    """Which multiplies the policy's part and leaves the KL's alone."""
    high = {"epsilon_high": 5.0} if loss == "cispo" else {}
    mine = {"objective": "cispo"} if loss == "cispo" else {"averaging": AVERAGING[loss]}
    wanted, _ = oracle(told(grpo_trainer, loss_type=loss, beta=0.1, **high), REWARDS, WEIGHTS)
    got, _ = ours(GRPO(GRPO.Config(num_generations=GROUP, beta=0.1, **mine)), REWARDS, WEIGHTS)
    assert_same(wanted, got)


@pytest.mark.parametrize("beta", [0.0, 0.05])
@pytest.mark.parametrize("normalize", [False, True])
def test_rloo(beta: float, normalize: bool, rloo_trainer: Any) -> None:
    rloo_trainer.beta, rloo_trainer.normalize_advantages = beta, normalize
    wanted, advantages = oracle(rloo_trainer, REWARDS)
    got, given = ours(RLOO(RLOO.Config(num_generations=GROUP, beta=beta, normalize_advantages=normalize)), REWARDS)
    assert given == pytest.approx(advantages, rel=1e-5, abs=1e-6)
    assert_same(wanted, got)


ABSTAINED: list[float | None] = [1.0, None, 0.3, -0.5, None, 1.9, None, None]
"""One answer nobody scored among four; and a group in which a single one was."""


@pytest.mark.parametrize("name", ["rloo", "grpo"])
def test_who_abstains_leaves_the_baseline_in_both_houses_and_the_averages_in_ours(
    name: str, rloo_trainer: Any, grpo_trainer: Any
) -> None:
    """Same advantages; TRL's mean over all 8 answers is ours over the 4 that were scored times 4/8."""
    if name == "rloo":
        rloo_trainer.beta, rloo_trainer.normalize_advantages = 0.05, False
        wanted, advantages = oracle(rloo_trainer, ABSTAINED)
        algorithm: Online = RLOO(RLOO.Config(num_generations=GROUP, beta=0.05))
    else:
        wanted, advantages = oracle(told(grpo_trainer, loss_type="grpo"), ABSTAINED)
        algorithm = GRPO(GRPO.Config(num_generations=GROUP, averaging="sequence"))
    (loss, gradients), given = ours(algorithm, ABSTAINED, cut=([0, 3], [1, 2]))
    assert given == pytest.approx(advantages, rel=1e-5, abs=1e-6)
    assert_same(wanted, (loss / 2, {n: g / 2 for n, g in gradients.items()}))
