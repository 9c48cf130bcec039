"""Train the learned reader of descriptions on ``data/advice/learn``, and write its weights.

    python -m tools.train_reader [--output FILE] [--workers 2]

Heads on texts, sentences and numbers are support vector machines with squared hinge loss, fitted by dual coordinate
descent (Hsieh et al. 2008, "A dual coordinate descent method for large-scale linear SVM"), all heads at once, with
additions and multiplications only, in a fixed order: the same texts give the same bits. What combines them is fitted
on scores of texts that the heads were not trained on, writer by writer, since a reader of somebody's other texts
would look better than it is.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import minimize

from align.advisor.decision import decide
from align.advisor.merge_evidence import gather
from align.advisor.project_facts import Evidence
from align.advisor.reading.answers import ANSWERS, PARTS, STAGES, WARNINGS, answer_inputs
from align.advisor.reading.candidates import (
    FoundNumber,
    ScoredText,
    TextFeatures,
    as_evidence,
    features_of,
    statement_inputs,
)
from align.advisor.reading.features import Hashes
from align.advisor.reading.linear import FILE, Array, LinearHeads, Row, Weights, row, save
from align.advisor.reading.statements import FREE, Statement, parse
from align.advisor.text import read
from align.advisor.thresholds import Thresholds
from align.api.advising import rules
from benchmarks.advice_cases import DATA, Case, evidence_of_labels, load

BITS = {"text": 16, "sentence": 16, "number": 14}
"""Bits of a bucket's number."""
LEAST = {"sentence": 25, "number": 15}
"""Fewest labels from which on a head is trained."""
LEVELS = 26
"""Steps of a rounded weight on either side of 0: few enough that the file stays small."""
EPOCHS = 12
COST, COST_OF_POSITIVES = 1.0, 3.0
"""C of the machines, and how much more a missed positive costs where positives are rare."""
SMALL = 1e-4
"""Change of a dual variable below which it is left alone."""
FOLDS = (("w1", "w6"), ("w2", "w7"), ("w4", "w9"), ("w5", "w8"), ("w3", "w10"))
"""Writers held out together. Those who write in three languages are split in two halves: each is most of what there is
of their languages."""


Doubles = np.ndarray[Any, np.dtype[np.float64]]

# Texts and their labels


@dataclass
class Example:
    """A labelled text with its features and its labels."""

    case: Case
    lexicon: list[Evidence]
    primary: str
    votes: list[str]
    features: TextFeatures
    statements: list[set[str]]
    """Names of the statements of each sentence."""
    counts: list[set[str]]
    """Names of the statements of each number."""


def example(case: Case) -> Example:
    """Read a text, and put its labels at the sentences and numbers that they quote."""
    reading = read(case.text)
    lexicon = reading.evidence
    known = [code for code in reading.languages if not code.endswith("?")]
    decision = decide(gather(lexicon), Thresholds.load(), rules())
    hashed = features_of(case.text, known)
    labels = evidence_of_labels(case)
    statements: list[set[str]] = [set() for _ in hashed.places]
    for e in labels:
        shared = [_shared(e, (start, start + len(sentence))) for start, sentence in hashed.places]
        if shared and max(shared) > 0 and e.field.count(".") < 2:
            statements[int(np.argmax(shared))].add(Statement.of(e).name)
    return Example(
        case=case,
        lexicon=lexicon,
        primary=decision.plan.primary,
        votes=sorted({vote.rule for vote in decision.votes}),
        features=hashed,
        statements=statements,
        counts=[set(_stated(number, labels)) for number in hashed.found],
    )


def _shared(e: Evidence, span: tuple[int, int]) -> int:
    assert e.span is not None
    return min(e.span[1], span[1]) - max(e.span[0], span[0])


def _stated(found: FoundNumber, labels: Sequence[Evidence]) -> Iterator[str]:
    """Yield the numeric statements that a number makes: labels that quote it, and have its value."""
    for e in labels:
        numeric = isinstance(e.value, int | float) and not isinstance(e.value, bool)
        if not numeric or e.span is None or not (e.span[0] <= found.span[0] and found.span[1] <= e.span[1] + 1):
            continue
        read_as = as_evidence(parse(Statement.of(e).name), found)
        if read_as is None:
            continue
        inside = read_as.vague and read_as.low is not None and read_as.low <= e.value <= (read_as.high or 0)
        if inside or abs(float(read_as.value) - e.value) <= 0.011 * abs(e.value):
            yield Statement.of(e).name


