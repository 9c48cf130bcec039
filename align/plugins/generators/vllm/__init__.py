"""vLLM as generator: an engine in this process, or a server next to it or elsewhere."""

from align.plugins.generators.vllm.generator import VLLM

__all__ = ["VLLM"]
