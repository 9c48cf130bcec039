"""TRL 1.16 as an independent oracle: same weights, same rows, same first loss, gradients and curve.

Rows go through each house's own preparation, whose tokens must agree as well. Where the two differ on purpose the
test says who is right, by a number worked out by hand.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import LlamaConfig, LlamaForSequenceClassification
from trl import (
    DPOConfig,
    DPOTrainer,
    KTOConfig,
    KTOTrainer,
    RewardConfig,
    RewardTrainer,
    SFTConfig,
    SFTTrainer,
)
from trl.experimental.cpo import CPOTrainer
from trl.experimental.orpo import ORPOTrainer

from align.core.algorithm.contract import Algorithm
from align.core.data import step_plan
from align.core.data.batch import MicroBatch
from align.core.data.datasets import tokenize_records
from align.core.data.examples import Example
from align.core.models.policy import Policy
from align.core.training.launch import train
from align.plugins.algorithms import cpo, orpo, simpo
from align.plugins.algorithms.dpo import DPO
from align.plugins.algorithms.kto import KTO
from align.plugins.algorithms.reward_model import RewardModel
from align.plugins.algorithms.sft import SFT
from align.schemas.records import Record
from align.schemas.run import Data, Run
from align.testing import step_gradients, step_statistics
from tests.plugins.oracle import assert_same, settings
from tests.tiny import tiny_model, tiny_tokenizer

PAIRS = [
    ("What is the sum of two and three?", " The sum is five.", " The sea is blue and wide, and cold."),
    ("Write about the sea.", " The sea is wide and the wind is cold over it.", " No."),
    ("Is the answer right?", " Yes, the answer is right.", " Thank you for the question."),
    ("Where is the cat?", " On the mat.", " The dog sat on the cat and the cat sat on the dog."),
    ("Who sat?", " The cat sat.", " five"),
    ("Say thank you.", " Thank you.", " That answer is wrong."),
    ("Tell me what the dog did on the mat by the sea.", " It sat.", " It sat on the cat, and the cat on the mat."),
    ("Is it cold?", " The wind over the sea is cold.", " The answer is two."),
]
TOKENIZER = tiny_tokenizer()


def reward_model(seed: int = 0) -> LlamaForSequenceClassification:
    """The tiny Llama's body under a score head."""
    body = tiny_model(seed)
    torch.manual_seed(seed)
    settings = {key: value for key, value in body.config.to_dict().items() if key not in ("id2label", "label2id")}
    model = LlamaForSequenceClassification(LlamaConfig(**settings, num_labels=1))
    model.model.load_state_dict(body.model.state_dict())
    return model.float().eval()


class Reference:
    """A model as our reference."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.policy = Policy(model)

    @torch.no_grad()
    def logp(self, micro: MicroBatch) -> torch.Tensor:
        return self.policy(micro).logp_T


def ours(rows: Sequence[Record], algorithm: Algorithm) -> list[Example]:
    """Rows as our data room prepares them."""
    made = tokenize_records(rows, TOKENIZER, algorithm, Data(train="rows.jsonl", dataset_num_proc=1)).examples
    return [made[i] for i in range(len(made))]


def oracle(trainer: Any, rows: Sequence[int] = range(8)) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of TRL's trainer on its own rows, as one micro-batch."""
    trainer.model.zero_grad()
    loss = trainer.compute_loss(trainer.model, trainer.data_collator([trainer.train_dataset[i] for i in rows]))
    loss.backward()
    return loss.item(), {f"model.{n}": p.grad.clone() for n, p in trainer.model.named_parameters()}


# --- sft -----------------------------------------------------------------------------------------------------------

COMPLETIONS = [{"prompt": prompt, "completion": chosen} for prompt, chosen, _ in PAIRS]
TALKS = [
    {
        "messages": [
            {"role": "user", "content": prompt},
            {"role": "assistant", "content": chosen},
            {"role": "user", "content": "Is that right?"},
            {"role": "assistant", "content": rejected},
        ]
    }
    for prompt, chosen, rejected in PAIRS
]


