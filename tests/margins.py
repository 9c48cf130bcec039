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

from align.testing import algorithms as kit

_BOUND = re.compile(r"^(?:tensor\()?([-+.e\d]+)(?:, [^<]*\))? <=? (\d\S*e-\d+|0\.0\d+)$")
_margins: dict[str, float] = {}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--margins", type=float, default=0.1, help="print comparisons with a margin above this")


def pytest_configure(config: pytest.Config) -> None:
    scalar = ApproxScalar.__eq__

    def equal(self: Any, actual: Any) -> bool:
        numbers = int | float | np.number
        if isinstance(actual, numbers) and isinstance(self.expected, numbers) and self.expected == self.expected:
            _record(abs(actual - self.expected), self.tolerance)
        return bool(scalar(self, actual))

    ApproxScalar.__eq__ = equal  # type: ignore[method-assign]
    for owner, name in ((torch, "allclose"), (np, "allclose"), (np.testing, "assert_allclose")):
        setattr(owner, name, _watched(getattr(owner, name)))
    kit._same = _watched_law(kit._same)
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
        a, b = _array(actual), _array(expected)
        if a.size and a.shape == b.shape:
            # Without settings: torch's for float32, whichever function it is.
            bound = settings.get("atol", 1e-5) + settings.get("rtol", 1.3e-6) * np.abs(b)
            with np.errstate(invalid="ignore", divide="ignore"):
                _record(float(np.nanmax(np.abs(a - b) / bound, initial=0.0)), 1.0)
        return compare(actual, expected, *args, **settings)

    return wrapped


def _watched_law(compare: Callable[..., None]) -> Callable[..., None]:
    """Record the law's own margin: the gap between two gradients over the first one's norm."""

    def wrapped(where: str, want: Any, got: Any, tolerance: float) -> None:
        _record(float((want[1] - got[1]).norm() / want[1].norm()), tolerance)
        compare(where, want, got, tolerance)

    return wrapped


def _array(values: Any) -> Any:
    return np.asarray(values.detach().double() if isinstance(values, torch.Tensor) else values, float)


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
