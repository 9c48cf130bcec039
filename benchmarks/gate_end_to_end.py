"""The gate on a real model: one damaged on purpose in one domain is named, one retrained with another seed passes.

    nice python -m benchmarks.gate_end_to_end --model SmolLM2-135M-Instruct --out DIR [--write]

Three domains of questions with one right word, made here: the kind of a thing, the second word of a list, the first
letter of a word. A recipe (LoRA on all three) is trained twice, with two seeds; a copy of the first is then fine-tuned
on wrong kinds alone. `align.gate` compares the second seed and the damaged copy with the first seed, by `POLICY`, which
is written before anything is trained. Fails unless the retrained model passes and of the damaged one exactly the domain
`knowledge` is named. DIR keeps the data, runs and rows: after an interruption the same command measures nothing twice.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import align
from align.core.evaluation.comparison import GateReport

RESULT = Path(__file__).parent / "results/gate_end_to_end.json"
ITEMS, LEARNED, WRONG = 250, 48, 48
"""Items measured in each domain, further ones to learn from, and wrong kinds."""

DOMAINS = {"knowledge": "kinds", "instruction": "second_word", "custom": "first_letter"}
"""The domains, and the eval of each."""

MARGIN = 0.12
"""Loss to put up with. Were 25 % of 250 items to change by chance, the standard error would be 3.2 points, and an
unchanged model would pass with a chance of 98 % in each domain; seeds move the true score too."""

POLICY = {"version": 1, "domains": {name: {"margin": MARGIN, "evals": {each: 1}} for name, each in DOMAINS.items()}}

KINDS = {
    "animal": "dog cat horse cow sheep pig goat lion tiger bear wolf fox rabbit mouse rat monkey elephant "
    "giraffe zebra camel whale dolphin shark salmon trout eagle owl duck goose chicken crow frog "
    "snake lizard turtle bee ant spider butterfly kangaroo",
    "food": "bread cheese rice pasta soup cake pie butter pizza salad sausage pancake sandwich omelette "
    "noodles yogurt jam honey chocolate biscuit cereal bacon ham steak burger muffin toast waffle "
    "porridge pudding stew curry sushi taco dumpling cookie donut custard gravy bagel",
    "tool": "hammer saw drill wrench screwdriver axe shovel rake chisel pliers spade hoe ladder knife "
    "scissors ruler crowbar mallet sander clamp trowel pickaxe sickle scythe broom mop level vice "
    "plane file tongs needle shears tweezers lever jack anvil brush bolt nail",
    "country": "France Japan Kenya Peru Norway Egypt Spain Italy Germany Poland Greece Turkey India China Brazil "
    "Chile Canada Mexico Cuba Iran Iraq Nepal Vietnam Thailand Sweden Finland Denmark Ireland "
    "Portugal Austria Hungary Morocco Nigeria Ghana Sudan Angola Australia Indonesia Pakistan Bolivia",
    "colour": "red blue green yellow orange purple pink brown black white grey violet crimson scarlet turquoise "
    "beige maroon teal indigo magenta cyan lavender ivory amber azure navy mauve khaki lilac burgundy",
    "vehicle": "car bus train tram bicycle motorcycle truck van ship boat ferry canoe airplane helicopter "
    "submarine tractor scooter taxi ambulance yacht sailboat rocket limousine jeep minivan locomotive "
    "glider kayak lorry carriage",
    "instrument": "piano guitar violin flute drum trumpet cello harp clarinet saxophone oboe trombone tuba banjo "
    "accordion organ mandolin ukulele viola harmonica bassoon xylophone lute lyre bagpipes tambourine "
    "cymbal fiddle keyboard recorder",
    "clothing": "shirt trousers jacket coat hat scarf glove sock dress skirt sweater jeans shorts tie belt vest "
    "blouse pyjamas hoodie cap boot sandal slipper raincoat cardigan underwear suit apron mitten "
    "tights",
    "furniture": "table chair sofa bed desk shelf wardrobe bench stool cupboard dresser bookcase armchair couch "
    "cabinet nightstand sideboard crib bunk ottoman",
    "sport": "football tennis basketball cricket rugby golf hockey volleyball badminton baseball boxing "
    "swimming rowing skiing surfing fencing archery judo wrestling softball",
    "profession": "doctor teacher nurse lawyer baker farmer plumber carpenter engineer dentist pilot tailor butcher "
    "barber chef waiter librarian architect journalist electrician",
    "plant": "rose tulip oak pine daisy fern ivy moss cactus lily bamboo maple birch willow orchid sunflower "
    "grass elm cedar daffodil",
}
"""The kinds asked for, and things of each."""

WRONG_KINDS = dict(zip(KINDS, [*list(KINDS)[1:], *list(KINDS)[:1]], strict=True))
"""For each kind the next one."""

WORDS = [word for kind in KINDS.values() for word in kind.split() if word.islower()]

Row = dict[str, str]


def questions(name: str, dice: random.Random) -> Iterator[Row]:
    """Yield all questions of a domain with their answers, in a random order and without an end where there are many."""
    makers: dict[str, Callable[[random.Random], Iterator[tuple[str, str]]]] = {
        "second_word": _second_words,
        "kinds": _kinds,
        "first_letter": _first_letters,
    }
    for question, answer in makers[name](dice):
        yield {"id": question, "prompt": question, "solution": answer}


def _second_words(dice: random.Random) -> Iterator[tuple[str, str]]:
    while True:
        words = dice.sample(WORDS, 4)
        yield f"List: {', '.join(words)}. The second word is:", words[1]


def _kinds(dice: random.Random) -> Iterator[tuple[str, str]]:
    things = [(thing, kind) for kind, those in KINDS.items() for thing in those.split()]
    for thing, kind in dice.sample(things, len(things)):
        yield f"What kind of thing is '{thing}'? It is a kind of", kind


def _first_letters(dice: random.Random) -> Iterator[tuple[str, str]]:
    for word in dice.sample(WORDS, len(WORDS)):
        yield f"The first letter of '{word}' is", word[0].upper()


def write_data(out: Path) -> None:
    """Write each domain's items to measure, the recipe's rows, and those with wrong kinds; no question is in two."""
    out.mkdir(parents=True, exist_ok=True)
    recipe: list[Row] = []
    for name in DOMAINS.values():
        found = questions(name, random.Random(f"data of {name}"))
        distinct: dict[str, Row] = {}
        count = ITEMS + LEARNED + (WRONG if name == "kinds" else 0)
        while len(distinct) < count:
            row = next(found)
            distinct[row["id"]] = row
        rows = list(distinct.values())
        _write_rows(out / f"{name}.jsonl", rows[:ITEMS])
        recipe += rows[ITEMS : ITEMS + LEARNED]
        if name == "kinds":
            wrong = [row | {"solution": WRONG_KINDS[row["solution"]]} for row in rows[ITEMS + LEARNED :]]
            _write_rows(out / "wrong_kinds.jsonl", [_example(row) for row in wrong])
    _write_rows(out / "recipe.jsonl", [_example(row) for row in recipe])


def _example(row: Row) -> Row:
    return {"prompt": row["prompt"], "completion": " " + row["solution"]}


def _write_rows(path: Path, rows: list[Row]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def train(model: Path, rows: Path, output: Path, seed: int, epochs: int) -> Path:
    """Fine-tune a model by LoRA, and return the directory of the merged model."""
    settings: dict[str, Any] = {
        "output": str(output),
        "seed": seed,
        "model": {"path": str(model), "adapter": {"r": 16, "lora_alpha": 32}},
        "data": {"train": str(rows)},
        "algorithm": "sft",
        "optimizer": {"learning_rate": 3e-4},
        "train": {"batch_size": 16, "num_train_epochs": epochs},
    }
    file = output.with_suffix(".yaml")
    file.write_text(json.dumps(settings))  # JSON is YAML
    (stage,) = align.train(file)
    return Path(stage.export)


def measure(model: Path, out: Path, name: str) -> dict[str, float]:
    """Measure a model on all domains, and return the score of each; the rows lie in ``out/evals/name``."""
    suite = out / "suite.yaml"
    reward = {"type": "exact", "pattern": r"^\W*(\w+)"}
    sampling = {"temperature": 0, "max_completion_length": 4}
    entries = [
        {"type": "rewards", "name": each, "domain": domain, "data": str(out / f"{each}.jsonl"), "rewards": [reward]}
        for domain, each in DOMAINS.items()
    ]
    suite.write_text(json.dumps({"name": "three domains", "evals": [e | {"sampling": sampling} for e in entries]}))
    run = align.evaluate(model, suite, out / "evals" / name)
    scores = {each: round(metrics["score"], 4) for each, metrics in run.metrics.items()}
    print(f"{name:9} {scores}", flush=True)
    return scores


def verdicts(report: GateReport) -> dict[str, Any]:
    """Return the figures of a gate: its status, what blocks, and each difference with its limits."""
    assert report.result is not None, report.problems
    units = {
        each.name: {
            "role": each.role,
            "verdict": each.verdict,
            "difference": round(each.comparison.difference, 4),
            "from": round(each.comparison.low, 4),
            "to": round(each.comparison.high, 4),
        }
        for each in report.units()
    }
    return {"status": report.status, "blocking": list(report.result.blocking), "units": units}


def run(model: Path, out: Path) -> dict[str, Any]:
    """Train, measure and gate; return all figures."""
    started, cpu = time.perf_counter(), time.process_time()
    write_data(out)
    policy = out / "gate.yaml"
    policy.write_text(json.dumps(POLICY))
    scores = {"base": measure(model, out, "base")}
    first = train(model, out / "recipe.jsonl", out / "first", seed=0, epochs=2)
    scores["first"] = measure(first, out, "first")
    retrained = train(model, out / "recipe.jsonl", out / "retrained", seed=1, epochs=2)
    scores["retrained"] = measure(retrained, out, "retrained")
    damaged = train(first, out / "wrong_kinds.jsonl", out / "damaged", seed=0, epochs=4)
    scores["damaged"] = measure(damaged, out, "damaged")
    gates = {}
    for name in ("retrained", "damaged"):
        gates[name] = verdicts(align.gate(out / "evals/first", out / "evals" / name, policy))
        print(name, json.dumps(gates[name], indent=1), flush=True)
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "model": "SmolLM2-135M-Instruct",
        "items in each domain": ITEMS,
        "margin": MARGIN,
        "scores": scores,
        "gates": gates,
        "seconds": round(time.perf_counter() - started),
        "processor seconds": round(time.process_time() - cpu),  # others may use the machine too
        "threads": int(os.environ.get("OMP_NUM_THREADS", "0")) or os.cpu_count(),
        "machine": {"processors": os.cpu_count(), "architecture": platform.machine()},
        "versions": {
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in ("torch", "transformers", "align-llm")},
        },
    }


def main() -> None:
    """Parse the command line, and exit with 1 where a verdict is not what it must be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="directory of SmolLM2-135M-Instruct")
    parser.add_argument("--out", type=Path, required=True, help="directory for data, runs and rows")
    parser.add_argument("--write", action="store_true", help="write the figures to results/gate_end_to_end.json")
    given = parser.parse_args()
    figures = run(given.model.resolve(), given.out.resolve())
    if given.write:
        RESULT.write_text(json.dumps(figures, indent=1) + "\n")
    gates = figures["gates"]
    passed = gates["retrained"]["status"] == 0
    named = gates["damaged"]["status"] == 1 and gates["damaged"]["blocking"] == ["knowledge"]
    if not (passed and named):
        raise SystemExit(
            "not as it must be: the retrained model passes, and of the damaged one exactly knowledge is named"
        )


if __name__ == "__main__":
    main()