@pytest.mark.parametrize("loss", ["nll", "dft"])
@pytest.mark.parametrize("data", ["completion", "conversation"])
def test_sft(loss: str, data: str, tmp_path: Path) -> None:
    """Prompt-completion rows, and conversations of which only the assistant's turns are scored."""
    if data == "completion":
        rows, told = COMPLETIONS, {}
        records = [Record("completion", "r", prompt=r["prompt"], completion=r["completion"]) for r in rows]
    else:
        rows, told = TALKS, {"assistant_only_loss": True}
        records = [Record("text", "r", text=r["messages"]) for r in rows]
    trainer = SFTTrainer(
        model=tiny_model(),
        args=settings(SFTConfig, tmp_path, loss_type=loss, **told),
        train_dataset=Dataset.from_list(rows),
        processing_class=TOKENIZER,
    )
    algorithm = SFT(SFT.Config(loss_type=loss))
    examples = ours(records, algorithm)
    assert [e.sequences[0].tokens.tolist() for e in examples] == trainer.train_dataset["input_ids"]
    cut = [range(3), range(3, 8)]
    assert_same(oracle(trainer), step_gradients(algorithm, Policy(tiny_model()), None, examples, cut))


# --- reward model --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("margins", "centering"), [(False, None), (True, 0.01)])
def test_reward_model(margins: bool, centering: float | None, tmp_path: Path) -> None:
    rows = [
        {"chosen": p + c, "rejected": p + r} | ({"margin": 0.1 * i} if margins else {})
        for i, (p, c, r) in enumerate(PAIRS)
    ]
    trainer = RewardTrainer(
        model=reward_model(),
        args=settings(RewardConfig, tmp_path, center_rewards_coefficient=centering),
        train_dataset=Dataset.from_list(rows),
        processing_class=TOKENIZER,
    )
    algorithm = RewardModel(RewardModel.Config(center_rewards_coefficient=centering or 0.0))
    examples = ours([Record("preference", "r", **row) for row in rows], algorithm)
    assert [e.sequences[0].tokens.tolist() for e in examples] == trainer.train_dataset["chosen_ids"]
    policy = Policy(reward_model(), "reward")
    assert_same(oracle(trainer), step_gradients(algorithm, policy, None, examples, [range(8)]))


# --- dpo and its family --------------------------------------------------------------------------------------------

PREFERENCES = [{"prompt": p, "chosen": c, "rejected": r} for p, c, r in PAIRS]
PREFERENCE_RECORDS = [Record("preference", "r", **row) for row in PREFERENCES]


@pytest.fixture(scope="module")
def dpo_trainer(tmp_path_factory: pytest.TempPathFactory) -> DPOTrainer:
    """One trainer; each test sets its losses on it. The reference has other weights, so that ratios are not 0."""
    return DPOTrainer(
        model=tiny_model(0),
        ref_model=tiny_model(1),
        args=settings(DPOConfig, tmp_path_factory.mktemp("dpo")),
        train_dataset=Dataset.from_list(PREFERENCES),
        processing_class=TOKENIZER,
    )


def trl_dpo(trainer: DPOTrainer, weights: dict[str, float], **chosen: Any) -> DPOTrainer:
    """TRL's trainer under other settings (what its constructor copies out of the config)."""
    trainer.loss_types, trainer.loss_weights = list(weights), list(weights.values())
    trainer.beta, trainer.label_smoothing = chosen.get("beta", 0.1), chosen.get("label_smoothing", 0.0)
    trainer.f_divergence_type = chosen.get("f_divergence_type", "reverse_kl")
    trainer.f_alpha_divergence_coef = 1 - chosen.get("f_alpha", 0.5)  # theirs is 1 − α of the paper
    trainer.ld_alpha = chosen.get("ld_alpha")
    trainer.args.discopop_tau = chosen.get("discopop_tau", 0.05)
    return trainer


def our_dpo(cut: Any = (range(8),), **chosen: Any) -> tuple[float, dict[str, torch.Tensor]]:
    algorithm = DPO(DPO.Config(**chosen))
    examples = ours(PREFERENCE_RECORDS, algorithm)
    return step_gradients(algorithm, Policy(tiny_model(0)), Reference(tiny_model(1)), examples, cut)


