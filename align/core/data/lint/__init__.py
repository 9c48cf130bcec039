"""Checks of data that can be read: what is doubtful about it, and what it comes to. Loads no torch."""

from align.core.data.lint.finding import LintFinding
from align.core.data.lint.linter import Linter, Looking, lint
from align.core.data.lint.measure import Measured, measure
from align.core.data.lint.overlap import Suite, read_suite

__all__ = ["LintFinding", "Linter", "Looking", "Measured", "Suite", "lint", "measure", "read_suite"]
