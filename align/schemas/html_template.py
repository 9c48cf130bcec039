"""Templates to self-contained HTML in which nothing that a value says is obeyed.

Everything that models, data and users say is hostile. So the template escapes every value (jinja2's autoescape; only
our own style sheet is exempt), unseen characters are made visible, there is no script, and the page's own policy
forbids everything but the one style sheet whose hash it names.
"""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from align.schemas.text import visible


def html(template: Path, style_sheet: Path, **values: Any) -> str:
    """The page that a template makes of values; it is also given ``style`` and its ``style_hash``.

    Templates beside it and beside the style sheet can be included.
    """
    style = style_sheet.read_text(encoding="utf-8")
    environment = Environment(
        loader=FileSystemLoader([template.parent, style_sheet.parent]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value,
    )
    # Whoever got text past the escaping could still not style, script, load or send anything.
    style_hash = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return environment.get_template(template.name).render(style=style, style_hash=style_hash, **values)
