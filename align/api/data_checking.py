"""Data before training: files checked row by row, and rows as the tokens that a model learns from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from align.core.data.lint.eval_overlap import read_suite
from align.core.data.lint.linter import LintOptions, ScanResult, scan_source
from align.core.util.progress import working
from align.core.util.system_errors import explaining
from align.schemas.errors import AlignError
from align.schemas.records import Kind
from align.schemas.run import Choice, Data, Model, Source

if TYPE_CHECKING:
    from align.core.data.encode import Encoder
    from align.core.data.lint.text_statistics import Count
    from align.core.data.preview import Preview


@explaining()
def check_data(
    files: str | Path | Iterable[str | Path],
    *,
    format: str = "auto",
    kinds: Sequence[Kind] = (),
    columns: Mapping[str, str] | None = None,
    against: Sequence[str | Path] = (),
    model: str | None = None,
    max_length: int | None = None,
    skip: Sequence[str] = (),
    report: Callable[[ScanResult], None] = lambda result: None,
) -> list[ScanResult]:
    """Name every bad row of each file, count rows by kind, and list what is doubtful about the good ones.

    files: data files, directories of them, or hub ids. kinds: what the rows are to teach. columns: align's name of a
    column -> the file's. against: evaluations whose prompts must not be in the rows. model: lengths are given in its
    tokens. max_length: with a ``model``, tokens from which on rows are too long. skip: ids of findings to leave out.
    report: called with each file's result as it comes.

    A file that cannot be read has the reason in its result's ``error``. Imports torch only where a ``model`` is named.
    Raises AlignError for an evaluation that cannot be read, an unknown id, and a model without a tokenizer.
    """
    if max_length is not None and model is None:
        raise AlignError("is in tokens, so it needs a model", where="max_length")
    count = None
    if model is not None:
        with working(f"loading the tokenizer of {model}"):
            count = _token_counter(model)
    options = LintOptions([read_suite(str(path)) for path in against], count, max_length, skip)
    results = []
    for file in [files] if isinstance(files, str | Path) else files:
        source = Source(path=str(file), format=format, columns=dict(columns or {}))
        results.append(scan_source(source, kinds or get_args(Kind), options))
        report(results[-1])
    return results


def _token_counter(model: str) -> Count:
    """Return a function that counts the tokens of texts, special ones left out. Raises AlignError without a tokenizer.

    model: the model's directory or hub id.
    """
    from align.core.data.encode import MAX_CHARACTERS
    from align.core.models.load_and_export import load_tokenizer

    tokenizer = load_tokenizer(Model(path=model))

    def count(texts: Sequence[str]) -> list[int]:
        ready = [text[:MAX_CHARACTERS].encode("utf-8", "replace").decode() for text in texts]
        encoded = tokenizer(ready, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
        return [len(ids) for ids in encoded]

    return count


@dataclass(frozen=True, slots=True)
class DataPreview:
    """Rows as a model learns from them.

    seen: the first rows' examples, and what is wrong with any row. encoder: turns their tokens to text.
    """

    seen: Preview
    encoder: Encoder

    def __str__(self) -> str:
        from align.core.data.preview import format_example

        examples = [example for _, some in self.seen.first for example in some]
        return "\n\n".join(format_example(example, self.encoder, colour=False).plain for example in examples)


@explaining()
def preview_data(
    file: str | Path,
    model: str | Path,
    *,
    rows: int = 3,
    algorithm: str = "sft",
    max_length: int = 1024,
    format: str = "auto",
    chat_template: str | Path | None = None,
    allow: Sequence[str] = (),
    special_tokens: Sequence[str] = (),
) -> DataPreview:
    """Return the first rows of a file as the tokens that a model learns from, and what is wrong with any row.

    Printed, scored tokens stand in double brackets. model: a directory or hub id, for its tokenizer and chat template.
    algorithm: what is to learn from the rows. The rest is as in a run file's ``data`` and ``model``.
    Imports torch. Raises AlignError where the file or the model cannot be read, or the rows give nothing to learn from.
    """
    from align.core.data.encode import Encoder
    from align.core.data.preview import preview_source
    from align.core.data.template_checks import TokenizationSettings
    from align.core.models.load_and_export import load_tokenizer
    from align.core.plugin_system import registry

    source = Source(path=str(file), format=format)
    learner = registry.build("algorithm", Choice(type=algorithm))
    data = Data(train=[source], max_length=max_length, allow=list(allow), special_tokens=list(special_tokens))
    settings = TokenizationSettings.of(learner, data)
    template = None if chat_template is None else str(chat_template)
    with working(f"loading the tokenizer of {model}"):
        encoder = Encoder(load_tokenizer(Model(path=str(model), chat_template=template), learner.head))
    return DataPreview(preview_source(source, encoder, settings, rows), encoder)
