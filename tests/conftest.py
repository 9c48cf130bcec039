"""Shared fixtures. Nothing here reaches the network."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start

from pathlib import Path

import pytest
import torch
from hypothesis import settings

from tests.tiny import save_tiny

torch.set_num_threads(1)
settings.register_profile("untimed", deadline=None)  # a busy machine is no failure
settings.load_profile("untimed")


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved tiny Llama and its tokenizer (see tests/tiny.py). Shared: do not write into it."""
    return save_tiny(tmp_path_factory.mktemp("tiny") / "model")
