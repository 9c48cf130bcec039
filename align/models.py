"""Networks: the policy, loading one, sampling from it and scoring with it. Importing this loads PyTorch."""

from align.core.generation.decode import Decoder
from align.core.generation.sharded import independent_passes
from align.core.inference.local_model import LocalModel
from align.core.inference.reward_network import RewardNetwork
from align.core.models.load_and_export import build_policy, plain_model
from align.core.models.policy import Policy, decoder_layers
from align.core.models.precompute import completion_logprobs

__all__ = [
    "LocalModel",
    "Policy",
    "RewardNetwork",
    "Decoder",
    "build_policy",
    "completion_logprobs",
    "independent_passes",
    "decoder_layers",
    "plain_model",
]
