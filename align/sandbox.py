"""Running code that nobody has read, and comparing what came of it with what was expected.

For rewards and evals of programs; ``docs/code_reward.md`` says what a run may do.
"""

from align.core.sandbox.asserts import UnusableTest
from align.core.sandbox.checks import Called, Check, Piped, read_checks
from align.core.sandbox.matching import passes, prints
from align.core.sandbox.sandbox import CallResults, RunOutput, Sandbox, SandboxError

__all__ = [
    "CallResults",
    "Called",
    "Check",
    "Piped",
    "RunOutput",
    "Sandbox",
    "SandboxError",
    "UnusableTest",
    "passes",
    "prints",
    "read_checks",
]