def text_labels(case: Case) -> list[bool]:
    """Return the labels of a whole text: its answer, stages and warnings."""
    stages = {*(case.stages or ())} | ({*case.algorithm} if case.stages is None else set())
    judged = {*case.algorithm} & {"dpo", "kto"}
    present = {
        **{stage: stage in stages for stage in STAGES},
        "dpo": "dpo" in stages or ("preference" in stages and judged != {"kto"}),
        "kto": "kto" in stages or ("preference" in stages and "kto" in judged),
        "online_rl": bool({"online_rl", "grpo", "rloo", "ppo"} & stages),
    }
    answers = [case.primary == answer for answer in ANSWERS]
    return [*answers, *(present[stage] for stage in STAGES), *(warning in case.warn for warning in WARNINGS)]


# Support vector machines


def fit(rows: Sequence[Row], labels: Array, buckets: int, positives: float) -> tuple[Array, Array]:
    """Return weights (buckets, heads) and bias (heads,) that tell the labels (texts, heads), +1 and -1.

    Minimizes ``|w|^2 / 2 + sum_i C_i max(0, 1 - y_i w x_i)^2`` over its dual; the bias is the weight of a constant 1.
    """
    heads = labels.shape[1]
    weights = np.zeros((buckets + 1, heads), np.float32)
    alphas = np.zeros(labels.shape, np.float32)
    diagonal = np.where(labels > 0, 0.5 / (COST * positives), 0.5 / COST).astype(np.float32)
    places = [np.append(at, buckets) for at, _ in rows]
    values = [np.append(value, np.float32(1)) for _, value in rows]
    squares = [np.float32(np.add.reduce(value * value)) for value in values]
    moving = np.ones(len(rows), bool)
    generator = np.random.default_rng(0)
    for epoch in range(EPOCHS):
        every = epoch % 5 == 0 or epoch == EPOCHS - 1
        for at in generator.permutation(len(rows)):
            if not (every or moving[at]):
                continue
            mine, x, y = weights[places[at]], values[at][:, None], labels[at]
            margins = np.add.reduce(mine * x, axis=0)
            gradient = y * margins - 1 + diagonal[at] * alphas[at]
            step = np.maximum(alphas[at] - gradient / (squares[at] + diagonal[at]), 0) - alphas[at]
            step = np.where(np.abs(step) > SMALL, step, np.float32(0))
            moving[at] = bool(step.any())
            if moving[at]:
                alphas[at] += step
                weights[places[at]] = mine + x * (step * y)
    return weights[:-1], weights[-1]


def idf_of(texts: Sequence[Hashes], bits: int) -> Array:
    """Return each bucket's weight by the number of texts that have it; 0 below two."""
    counts = np.zeros(1 << bits, np.int64)
    for hashes in texts:
        counts[np.unique(hashes >> np.uint32(32 - bits))] += 1
    weight = np.log((1 + len(texts)) / (1 + counts)) + 1
    return np.where(counts > 1, weight, 0).astype(np.float16).astype(np.float32)


def quantized(names: Sequence[str], idf: Array, weights: Array, bias: Array) -> LinearHeads:
    """Round weights to ``LEVELS`` steps on either side of 0, a scale for each head."""
    scale = np.maximum(np.abs(weights).max(axis=0), 1e-6) / np.float32(LEVELS)
    return LinearHeads(tuple(names), idf, np.rint(weights / scale).astype(np.int8), scale.astype(np.float32), bias)


# Scores of texts that heads were not trained on


Job = tuple[str, tuple[int, ...]]
"""A kind of head, and the texts to train on."""
_TRAINED: dict[str, Any] = {}


def _trained(job: Job) -> LinearHeads:
    kind, on = job
    data = _TRAINED[kind]
    chosen = [at for at, owner in enumerate(data["owners"]) if owner in {*on}]
    rows = [data["rows"][at] for at in chosen]
    weights, bias = fit(rows, data["labels"][chosen], 1 << BITS[kind], 1.0 if kind == "text" else COST_OF_POSITIVES)
    return quantized(data["names"], data["idf"], weights, bias)


