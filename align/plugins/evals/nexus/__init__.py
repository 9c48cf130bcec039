"""``nexus``: calls of functions by their Python signatures, after NexusBench (V2) and the set before it (V1)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from align import AlignError, Eval
from align.evals import Episode, EvalSettings, Generate, Item, Result, load_rows
from align.plugins.evals.nexus.matcher import Bound, Function, Unreadable, read_calls, read_functions
from align.settings import Sampling

REQUEST = """\
These Python functions can be called:

{functions}

Answer the request below with calls of them and nothing else: no explanation, no assignment, no imports. Give every
argument that the request implies as a constant; separate several calls by semicolons.

Request: {question}"""
"""Our own wording."""
_FENCED = re.compile(r"```[a-z]*\n(.*?)```", re.DOTALL)
_MARK = re.compile(r"^\s*(Call:\s*)?", re.IGNORECASE)


class Nexus(Eval):
    """One task of NexusBench's single-step ones (NVDLibrary, VirusTotal, ITType0, ITType1, TicketTracking) or of V1.

    Rows: ``Input``, ``Output`` (calls, separated by semicolons). The functions come from a file of stubs: NexusBench's
    own ``nexusbench/tools/*.py``, or one of the user's. It is parsed, and neither it nor a call is ever run.
    """

    name: ClassVar[str] = "nexus"
    domain: ClassVar[Any] = "tools"

    class Config(EvalSettings, Eval.Config):
        """Settings in the suite file."""

        split: str = "train"
        """Split of a hub dataset or a directory; the published sets have this one alone."""
        functions: str
        """A Python file with the functions' signatures and docstrings."""
        prefix: str = ""
        """Only functions whose names begin so are offered (``vt_`` for VirusTotal's file)."""
        version: Literal["v1", "v2"] = "v2"
        """``v2``: the first call has to be the reference's first. ``v1``: all calls, inner ones first, in order."""

    config: Config
    _functions: Mapping[str, Function]

    def load(self) -> Sequence[Item]:
        """See ``Eval``. Raises AlignError for a reference that is no call of the functions."""
        try:
            source = Path(self.config.functions).read_text(encoding="utf-8")
            self._functions = read_functions(source, self.config.prefix)
        except (OSError, UnicodeDecodeError, Unreadable) as error:
            raise AlignError(f"the functions cannot be read: {error}", where=self.config.functions) from error
        if not self._functions:
            raise AlignError("defines no function of that prefix at its top", where=self.config.functions)
        rows = load_rows(self.config.source)
        return [self._item(number, where, row) for number, (where, row) in enumerate(rows)]

    def _item(self, number: int, where: str, row: Mapping[str, Any]) -> Item:
        question, output = row.get("Input"), row.get("Output")
        if not isinstance(question, str) or not isinstance(output, str):
            raise AlignError("is no row of NexusBench: it needs the texts `Input` and `Output`", where=where)
        reference = output.strip().removeprefix("r = nvdlib.")  # as the NVDLibrary set has it
        try:
            if not self._compared(read_calls(reference, self._functions)):
                raise Unreadable("has no call")
        except Unreadable as error:
            fix = "give the file of the functions that this task calls"
            raise AlignError(f"its `Output` {error}", fix, where=where) from error
        return Item(str(row.get("id", number)), reference, columns={"question": question.strip()})

    def run(self, item: Item) -> Episode:
        """See ``Eval``. A reply that is no call of the functions is wrong and not valid."""
        prompt = [{"role": "user", "content": self._request(item.columns["question"])}]
        (reply,) = yield [Generate(prompt, self.config.sampled(Sampling(temperature=0, max_completion_length=512)))]
        wanted = self._compared(read_calls(item.target, self._functions))
        try:
            calls = read_calls(bare(reply.text), self._functions)
        except Unreadable as error:
            return Result(0.0, valid=False, error=str(error))
        return Result(float(self._compared(calls) == wanted), extracted=repr(calls), valid=bool(calls))

    def _compared(self, calls: Sequence[Bound]) -> Sequence[Bound]:
        """Return those calls that count."""
        return calls if self.config.version == "v1" else calls[:1]

    def _request(self, question: str) -> str:
        described = [f'{each.header}:\n    """{each.about}"""' for each in self._functions.values()]
        return REQUEST.format(functions="\n\n".join(described), question=question)


def bare(text: str) -> str:
    """Return a reply's calls without a fence around them or NexusRaven's mark before them."""
    fenced = _FENCED.findall(text)
    return _MARK.sub("", fenced[-1] if fenced else text.strip().strip("`"), count=1).strip()
