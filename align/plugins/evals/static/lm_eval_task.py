"""One benchmark of lm-evaluation-harness: its prompts, its extraction and its scoring, over rows that we give it.

lm-eval never reads data, samples, seeds or stores here. It is imported inside functions, with the random number
generators put back afterwards, since it and NLTK draw from the global ones.
"""

from __future__ import annotations

import hashlib
import logging
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from align import AlignError
from align.settings import Sampling

DEFAULT_TOKENS = 256
"""Longest completion where a task names none (lm-eval's own default)."""


class LmEvalTask:
    """A task of lm-eval, made from one of its YAML files.

    yaml: the file below ``lm_eval/tasks``. example: a row in the task's format; lm-eval infers the columns from it.
    shots: examples for the prompt, in their order. changes: keys of the YAML file that are replaced. Raises AlignError
    where lm-eval is not installed, and where it has no such file.
    """

    def __init__(
        self, yaml: str, example: Mapping[str, Any], shots: Sequence[Mapping[str, Any]] = (), **changes: Any
    ) -> None:
        require("lm_eval")
        with own_random(yaml), _quiet():
            import datasets
            import lm_eval
            from lm_eval.api.task import ConfigurableTask
            from lm_eval.tasks.manager import load_yaml

            path = Path(lm_eval.__file__).parent / "tasks" / yaml
            if not path.is_file():
                raise AlignError(f"lm-eval has no task {yaml}", "is it a subject of this benchmark?", where="eval")
            config = load_yaml(path)
            for structural in ("tag", "group", "task_list"):
                config.pop(structural, None)
            config = {"task": Path(yaml).stem, **config, "dataset_path": None, "dataset_name": None, **changes}
            splits = {split: [example] for key in _EVALUATED if (split := config.get(key))}
            if (split := config.get("fewshot_split")) and shots:
                splits[split] = list(shots)
            else:
                config["fewshot_split"] = None
            made = {split: datasets.Dataset.from_list([dict(row) for row in rows]) for split, rows in splits.items()}
            # ``custom_dataset`` is called in place of ``load_dataset``: no files, no cache, no network.
            self._task = ConfigurableTask(config={**config, "custom_dataset": lambda **_: made})

    def prompt(self, doc: Mapping[str, Any], num_fewshot: int = 0) -> str:
        """Return the description, ``num_fewshot`` examples and the question, as one text."""
        text = self._task.fewshot_context(doc, num_fewshot=num_fewshot)
        assert isinstance(text, str)
        return text

    def continuations(self, doc: Mapping[str, Any], chat: bool = False) -> list[str]:
        """Return the choices' texts as they follow the prompt; after a chat template without the space before them."""
        requests = self._task.construct_requests(doc, "", metadata=("", 0, 1), apply_chat_template=chat)
        return [request.arguments[1] for request in requests]

    def sampling(self) -> Sampling:
        """Return the task's settings of generation."""
        wanted = self._task.config.generation_kwargs
        temperature = float(wanted.get("temperature", 0.0)) if wanted.get("do_sample") else 0.0
        longest = int(wanted.get("max_gen_toks", DEFAULT_TOKENS))
        return Sampling(temperature=temperature, max_completion_length=longest, stop=list(wanted["until"]))

    def extract(self, doc: Mapping[str, Any], text: str) -> dict[str, str]:
        """Return what each of the task's filters reads from a completion, by the filter's name."""
        request = self._task.construct_requests(doc, "", metadata=("", 0, 1))
        request.resps = [text]
        for each in self._task._filters:
            each.apply([request])
        return {name: str(found) for name, found in request.filtered_resps.items()}

    def score(self, doc: Mapping[str, Any], outputs: Sequence[Any]) -> dict[str, Any]:
        """Return the task's metrics of one row. outputs: texts, or pairs of log-likelihood and False."""
        with own_random(str(sorted(doc.items()))), _quiet():
            scores: dict[str, Any] = self._task.process_results(dict(doc), list(outputs))
        return scores


_EVALUATED = ("training_split", "validation_split", "test_split")


def require(*modules: str) -> None:
    """Raise AlignError where one of the extra's modules is not installed."""
    if missing := [name for name in modules if find_spec(name) is None]:
        raise AlignError(f"needs {', '.join(missing)}", "pip install 'align-llm[eval]'", where="eval")


@contextmanager
def own_random(seed: str) -> Iterator[None]:
    """Seed the global generators of Python and numpy from a text, and put them back as they were."""
    python, array = random.getstate(), np.random.get_state()
    number = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:4])
    random.seed(number)
    np.random.seed(number)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(array)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep lm-eval's notes from the terminal: hints on its own command line, texts in no known language."""
    log = logging.getLogger("lm_eval")
    before = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(before)
