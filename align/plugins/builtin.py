"""The built-in plugins, registered through the same hooks as any other package's. Registering imports none of them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from align import Footprint, Hardware, Register, hookimpl

if TYPE_CHECKING:
    from align import Problem, Run


@hookimpl
def register_algorithms(register: Register) -> None:
    """Register the algorithms: first those that learn from data, then those that learn from rewards."""
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
    """Register the rewards."""
    register("format", "align.plugins.rewards.format:FormatReward")
    register("exact", "align.plugins.rewards.exact:ExactReward")
    register("length", "align.plugins.rewards.length:Length")
    register("repetition", "align.plugins.rewards.repetition:Repetition")
    register("reward_model", "align.plugins.rewards.reward_model:RewardModelScore")
    register("python", "align.plugins.rewards.python_file:PythonReward")
    register("verl", "align.plugins.rewards.python_file:VerlReward")
    register("openrlhf", "align.plugins.rewards.python_file:OpenRLHFReward")
    register("code", "align.plugins.rewards.code:Code")
    register("ai_feedback", "align.plugins.rewards.ai_feedback:AIFeedback")
    register("math", "align.plugins.rewards.math:Math")


@hookimpl
def register_formats(register: Register) -> None:
    """Register the formats of rows."""
    register("text", "align.plugins.formats.standard:Text")
    register("messages", "align.plugins.formats.standard:Messages")
    register("prompt", "align.plugins.formats.standard:Prompt")
    register("prompt-completion", "align.plugins.formats.standard:PromptCompletion")
    register("preference", "align.plugins.formats.standard:Preference")
    register("unpaired", "align.plugins.formats.standard:Unpaired")
    register("sharegpt", "align.plugins.formats.other_frameworks:ShareGPT")
    register("alpaca", "align.plugins.formats.other_frameworks:Alpaca")
    register("xlam", "align.plugins.formats.other_frameworks:XLAM")
    register("verl", "align.plugins.formats.other_frameworks:Verl")
    register("openrlhf", "align.plugins.formats.other_frameworks:OpenRLHF")


@hookimpl
def register_generators(register: Register) -> None:
    """Register the generators, which sample completions."""
    register("local", "align.plugins.generators.local:Local")
    register("vllm", "align.plugins.generators.vllm:VLLM")
    register("endpoint", "align.plugins.generators.endpoint:Endpoint")


@hookimpl
def register_evals(register: Register) -> None:
    """Register the evals, which measure a model."""
    register("rewards", "align.plugins.evals.rewards:RewardsEval")
    register("perplexity", "align.plugins.evals.perplexity:Perplexity")
    static = "align.plugins.evals.static"
    register("mmlu", f"{static}.mmlu:MMLU")
    register("mmlu_pro", f"{static}.mmlu_pro:MMLUPro")
    register("gpqa", f"{static}.gpqa:GPQA")
    register("gpqa_likelihood", f"{static}.gpqa:GPQALikelihood")
    register("ifeval", f"{static}.ifeval:IFEval")
    register("ifeval_instructions", f"{static}.ifeval:IFEvalInstructions")
    register("truthfulqa_mc1", f"{static}.truthfulqa:TruthfulQAMC1")
    register("truthfulqa_mc2", f"{static}.truthfulqa:TruthfulQAMC2")
    register("aime", f"{static}.aime:AIME")
    register("gsm8k", f"{static}.gsm8k:GSM8K")
    register("math", f"{static}.math:MATH")
    register("bfcl", "align.plugins.evals.bfcl:BFCL")
    register("livecodebench", "align.plugins.evals.coding.livecodebench:LiveCodeBench")
    register("humaneval", "align.plugins.evals.coding.humaneval:HumanEval")
    register("nexus", "align.plugins.evals.nexus:Nexus")
    register("mt_bench", "align.plugins.evals.judged.mt_bench:MTBench")
    register("mt_bench_pairwise", "align.plugins.evals.judged.mt_bench:MTBenchPairwise")
    register("alpaca_eval", "align.plugins.evals.judged.alpaca_eval:AlpacaEval")
    register("arena_hard", "align.plugins.evals.judged.arena_hard:ArenaHard")
    register("xstest", "align.plugins.evals.judged.safety:XSTest")
    register("simple_safety_tests", "align.plugins.evals.judged.safety:SimpleSafetyTests")
    register("retrieval", "align.plugins.evals.judged.retrieval:Retrieval")


@hookimpl
def register_strategies(register: Register) -> None:
    """Register the strategies, which lay a fit out on the devices."""
    register("auto", "align.plugins.strategies.single_ddp_fsdp:Auto")
    register("single", "align.plugins.strategies.single_ddp_fsdp:Single")
    register("ddp", "align.plugins.strategies.single_ddp_fsdp:DDP")
    register("fsdp", "align.plugins.strategies.single_ddp_fsdp:FSDP")


@hookimpl
def register_loggers(register: Register) -> None:
    """Register the loggers of metrics."""
    register("csv", "align.plugins.loggers.csv:CSV")
    register("tensorboard", "align.plugins.loggers.tensorboard:TensorBoard")
    register("wandb", "align.plugins.loggers.wandb:WandB")


@hookimpl
def register_rules(register: Register) -> None:
    """The adviser's rules: knowledge, behaviour, what is missing, dangers, questions."""
    knowledge, behaviour = "align.plugins.rules.knowledge", "align.plugins.rules.behaviour"
    register("R-RAG-1", f"{knowledge}:changing_facts")
    register("R-RAG-2", f"{knowledge}:sources_shown")
    register("R-RAG-3", f"{knowledge}:own_pages")
    register("R-RAG-4", f"{knowledge}:per_user")
    register("R-CPT-1", f"{knowledge}:unseen_field")
    register("R-CPT-2", f"{knowledge}:thin_corpus")
    register("R-CPT-3", f"{knowledge}:no_corpus")
    register("R-CPT-4", f"{knowledge}:already_pretrained")
    register("R-POST-1", f"{behaviour}:many_rules")
    register("R-POST-2", f"{behaviour}:skill_with_data")
    register("R-POST-3", f"{behaviour}:style")
    register("R-POST-4", f"{behaviour}:some_rules")
    register("R-POST-5", f"{behaviour}:judged_answers")
    register("R-POST-6", f"{behaviour}:examples_beyond_prompts")
    register("R-POST-7", f"{behaviour}:checked_prompts")
    register("R-BON-1", f"{behaviour}:best_of_n")
    register("R-FRZ-1", f"{behaviour}:frozen")
    prompting, verdict, measured = (f"align.plugins.rules.{page}" for page in ("prompting", "verdict", "measured"))
    register("R-PRM-1", f"{prompting}:few_rules")
    register("R-PRM-2", f"{prompting}:target_reached")
    register("R-PRM-3", f"{prompting}:middling_rules")
    register("R-PRM-4", f"{prompting}:a_format")
    register("R-PRM-5", f"{prompting}:nothing_to_learn_from")
    register("R-PRM-6", f"{prompting}:nearly_there")
    register("R-PRM-7", f"{prompting}:many_rules_no_rows")
    register("R-PRM-8", f"{prompting}:no_prompt_tried")
    register("R-PRM-9", f"{prompting}:static_page")
    register("R-PRM-10", f"{prompting}:prompt_suffices")
    register("R-INS-1", f"{verdict}:neither_goal_nor_data")
    register("R-INS-2", f"{verdict}:asked_without_data")
    register("R-INS-3", f"{verdict}:rewards_without_scorer")
    register("R-INS-4", f"{verdict}:text_of_unknown_size")
    register("R-INS-5", f"{verdict}:no_goal")
    register("R-INS-6", f"{verdict}:exhausted_prompt")
    register("R-INS-7", f"{verdict}:doubtful_data")
    register("R-MEA-1", f"{measured}:prompt_reaches_target")
    register("R-MEA-2", f"{measured}:open_book_helps")
    register("R-MEA-3", f"{measured}:domain_is_unseen")
    register("R-MEA-4", f"{measured}:head_room")
    register("R-MEA-5", f"{measured}:already_preferred")
    dangers, questions = "align.plugins.rules.warnings", "align.plugins.rules.questions"
    register("W-DATA", f"{dangers}:too_little_data")
    register("W-FORGET", f"{dangers}:forgetting")
    register("W-GATE", f"{dangers}:needs_eval_gate")
    register("W-RAG", f"{dangers}:needs_rag_eval")
    register("W-FRESH", f"{dangers}:data_freshness")
    register("W-HACK", f"{dangers}:reward_hacking")
    register("W-REWARD", f"{dangers}:missing_reward")
    register("W-MEMORY", f"{dangers}:memory_does_not_fit")
    register("W-JUDGE", f"{dangers}:judge_bias")
    register("W-LICENCE", f"{dangers}:license_or_privacy")
    register("W-CONTAMINATION", f"{dangers}:contamination")
    register("W-PROMPT", f"{dangers}:brittle_prompt")
    register("W-BASELINE", f"{dangers}:no_baseline")
    register("W-ADAPTER", f"{dangers}:adapter_on_a_corpus")
    for name in ("goal", "data", "data_kind", "data_size", "reward", "evals", "model", "hardware", "reading"):
        register(f"Q-{name.upper().replace('_', '-')}", f"{questions}:{name}")


@hookimpl(trylast=True)
def choose_strategy(hardware: Hardware, footprint: Footprint) -> str:
    """Take single on one device; on several ddp while a replica fits a device's memory, else fsdp."""
    return footprint.choice(hardware)


@hookimpl
def check_run(run: Run, hardware: Hardware) -> Iterable[Problem]:
    """Take the advice on a run with a ``project:``, and report what of it stops the launch."""
    if run.project is None:
        return ()
    from align import launch_problems

    return launch_problems(run, hardware)


@hookimpl
def run_started(run: Run, directory: Path) -> None:
    """Keep the advice in the run's directory."""
    if run.project is not None:
        from align import write_advice

        write_advice(run, directory)
