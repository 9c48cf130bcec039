"""Regular expressions in the settings of rewards."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator


def compiles(pattern: str) -> str:
    """The pattern itself. Raises ValueError where it is no regular expression."""
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"is not a regular expression: {error}") from None
    return pattern


Pattern = Annotated[str, AfterValidator(compiles)]
