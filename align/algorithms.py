"""Parts of losses on given data: sequences of tokens, the preference loss, and the metrics that TRL logs.

The base classes are ``align.Algorithm`` and ``align.Online``; what algorithms need that learn from rewards is in
``align.rl``. T scored tokens, B sequences, E examples of one micro-batch. Importing this loads PyTorch.
"""

from align.core.algorithm.contract import logistic, preference_metrics, token_metrics
from align.core.data.examples import TokenSequence

__all__ = ["TokenSequence", "logistic", "preference_metrics", "token_metrics"]