def test_dpo_rows_become_the_same_tokens(dpo_trainer: DPOTrainer) -> None:
    for example, row in zip(ours(PREFERENCE_RECORDS, DPO(DPO.Config())), dpo_trainer.train_dataset, strict=True):
        for sequence in example.sequences:
            answer = row[f"{sequence.role}_ids"]
            assert sequence.tokens.tolist() == row["prompt_ids"] + answer
            assert sequence.tokens[sequence.scored].tolist() == answer


@pytest.mark.parametrize(
    "chosen",
    [
        {"loss_type": "sigmoid"},
        {"loss_type": "sigmoid", "beta": 0.5},
        {"loss_type": "sigmoid_norm", "beta": 5.0},
        {"loss_type": "robust", "label_smoothing": 0.2},
        {"loss_type": "hinge"},
        {"loss_type": "ipo"},
        {"loss_type": "exo_pair", "label_smoothing": 1e-3},
        {"loss_type": "nca_pair"},
        {"loss_type": "bco_pair"},
        {"loss_type": "sppo_hard"},
        {"loss_type": "apo_zero"},
        {"loss_type": "apo_down"},
        {"loss_type": "discopop"},
        {"loss_type": "discopop", "discopop_tau": 0.5},
        {"loss_type": "sft"},
        {"loss_type": {"sigmoid": 0.8, "bco_pair": 0.2, "sft": 1.0}},
        {"loss_type": "sigmoid", "f_divergence_type": "forward_kl"},
        {"loss_type": "sigmoid", "f_divergence_type": "js_divergence"},
        {"loss_type": "hinge", "f_divergence_type": "alpha_divergence"},
        {"loss_type": "sigmoid", "f_divergence_type": "alpha_divergence", "f_alpha": 0.2},
        {"loss_type": "sigmoid", "ld_alpha": 0.5},
        {"loss_type": "ipo", "ld_alpha": 0.2, "f_divergence_type": "js_divergence"},
    ],
    ids=str,
)
def test_dpo(chosen: dict[str, Any], dpo_trainer: DPOTrainer) -> None:
    weights = chosen["loss_type"] if isinstance(chosen["loss_type"], dict) else {chosen["loss_type"]: 1.0}
    trainer = trl_dpo(dpo_trainer, weights, **chosen)
    assert_same(oracle(trainer), our_dpo(cut=[range(5), range(5, 8)], **chosen))


def test_trl_ignores_label_smoothing_in_dpo(dpo_trainer: DPOTrainer) -> None:
    """Ours is (1−ε)·L(chosen, rejected) + ε·L(rejected, chosen) of plain DPO, both of which TRL can compute.

    tests/plugins/test_dpo.py has the number by hand: 0.397543 for ε = 0.1 at βΔ = log 3, where TRL says 0.287682.
    """
    plain = oracle(trl_dpo(dpo_trainer, {"sigmoid": 1.0}))[0]
    assert oracle(trl_dpo(dpo_trainer, {"sigmoid": 1.0}, label_smoothing=0.1))[0] == plain
    rows = [
        {**row, "chosen_ids": row["rejected_ids"], "rejected_ids": row["chosen_ids"]}
        for row in dpo_trainer.train_dataset
    ]
    flipped = dpo_trainer.compute_loss(dpo_trainer.model, dpo_trainer.data_collator(rows)).item()
    assert our_dpo(label_smoothing=0.1)[0] == pytest.approx(0.9 * plain + 0.1 * flipped, rel=1e-5)


