"""Parts of generators: the types of tokens and log-probabilities, and the exception that ends sampling early.

The base class is ``align.Generator``, what it is given and returns ``align.Request``, ``align.ModelHandle`` and
``align.Sample``. Networks that sample or score in this process are in ``align.models``.
"""

from align.core.generation.generator_base import Floats, Interrupt, Tokens

__all__ = ["Floats", "Interrupt", "Tokens"]
