"""A pytest plugin that prints how near every numeric comparison of the suite stands to its bound.

    pytest -p tests.margins -o enable_assertion_pass_hook=true tests/core tests/plugins --margins 0.1

A margin is the difference over the tolerance: 1 fails. Run it under ``ATEN_CPU_CAPABILITY=default``, ``MKL_CBWR`` and
one and two threads too: a bound that only this processor's kernels keep fails on another one's. Comparisons seen:
pytest.approx, torch.allclose, torch.testing.assert_close, NumPy's, and asserted ``x < 1e-N``.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from _pytest.approx import ApproxScalar

_BOUND = re.compile(r"^(?:tensor\()?([-+.e\d]+)(?:, [^<]*\))? <=? (\d\S*e-\d+|0\.0\d+)$")
_margins: dict[str, float] = {}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--margins", type=float, default=0.1, help="print comparisons with a margin above this")


def pytest_configure(config: pytest.Config) -> None:
    scalar = ApproxScalar.__eq__

    def equal(self: Any, actual: Any) -> bool:
        if isinstance(actual, int | float | np.number) and isinstance(self.expected, int | float | np.number):
            _record(abs(actual - self.expected), self.tolerance)
        return bool(scalar(self, actual))

    ApproxScalar.__eq__ = equal  # type: ignore[method-assign]
    for owner, name in ((torch, "allclose"), (np, "allclose"), (np.testing, "assert_allclose")):
        setattr(owner, name, _watched(getattr(owner, name)))
    torch.testing.assert_close = _watched(torch.testing.assert_close)  # type: ignore[attr-defined]


def pytest_assertion_pass(item: pytest.Item, lineno: int, orig: str, expl: str) -> None:
    if found := _BOUND.match(expl.splitlines()[0]):
        difference, bound = float(found[1]), float(found[2])
        _keep(f"{item.path.name}:{lineno}", difference / bound)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    terminalreporter.section("margins")
    for place, margin in sorted(_margins.items(), key=lambda item: -item[1]):
        if margin >= config.getoption("margins"):
            terminalreporter.write_line(f"{margin:8.3g}  {place}")


def _watched(compare: Callable[..., Any]) -> Callable[..., Any]:
    def wrapped(actual: Any, expected: Any, *args: Any, **settings: Any) -> Any:
        a, b = (np.asarray(x.detach().double() if isinstance(x, torch.Tensor) else x, float) for x in (actual, expected))
        rtol, atol = settings.get("rtol"), settings.get("atol")
        if a.size and a.shape == b.shape:
            near = 1.3e-6 if compare.__name__ == "assert_close" else 1e-5  # torch's defaults for float32
            bound = (atol if atol is not None else near if near > 5e-6 else 1e-5) + (near if rtol is None else rtol) * np.abs(b)
            with np.errstate(invalid="ignore", divide="ignore"):
                _record(float(np.nanmax(np.abs(a - b) / bound, initial=0.0)), 1.0)
        return compare(actual, expected, *args, **settings)

    return wrapped


def _record(difference: float, tolerance: float) -> None:
    frame = sys._getframe(2)
    while frame is not None and "/tests/" not in frame.f_code.co_filename.replace("margins.py", ""):
        frame = frame.f_back  # type: ignore[assignment]
    while frame is not None and frame.f_code.co_filename == __file__:
        frame = frame.f_back  # type: ignore[assignment]
    place = "?" if frame is None else f"{frame.f_code.co_filename.rpartition('/tests/')[2]}:{frame.f_lineno}"
    _keep(place, difference / tolerance if tolerance else 0.0 if difference == 0 else float("inf"))


def _keep(place: str, margin: float) -> None:
    if margin == margin:
        _margins[place] = max(margin, _margins.get(place, 0.0))