def test_trl_averages_the_sft_term_by_micro_batch(dpo_trainer: DPOTrainer) -> None:
    """Two micro-batches of one pair with n₁ and n₂ tokens: the mean over tokens is (n₁m₁ + n₂m₂)/(n₁ + n₂).

    TRL's accumulation gives (m₁ + m₂)/2, another loss at every cut. E.g. m = 1 over one token and 3 over three:
    exact 2.5, TRL 2.0. Uncut the two houses agree.
    """
    trainer = trl_dpo(dpo_trainer, {"sft": 1.0})
    (m1, _), (m2, _), (both, _) = oracle(trainer, [1]), oracle(trainer, [5]), oracle(trainer, [1, 5])
    n1, n2 = (len(trainer.train_dataset[i]["chosen_ids"]) for i in (1, 5))
    algorithm = DPO(DPO.Config(loss_type="sft"))
    examples = [ours(PREFERENCE_RECORDS, algorithm)[i] for i in (1, 5)]
    got, _ = step_gradients(algorithm, Policy(tiny_model(0)), Reference(tiny_model(1)), examples, [[0], [1]])
    assert got == pytest.approx((n1 * m1 + n2 * m2) / (n1 + n2), rel=1e-5)
    assert got == pytest.approx(both, rel=1e-5)
    assert got != pytest.approx((m1 + m2) / 2, rel=1e-3)


# --- kto -----------------------------------------------------------------------------------------------------------

UNPAIRED = [{"prompt": p, "completion": r if i % 3 else c, "label": i % 3 == 0} for i, (p, c, r) in enumerate(PAIRS)]


@pytest.mark.parametrize("loss", ["kto", "apo_zero_unpaired"])
@pytest.mark.parametrize(("policy_seed", "reference_seed"), [(0, 1), (1, 0)])
def test_kto(loss: str, policy_seed: int, reference_seed: int, tmp_path: Path) -> None:
    """The mean ratio of the mismatched pairs is 1.08 one way round; the other way it is below 0, and z is cut."""
    weights = {"desirable_weight": 1.3, "undesirable_weight": 0.7}
    trainer = KTOTrainer(
        model=tiny_model(policy_seed),
        ref_model=tiny_model(reference_seed),
        args=settings(KTOConfig, tmp_path, loss_type=loss, per_device_train_batch_size=8, **weights),
        train_dataset=Dataset.from_list(UNPAIRED),
        processing_class=TOKENIZER,
    )
    algorithm = KTO(KTO.Config(loss_type=loss, **weights))
    examples = ours([Record("unpaired", "r", **row) for row in UNPAIRED], algorithm)
    if loss == "kto":
        mismatched = [e.sequences[0].tokens.tolist() for e in algorithm.auxiliary(examples)]
        assert mismatched == [row["prompt_ids"] + row["KL_completion_ids"] for row in trainer.train_dataset]
    policy, reference = Policy(tiny_model(policy_seed)), Reference(tiny_model(reference_seed))
    assert_same(oracle(trainer), step_gradients(algorithm, policy, reference, examples, [range(3), range(3, 8)]))
    if loss == "kto":
        z = float(step_statistics(algorithm, policy, reference, examples)["z"])
        assert z == pytest.approx(1.081677, rel=1e-4) if policy_seed == 0 else z < 0


# --- the reference-free ones: TRL's functions on raw log-probabilities ---------------------------------------------

CHOSEN, REJECTED = torch.tensor([-0.5, -2.0, -0.01, -7.0]), torch.tensor([-1.5, -0.3, -3.0, -7.0])


def test_cpo_and_simpo_equations() -> None:
    """TRL has SimPO as a loss of CPO, its γ as ours times β."""
    them = SimpleNamespace(
        beta=2.0,
        label_smoothing=0.1,
        alpha=0.0,
        loss_type="sigmoid",
        simpo_gamma=1.0,
        accelerator=SimpleNamespace(device="cpu"),
    )
    torch.testing.assert_close(cpo.cpo(CHOSEN, REJECTED, 2.0, 0.1), CPOTrainer.cpo_loss(them, CHOSEN, REJECTED)[0])
    them.loss_type, them.label_smoothing = "simpo", 0.0
    torch.testing.assert_close(simpo.simpo(CHOSEN, REJECTED, 2.0, 1.0), CPOTrainer.cpo_loss(them, CHOSEN, REJECTED)[0])


def test_orpo_equation() -> None:
    """TRL returns β log σ of the log odds ratio, to be taken off."""
    them = SimpleNamespace(beta=1.0, accelerator=SimpleNamespace(device="cpu"))
    torch.testing.assert_close(
        orpo.odds_ratio(CHOSEN, REJECTED), -ORPOTrainer.odds_ratio_loss(them, CHOSEN, REJECTED)[0]
    )


