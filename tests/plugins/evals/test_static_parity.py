"""The numbers of lm-eval's own ``simple_evaluate``: log-likelihoods on a tiny real Llama, scores of given texts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from align.core.inference.eval_models import EvalModel, ModelChoice, open_model
from align.processes import keep_random_state
from align.testing import ScriptedModel, run_eval
from tests.plugins.evals import static_rows
from tests.plugins.evals.static_rows import write
from tests.tiny import save_tiny

CONTEXT = 4096


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("parity") / "model", max_position_embeddings=CONTEXT)


@pytest.fixture(scope="module")
def ours(directory: Path) -> Iterator[EvalModel]:
    with open_model(ModelChoice(model=str(directory))) as model:
        yield model


@pytest.fixture(scope="module")
def theirs(directory: Path) -> Any:
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    network = AutoModelForCausalLM.from_pretrained(directory)
    return HFLM(pretrained=network, tokenizer=AutoTokenizer.from_pretrained(directory), max_length=CONTEXT)


def lm_evals(model: Any, yaml: str, files: Mapping[str, str], cache: Path, **changes: Any) -> tuple[Any, list[Any]]:
    """Return lm-eval's metrics and samples of one of its tasks on local files."""
    import lm_eval
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks.manager import load_yaml

    config = load_yaml(Path(lm_eval.__file__).parent / "tasks" / yaml)
    config.pop("tag", None)
    local = {"data_files": dict(files), "cache_dir": str(cache)}
    config |= {"task": "ours", "dataset_path": "json", "dataset_name": None, "dataset_kwargs": local, **changes}
    with keep_random_state():
        found = lm_eval.simple_evaluate(
            model=model,
            tasks=[config],
            task_manager=TaskManager(include_defaults=False),
            log_samples=True,
            bootstrap_iters=0,
        )
    return found["results"]["ours"], found["samples"]["ours"]


def by_prompt(samples: list[Any]) -> dict[str, list[float]]:
    """Return lm-eval's log-likelihoods of each prompt's choices."""
    return {each["arguments"][0][0]: [float(response[0][0]) for response in each["resps"]] for each in samples}


def compare(rows: list[Any], samples: list[Any]) -> None:
    expected = by_prompt(samples)
    assert {row.prompts[0]["context"] for row in rows} == set(expected)
    for row in rows:
        assert row.outputs == pytest.approx(expected[row.prompts[0]["context"]], abs=1e-4)


def test_mmlu(ours: EvalModel, theirs: Any, tmp_path: Path) -> None:
    algebra = [row for row in static_rows.MMLU if row["subject"] == "abstract_algebra"]
    shots = [row for row in static_rows.MMLU_SHOTS if row["subject"] == "abstract_algebra"]
    files = {"test": write(tmp_path / "test.jsonl", algebra), "dev": write(tmp_path / "dev.jsonl", shots)}
    rows, metrics = run_eval("mmlu", {"data": files["test"], "shots": files["dev"]}, ours)
    yaml = "mmlu/default/mmlu_abstract_algebra.yaml"
    results, samples = lm_evals(theirs, yaml, files, tmp_path / "cache", num_fewshot=5)
    compare(rows, samples)
    assert metrics["score"] == results["acc,none"]


@pytest.mark.parametrize("name", ["truthfulqa_mc1", "truthfulqa_mc2"])
def test_truthfulqa(name: str, ours: EvalModel, theirs: Any, tmp_path: Path) -> None:
    files = {"validation": write(tmp_path / "validation.jsonl", static_rows.TRUTHFULQA)}
    rows, metrics = run_eval(name, {"data": files["validation"]}, ours)
    results, samples = lm_evals(theirs, f"truthfulqa/{name}.yaml", files, tmp_path / "cache")
    compare(rows, samples)
    assert metrics["score"] == pytest.approx(results["acc,none"], abs=1e-4)


def test_lm_eval_gives_a_model_of_nan_full_marks_and_we_do_not(tmp_path: Path) -> None:
    """Why ties are never right here: the guard would be superfluous if lm-eval had one."""
    files = {"validation": write(tmp_path / "validation.jsonl", static_rows.TRUTHFULQA)}
    broken = scripted_lm(ScriptedModel(logp=lambda context, text: float("nan")))
    results, _ = lm_evals(broken, "truthfulqa/truthfulqa_mc1.yaml", files, tmp_path / "cache")
    assert results["acc,none"] == 1.0


def scripted_lm(model: ScriptedModel) -> Any:
    """Return lm-eval's form of a scripted model."""
    from lm_eval.api.model import LM

    from align.evals import Generate, LogLikelihood
    from align.settings import Sampling

    class Scripted(LM):
        def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
            queries = [(Generate(request.args[0], Sampling()), 0) for request in requests]
            return [reply.text for reply in model.generate(queries)]

        def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> list[tuple[float, bool]]:
            replies = model.loglikelihood([LogLikelihood(*request.args) for request in requests])
            return [(reply.logp, False) for reply in replies]

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> Any:
            raise NotImplementedError

    return Scripted()


GSM8K_TEXTS = [" 6.\n#### 6", " It is $1,200.", " 2400 or 2401?", "", " #### 6 and 7"]


@pytest.mark.parametrize("text", GSM8K_TEXTS)
def test_gsm8k(text: str, tmp_path: Path) -> None:
    files = {
        "test": write(tmp_path / "test.jsonl", static_rows.GSM8K),
        "train": write(tmp_path / "train.jsonl", static_rows.GSM8K_SHOTS),
    }
    model = ScriptedModel(lambda prompt, seed: text)
    first = {"sampler": "first_n"}
    results, samples = lm_evals(scripted_lm(model), "gsm8k/gsm8k.yaml", files, tmp_path / "cache", fewshot_config=first)
    rows, metrics = run_eval("gsm8k", {"data": files["test"], "shots": files["train"]}, model)
    expected = {"score": results["exact_match,flexible-extract"], "strict": results["exact_match,strict-match"]}
    assert metrics == expected
    assert {row.prompts[0] for row in rows} == {each["arguments"][0][0] for each in samples}


def without_padding(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows of maths without the options N/A, which lm-eval would show to the model."""
    maths = [row for row in rows if row["category"] == "math"]
    return [{**row, "options": [each for each in row["options"] if each != "N/A"]} for row in maths]


def test_mmlu_pro(tmp_path: Path) -> None:
    rows, shots = without_padding(static_rows.MMLU_PRO), without_padding(static_rows.MMLU_PRO_SHOTS)
    files = {"test": write(tmp_path / "test.jsonl", rows), "validation": write(tmp_path / "validation.jsonl", shots)}
    model = ScriptedModel(lambda prompt, seed: "So the answer is (C). Or is the answer is (A)?")
    results, samples = lm_evals(scripted_lm(model), "mmlu_pro/mmlu_pro_math.yaml", files, tmp_path / "cache")
    settings = {"data": files["test"], "shots": files["validation"], "variant": "lm-eval"}
    ours, metrics = run_eval("mmlu_pro", settings, model)
    assert metrics["score"] == results["exact_match,custom-extract"] == 1 / 6
    assert {row.prompts[0] for row in ours} == {each["arguments"][0][0] for each in samples}
