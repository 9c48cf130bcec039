"""Add the pages outside docs/ to the site, and make links and code blocks mean there what they mean on a code host.

An MkDocs hook (mkdocs.yml names it). Files keep their places in the repository, so that links work in both: in the
site docs/ is the root, and CONTRIBUTING.md and recipes/ stand beside its pages.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mkdocs.structure.files import File

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")
TITLED_FENCE = re.compile(r"^```(\w+) (\S+)$", re.MULTILINE)
"""A fence with a file name: "```yaml run.yaml", which Python-Markdown would not take for a fence."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages and the recipes."""
    outside = [ROOT / name for name in PAGES] + sorted((ROOT / "recipes").iterdir())
    for path in outside:
        files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Return a page's text with its links resolved from the site's root and with file names as titles of code."""
    outward = "](docs/" if page.file.src_uri in PAGES else "](../"
    return TITLED_FENCE.sub(r'```\1 title="\2"', markdown.replace(outward, "]("))