# --- twenty steps --------------------------------------------------------------------------------------------------

MANY = [(f"{i}. {PAIRS[i % 8][0]}", PAIRS[i % 7][1], PAIRS[i % 5][2]) for i in range(80)]
CURVES: dict[str, tuple[Any, Any, list[dict[str, Any]], set[str]]] = {
    "sft": (
        SFTTrainer,
        SFTConfig,
        [{"prompt": p, "completion": c} for p, c, _ in MANY],
        {"entropy", "mean_token_accuracy"},
    ),
    "reward_model": (
        RewardTrainer,
        RewardConfig,
        [{"chosen": p + c, "rejected": p + r} for p, c, r in MANY],
        {"min_reward", "mean_reward", "max_reward", "accuracy", "margin"},
    ),
    "dpo": (
        DPOTrainer,
        DPOConfig,
        [{"prompt": p, "chosen": c, "rejected": r} for p, c, r in MANY],
        {"entropy", "mean_token_accuracy"}
        | {f"rewards/{x}" for x in ("chosen", "rejected", "accuracies", "margins")}
        | {f"{of}/{x}" for of in ("logps", "logits") for x in ("chosen", "rejected")},
    ),
    "kto": (
        KTOTrainer,
        KTOConfig,
        [{"prompt": p, "completion": r if i % 3 else c, "label": i % 3 == 0} for i, (p, c, r) in enumerate(MANY)],
        {"kl", "entropy"} | {f"{of}/{x}" for of in ("rewards", "logps", "logits") for x in ("chosen", "rejected")},
    ),
}


@pytest.mark.parametrize("name", CURVES)
def test_twenty_steps_of_the_engine(name: str, tmp_path: Path) -> None:
    """Whole runs: AdamW, clipping, linear decay, the reference as it was at the start. TRL gets our order of rows."""
    trainer_class, config, rows, metrics = CURVES[name]
    model = reward_model() if name == "reward_model" else tiny_model()
    model.save_pretrained(tmp_path / "model")
    TOKENIZER.save_pretrained(tmp_path / "model")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    stage = {
        "name": "only",
        "model": {"path": str(tmp_path / "model")},
        "data": {"train": str(tmp_path / "rows.jsonl"), "dataset_num_proc": 1},
        "algorithm": name,
        "optimizer": {"learning_rate": 1e-3},
        "train": {"batch_size": 4, "micro_batch_size": 3},
    }
    train(Run.model_validate({"output": str(tmp_path / "run"), "stages": [stage]}), progress=False)
    with (tmp_path / "run/only/metrics.csv").open() as file:
        mine = list(csv.DictReader(file))

    order = [int(i) for step in step_plan.epoch_order([0] * 80, [1.0], 0, 0, 4) for i in step]
    reference = {"ref_model": tiny_model()} if name in ("dpo", "kto") else {}
    trainer = trainer_class(
        model=model,
        **reference,
        args=settings(
            config,
            tmp_path / "trl",
            per_device_train_batch_size=4,
            learning_rate=1e-3,
            num_train_epochs=1,
            logging_steps=1,
            train_sampling_strategy="sequential",
        ),
        train_dataset=Dataset.from_list([rows[i] for i in order]),
        processing_class=TOKENIZER,
    )
    trainer.train()
    theirs = [entry for entry in trainer.state.log_history if "loss" in entry]

    assert len(mine) == len(theirs) == 20
    for metric in {"loss", "learning_rate", "grad_norm"} | metrics:
        got = [float(row[metric]) for row in mine if row[metric]]
        wanted = [entry[metric] for entry in theirs if metric in entry]
        first = int(metric == "rewards/accuracies")  # at the start all pairs tie, and rounding says which are won
        assert got[first:] == pytest.approx(wanted[first:], rel=1e-3, abs=1e-5), metric
    losses = [float(row["loss"]) for row in mine]
    assert sum(losses[-5:]) < sum(losses[:5])
