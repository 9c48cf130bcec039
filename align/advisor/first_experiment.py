"""The cheapest experiment that could show the advice to be wrong, and the result at which to stop there."""

from __future__ import annotations

from align.advisor.eval_plan import detectable
from align.advisor.fact_words import score
from align.advisor.predicates import ONLINE, TRAINED_ON
from align.advisor.project_facts import Facts, Plan
from align.advisor.thresholds import Thresholds
from align.schemas.advice import FirstExperiment

ASK = "the best prompt you can write, with three to five examples in it and a validator with one retry"


def first_experiment(facts: Facts, limit: Thresholds, plan: Plan) -> FirstExperiment | None:
    """Return an experiment of a day or less, chosen by the first expensive stage; None where nothing is advised yet."""
    rows, enough = _rows(facts, limit), _enough(facts, limit)
    if plan.primary == "insufficient":
        return None
    if plan.primary == "prompting":
        what = f"{ASK}, on {rows} rows that it was not tuned on, with paraphrases and attacks among them"
        return FirstExperiment(what=what, cost="half a day, no GPU", stop_if=enough)
    if plan.primary == "rag":
        what = (
            f"keyword search (BM25) over the documents, the best five passages in the prompt, on {rows} real questions"
        )
        stop = "the right page is among the five in 9 of 10 questions and the answers are right where it is"
        return FirstExperiment(what=what, cost="a day, no GPU", stop_if=f"{stop}; then no training is needed")
    if plan.primary == "continual_pretraining":
        what = "bits per byte of the corpus and of general text under the untouched model, and "
        what += (
            f"{rows} questions on the field with and without the right passage in the prompt (align advise --measure)"
        )
        stop = f"the model predicts the corpus nearly as well as general text; or with the passage {enough}"
        return FirstExperiment(what=what, cost="a day, under 10 GPU-hours", stop_if=stop)
    if any(stage in ONLINE for stage in plan.stages):
        what = (
            f"eight answers of the untouched model to each of {rows} prompts, scored: pass@1 and pass@8 (align sample)"
        )
        stop = f"{enough}; or pass@8 is no higher than pass@1, since then there is nothing to learn from rewards"
        return FirstExperiment(what=what, cost="an hour or two of one GPU", stop_if=stop)
    if plan.stages[:1] == ("best_of_n",):
        what = f"the best of 2, 4 and 8 answers to {rows} prompts, judged by the score "
        what += "and by a person who does not see the score"
        return FirstExperiment(what=what, cost="half a day", stop_if="the person sees no difference")
    if plan.stages == ("reward_model",):
        what = f"a large model judges {rows} of the comparisons, each in both orders"
        return FirstExperiment(
            what=what, cost="half a day", stop_if="it agrees with people as often as people agree with one another"
        )
    what = f"{ASK}, on {rows} held-out rows" + ("" if facts.kinds & {*TRAINED_ON} else ", labelled for it")
    return FirstExperiment(what=what, cost="half a day, no GPU", stop_if=enough)


def _rows(facts: Facts, limit: Thresholds) -> int:
    """Return the number of held-out rows, at most as many as show an effect well."""
    held = facts.project.evals.held_out_rows
    return min(held, limit.eval_rows.comfortable) if held else limit.eval_rows.warn


def _enough(facts: Facts, limit: Thresholds) -> str:
    e = facts.project.evals
    if e.target is None:
        return "too little goes wrong to be worth a training run"
    metric = e.metric or "the score"
    if e.baseline is None or not 0 < e.baseline < 1:
        return f"{metric} reaches {score(e.target)}"
    rows = _rows(facts, limit)
    error = detectable(e.baseline, rows, limit.standard_errors)
    seen = f"on {rows} rows a difference of {100 * error:.2g} points can be seen"
    return f"{metric} reaches {score(e.target)} ({score(e.baseline)} today; {seen})"
