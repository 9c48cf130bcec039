"""The built-ins, entering by the door that strangers use. Names only: nothing here imports what it registers."""

from __future__ import annotations

from align.hookspecs import Register, hookimpl
from align.schemas.hardware import Footprint, Hardware


@hookimpl
def register_algorithms(register: Register) -> None:
    """Algorithms that learn from data, then those that learn from rewards."""
    register("sft", "align.plugins.algorithms.sft:SFT")
    register("pretrain", "align.plugins.algorithms.pretrain:Pretrain")
    register("reward_model", "align.plugins.algorithms.reward_model:RewardModel")
    register("dpo", "align.plugins.algorithms.dpo:DPO")
    register("simpo", "align.plugins.algorithms.simpo:SimPO")
    register("orpo", "align.plugins.algorithms.orpo:ORPO")
    register("cpo", "align.plugins.algorithms.cpo:CPO")
    register("kto", "align.plugins.algorithms.kto:KTO")
    register("rloo", "align.plugins.algorithms.rloo:RLOO")
    register("reinforce", "align.plugins.algorithms.reinforce:Reinforce")
    register("grpo", "align.plugins.algorithms.grpo:GRPO")
    register("ppo", "align.plugins.algorithms.ppo:PPO")
    register("online_dpo", "align.plugins.algorithms.online_dpo:OnlineDPO")
    register("best_of_n", "align.plugins.algorithms.best_of_n:BestOfN")


@hookimpl
def register_rewards(register: Register) -> None:
    """What answers are worth."""
    register("format", "align.plugins.rewards.format:Format")
    register("exact", "align.plugins.rewards.exact:Exact")
    register("length", "align.plugins.rewards.length:Length")
    register("repetition", "align.plugins.rewards.repetition:Repetition")
    register("reward_model", "align.plugins.rewards.reward_model:RewardModelScore")
    register("python", "align.plugins.rewards.foreign:Python")
    register("verl", "align.plugins.rewards.foreign:Verl")
    register("openrlhf", "align.plugins.rewards.foreign:OpenRLHF")
    register("code", "align.plugins.rewards.code:Code")
    register("ai_feedback", "align.plugins.rewards.ai_feedback:AIFeedback")
    register("math", "align.plugins.rewards.math:Math")


@hookimpl
def register_formats(register: Register) -> None:
    """How rows are laid out."""
    register("text", "align.plugins.formats.text:Text")
    register("messages", "align.plugins.formats.messages:Messages")
    register("prompt", "align.plugins.formats.prompt:Prompt")
    register("prompt-completion", "align.plugins.formats.prompt_completion:PromptCompletion")
    register("preference", "align.plugins.formats.preference:Preference")
    register("unpaired", "align.plugins.formats.unpaired:Unpaired")
    register("sharegpt", "align.plugins.formats.sharegpt:ShareGPT")
    register("alpaca", "align.plugins.formats.alpaca:Alpaca")
    register("verl", "align.plugins.formats.verl:Verl")
    register("openrlhf", "align.plugins.formats.openrlhf:OpenRLHF")


@hookimpl
def register_generators(register: Register) -> None:
    """How answers are sampled."""
    register("local", "align.plugins.generators.local:Local")
    register("vllm", "align.plugins.generators.vllm:VLLM")
    register("endpoint", "align.plugins.generators.endpoint:Endpoint")


@hookimpl
def register_strategies(register: Register) -> None:
    """How a fit lies on the devices."""
    register("auto", "align.plugins.strategies.auto:Auto")
    register("single", "align.plugins.strategies.single:Single")
    register("ddp", "align.plugins.strategies.ddp:DDP")
    register("fsdp", "align.plugins.strategies.fsdp:FSDP")


@hookimpl
def register_loggers(register: Register) -> None:
    """Where metrics go."""
    register("csv", "align.plugins.loggers.csv:CSV")
    register("tensorboard", "align.plugins.loggers.tensorboard:TensorBoard")
    register("wandb", "align.plugins.loggers.wandb:WandB")


@hookimpl(trylast=True)
def choose_strategy(hardware: Hardware, footprint: Footprint) -> str:
    """One device: single. Several: ddp while a replica takes under 70% of a device's memory, else fsdp."""
    if hardware.world_size == 1:
        return "single"
    return "ddp" if footprint.state + footprint.activations < 0.7 * hardware.memory else "fsdp"
