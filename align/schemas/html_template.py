"""Templates -> self-contained HTML in which no value is interpreted as markup.

Text of models, data and users is hostile. So the template escapes every value (jinja2's autoescape; only our own style
sheet and script are exempt), unseen characters are made visible, and the page's own policy forbids everything but the
one style sheet and the one script whose hashes it names. Data for the script is JSON that cannot end its element.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from align.schemas.text import visible


def html(template: Path, style_sheet: Path, script: Path | None = None, **values: Any) -> str:
    """Render a template with values; it also receives ``style`` and ``script`` with ``style_hash`` and ``script_hash``.

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
    if script is not None:
        code = script.read_text(encoding="utf-8")
        values |= {"script": code, "script_hash": _hash(code)}
    # Text that got past the escaping could still not style, script, load or send anything.
    return environment.get_template(template.name).render(style=style, style_hash=_hash(style), **values)


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def json_data(values: Any) -> Markup:
    """Return values as JSON for a ``<script type="application/json">``: with every string's unseen characters as signs.

    Characters that could end the element, or begin markup in it, are written as their escapes. Raises ValueError for a
    number that is not finite.
    """
    text = json.dumps(_visible(values), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


def _visible(value: Any) -> Any:
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, Mapping):
        return {visible(str(key)): _visible(each) for key, each in value.items()}
    return [_visible(each) for each in value] if isinstance(value, list | tuple) else value
