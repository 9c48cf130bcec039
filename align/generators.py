"""Parts of generators: types of tokens and log-probabilities, groups as they finish, and the end of sampling early.

The base class is ``align.Generator``, what it is given and returns ``align.Request``, ``align.ModelHandle`` and
``align.Sample``. Networks that sample or score in this process are in ``align.models``.
"""

from align.core.generation.generator_base import CompletionGroups, Floats, Interrupt, Tokens

__all__ = ["CompletionGroups", "Floats", "Interrupt", "Tokens"]