def prepare(examples: Sequence[Example]) -> None:
    """Put rows and labels of all kinds of heads where the workers find them."""
    texts = [each.features.text for each in examples]
    names = [*ANSWERS, *STAGES, *WARNINGS]
    signs = np.array([text_labels(each.case) for each in examples])
    _put("text", names, texts, signs, range(len(examples)))
    parts: dict[str, Callable[[Example], tuple[list[Hashes], list[set[str]]]]] = {
        "sentence": lambda example: (example.features.sentences, example.statements),
        "number": lambda example: (example.features.numbers, example.counts),
    }
    for kind, part in parts.items():
        marks = [mark for each in examples for mark in part(each)[1]]
        counts = Counter(name for mark in marks for name in mark)
        names = sorted(name for name, count in counts.items() if count >= LEAST[kind])
        hashed = [hashes for each in examples for hashes in part(each)[0]]
        owners = [at for at, each in enumerate(examples) for _ in part(each)[0]]
        _put(kind, names, hashed, np.array([[name in mark for name in names] for mark in marks]), owners)


def _put(kind: str, names: Sequence[str], hashed: Sequence[Hashes], marks: Any, owners: Sequence[int]) -> None:
    idf = idf_of(hashed, BITS[kind])
    _TRAINED[kind] = {
        "names": list(names),
        "idf": idf,
        "rows": [row(hashes, idf) for hashes in hashed],
        "labels": np.where(marks, 1, -1).astype(np.float32),
        "owners": list(owners),
    }


def folds(examples: Sequence[Example]) -> list[list[int]]:
    """Return the texts to hold out together: all of some writers."""
    home = {writer: number for number, writers in enumerate(FOLDS) for writer in writers}
    held: list[list[int]] = [[] for _ in range(len(FOLDS) + 1)]
    for at, each in enumerate(examples):
        fold = home[each.case.file]
        split = FOLDS[fold][0] == "w3" and at % 2
        held[len(FOLDS) if split else fold].append(at)
    return held


# What combines the heads


def logistic(inputs: Doubles, labels: Doubles, strength: float) -> Array:
    """Return the weights (inputs, classes) of a softmax, or (inputs, 1) of a sigmoid, with an L2 penalty.

    labels: (rows, classes) of 0 and 1. strength: of the penalty, on all weights but the last, which is the constant's.
    """
    width, classes = inputs.shape[1], labels.shape[1]
    kept = np.ones((width, 1))
    kept[-1] = 0

    def loss(flat: Any) -> tuple[float, Any]:
        weights = flat.reshape(width, classes)
        scores = inputs @ weights
        if classes == 1:
            value = np.logaddexp(0, scores).sum() - (labels * scores).sum()
            wrong = 1 / (1 + np.exp(-scores)) - labels
        else:
            scores = scores - scores.max(axis=1, keepdims=True)
            logs = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
            value = -(labels * logs).sum()
            wrong = np.exp(logs) - labels
        penalty = strength / 2 * float((kept * weights * weights).sum())
        return float(value) + penalty, (inputs.T @ wrong + strength * kept * weights).ravel()

    start = np.zeros(width * classes)
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 500, "gtol": 1e-4})
    weights: Array = np.round(found.x.reshape(width, classes), 3).astype(np.float32)
    return weights


def combine(examples: Sequence[Example], scores: Sequence[ScoredText], blank: Weights) -> dict[str, Array]:
    """Fit what combines heads and lexicon."""
    inputs = np.stack([statement_inputs(s, e.lexicon, blank) for e, s in zip(examples, scores, strict=True)])
    named = [set().union(*each.statements) for each in examples]
    statements = np.zeros((len(blank.sentence.names), 4), np.float32)
    for at, name in enumerate(blank.sentence.names):
        true = np.array([[name in each] for each in named], np.float64)
        statements[at] = logistic(inputs[:, at].astype(np.float64), true, 0.1)[:, 0]
    return {
        "statements": statements,
        "rare": np.array([_rare(examples, blank)], np.float32),
        "numbers": _numbers(examples, scores, blank),
        **_answers(examples, scores, blank),
    }


def _rare(examples: Sequence[Example], blank: Weights) -> float:
    """Return the log-odds that a statement is labelled which only the lexicon knows."""
    right = wrong = 1
    owned = {parse(name).field for name in blank.sentence.names}
    for each in examples:
        labelled = {Statement.of(e).name for e in evidence_of_labels(each.case)}
        for name in {Statement.of(e).name for e in each.lexicon} - {*blank.sentence.names}:
            if parse(name).field in owned and parse(name).field not in FREE:
                right, wrong = right + (name in labelled), wrong + (name not in labelled)
    return round(float(np.log(right / wrong)), 3)


