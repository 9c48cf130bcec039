"""Where a model's files are: a local directory, or a hub id fetched into the hub's cache.

What is loaded is safetensors; pickles are refused, and code that came with the weights runs only if the run file
says so.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import SafetensorError
from transformers.utils import logging

from align.schemas.errors import AlignError
from align.schemas.run import Model

FETCHED = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt", "*.tiktoken"]
"""Files of a hub repository that are fetched: no pickles, and no code unless it is trusted."""

LOADING_FAULTS = (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError)
"""What transformers and peft raise about files that they cannot load."""


def resolve_model_path(path: str, revision: str | None = None, trust_remote_code: bool = False) -> Path:
    """The local directory of a model: the path itself, or the hub's snapshot of an id, fetched if need be.

    Raises AlignError when there is no such directory, the id is unknown or closed, or the network cannot be reached.
    """
    where, local = f"model.path: {path}", Path(path).expanduser()
    if local.is_dir():
        if revision is not None:
            raise AlignError("is a local directory, which has no revisions", "leave model.revision out", where=where)
        return local.absolute()
    if local.exists():
        raise AlignError("is a file", "give the directory with config.json and *.safetensors", where=where)
    if path.startswith((".", "/", "~")) or path.count("/") > 1:
        raise AlignError("does not exist", "give a directory, or a hub id such as owner/name", where=where)
    wanted = [*FETCHED, "*.py"] if trust_remote_code else FETCHED
    try:
        return Path(snapshot_download(path, revision=revision, allow_patterns=wanted))
    except (HFValidationError, HfHubHTTPError, OSError) as error:
        raise AlignError(*_why(error, revision), where=where) from error


def _why(error: Exception, revision: str | None) -> tuple[str, str]:
    match error:
        case GatedRepoError():
            return "is gated on the hub", "ask for access on its page, then `hf auth login`"
        case RepositoryNotFoundError():
            return "is neither a local directory nor a model on the hub", "check the spelling; private: `hf auth login`"
        case RevisionNotFoundError():
            return f"has no revision {revision!r} on the hub", "give a branch, tag or commit that exists"
        case HFValidationError():
            return "is neither a local directory nor a possible hub id", "a hub id looks like owner/name"
        case LocalEntryNotFoundError():
            return (
                "is not a local directory, and the hub cannot be reached (offline, or HF_HUB_OFFLINE is set)",
                "give a local directory, or fetch it while online: `hf download ID`",
            )
        case _:
            return f"cannot be fetched: {first_line(error)}", "try again, or give a local directory"


def refuse_pickles(directory: Path) -> None:
    """Raise AlignError unless a directory holds a config and safetensors."""
    where = str(directory)
    if not (directory / "config.json").is_file():
        raise AlignError("holds no config.json", "give the directory that save_pretrained wrote", where=where)
    if any(directory.glob("*.safetensors")):
        return
    pickled = sorted(p.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for p in directory.glob(pattern))
    if not pickled:
        raise AlignError("holds no *.safetensors", "give a directory with weights", where=where)
    raise AlignError(
        f"holds its weights only as {pickled[0]}, a pickle: loading one can run code, so align never does",
        "convert it where you trust it: load it with transformers and call save_pretrained",
        where=where,
    )


def trust(model: Model) -> dict[str, bool]:
    """What to tell transformers about code beside the weights.

    Always explicit, for left unset it asks on the terminal. Trusted code may live in yet another repository.
    """
    return {"trust_remote_code": model.trust_remote_code, "local_files_only": not model.trust_remote_code}


def not_loadable(error: Exception, directory: Path, what: str) -> AlignError:
    """A loading fault in the user's terms."""
    where = str(directory)
    if "trust_remote_code" in str(error):
        return AlignError(
            f"the {what} needs code that came with it",
            "read that code; if you trust it, set model.trust_remote_code: true",
            where=where,
        )
    return AlignError(f"the {what} cannot be loaded: {first_line(error)}", where=where)


def first_line(error: Exception) -> str:
    """The first line that an error's message has, or its type."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


@contextmanager
def quiet() -> Iterator[None]:
    """Neither transformers' bars nor its report of missing weights, which are judged and told here."""
    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


class Origin(NamedTuple):
    """Where a model can be had: a path, or a hub id and its revision."""

    path: str
    revision: str | None = None


def is_adapter(directory: Path) -> bool:
    """Whether a directory holds an adapter and not a whole model."""
    return (directory / "adapter_config.json").is_file()


def base_of(directory: Path) -> Origin:
    """The base model that an adapter's directory names."""
    try:
        config = json.loads((directory / "adapter_config.json").read_text(encoding="utf-8"))
        base, revision = config.get("base_model_name_or_path"), config.get("revision")
    except (ValueError, AttributeError) as error:
        raise AlignError(f"adapter_config.json cannot be read: {error}", where=str(directory)) from error
    if not base:
        raise AlignError(
            "the adapter does not say which model it belongs to",
            "set base_model_name_or_path in its adapter_config.json",
            where=str(directory),
        )
    near = directory / base  # a relative path is relative to the adapter; an absolute one is itself
    return Origin(str(near)) if near.is_dir() else Origin(base, revision)
