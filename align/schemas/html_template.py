"""Templates -> self-contained HTML in which no value is interpreted as markup.

Text of models, data and users is hostile. So the template escapes every value (jinja2's autoescape; only
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
    """Render a template with values; it also receives ``style`` and its ``style_hash``.

    Templates in its directory and in the style sheet's can be included.
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
    # Text that got past the escaping could still not style, script, load or send anything.
    style_hash = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return environment.get_template(template.name).render(style=style, style_hash=style_hash, **values)