def _numbers(examples: Sequence[Example], scores: Sequence[ScoredText], blank: Weights) -> Array:
    """Fit the log-odds of each head on numbers: its score, whether the lexicon reads the number so, a constant."""
    fitted = np.zeros((len(blank.number.names), 3), np.float32)
    for head, name in enumerate(blank.number.names):
        inputs, labels = [], []
        for each, s in zip(examples, scores, strict=True):
            read_so = [e.span for e in each.lexicon if Statement.of(e).name == name and e.span]
            for at, found in enumerate(each.features.found):
                same = any(a < found.span[1] and found.span[0] < b for a, b in read_so)
                inputs.append([float(s.numbers[at, head]), float(same), 1.0])
                labels.append([float(name in each.counts[at])])
        fitted[head] = logistic(np.array(inputs), np.array(labels), 0.1)[:, 0]
    return fitted


def _answers(examples: Sequence[Example], scores: Sequence[ScoredText], blank: Weights) -> dict[str, Array]:
    votes = blank.about["votes"]
    inputs = np.stack(
        [answer_inputs(s, e.primary, e.votes, votes) for e, s in zip(examples, scores, strict=True)]
    ).astype(np.float64)
    mean, deviation = inputs.mean(axis=0), inputs.std(axis=0) + 1e-3
    z = np.column_stack([(inputs - mean) / deviation, np.ones(len(inputs))])
    labels = np.array([text_labels(each.case) for each in examples], np.float64)
    answers = logistic(z, labels[:, : len(ANSWERS)], STRENGTH)
    parts = [logistic(z, labels[:, [len(ANSWERS) + at]], STRENGTH)[:, 0] for at in range(len(PARTS))]
    return {
        "mean": mean.round(4).astype(np.float32),
        "deviation": deviation.round(4).astype(np.float32),
        "answers": answers,
        "parts": np.column_stack(parts),
    }


STRENGTH = 100.0
"""Penalty on the weights of answers and stages, by the accuracy on held-out writers."""


# The command


def trained_on() -> str:
    """Return the hash of all that the weights depend on: texts, labels, lexicons, features and this file."""
    root = DATA.parents[1]
    files = [*DATA.glob("learn/*.yaml"), *(root / "align/advisor/text").rglob("*"), Path(__file__).resolve()]
    files += [root / "align/advisor/reading" / name for name in ("features.py", "linear.py", "statements.py")]
    hashed = hashlib.sha256()
    for file in sorted(file for file in files if file.suffix in (".py", ".yaml")):
        hashed.update(file.name.encode() + b"\0" + file.read_bytes())
    return hashed.hexdigest()


def main() -> None:
    """Train, and write the weights."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=FILE, help="the file of the weights")
    parser.add_argument("--workers", type=int, default=2, help="processes that train at a time")
    parser.add_argument("--scores", type=Path, help="write held-out scores there too, to study them")
    parser.add_argument("--every", type=int, default=1, help="train on every so many texts only, to try it")
    chosen = parser.parse_args()
    examples = [example(case) for case in load("learn")[:: chosen.every]]
    prepare(examples)
    held = folds(examples)
    every = range(len(examples))
    kinds = tuple(BITS)
    jobs: list[Job] = [(kind, tuple(every)) for kind in kinds]
    jobs += [(kind, tuple(at for at in every if at not in {*out})) for out in held for kind in kinds]
    with ProcessPoolExecutor(chosen.workers) as pool:  # forked: the workers share the rows
        fitted = list(pool.map(_trained, jobs))
    shipped = dict(zip(kinds, fitted[: len(kinds)], strict=True))
    scores: list[ScoredText | None] = [None] * len(examples)
    for number, out in enumerate(held, 1):
        heads = dict(zip(kinds, fitted[number * len(kinds) : (number + 1) * len(kinds)], strict=True))
        for at in out:
            scores[at] = examples[at].features.scored(heads["text"], heads["sentence"], heads["number"])
    votes = sorted({vote for each in examples for vote in each.votes})
    about = {"votes": votes, "texts": len(examples), "trained_on": trained_on()}
    blank = Weights(shipped["text"], shipped["sentence"], shipped["number"], {}, about, "")
    unseen = [each for each in scores if each is not None]
    combined = combine(examples, unseen, blank)
    save(chosen.output, shipped, combined, about)
    if chosen.scores:
        import pickle

        chosen.scores.write_bytes(pickle.dumps((examples, unseen)))
    print(
        json.dumps(
            {
                "texts": len(examples),
                "bytes": chosen.output.stat().st_size,
                "heads": {kind: len(head.names) for kind, head in shipped.items()},
            }
        )
    )


if __name__ == "__main__":
    main()
