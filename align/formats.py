"""Parts of row formats: read one field of a row, check it, and convert conversations to one form.

The base class is ``align.Format``. Each reader raises ``RowError`` with the name of the field, which becomes a message
with file and line.
"""

from align.core.data.formats import (
    answered,
    begins,
    boolean,
    content,
    dialogue,
    join,
    judged,
    messages,
    number,
    optional_string,
    shared_prompt,
    string,
    structure,
    turns,
)
from align.core.data.rows import RowError, describe_type

__all__ = [
    "RowError",
    "describe_type",
    "answered",
    "begins",
    "boolean",
    "content",
    "dialogue",
    "join",
    "judged",
    "messages",
    "number",
    "optional_string",
    "shared_prompt",
    "string",
    "structure",
    "turns",
]
