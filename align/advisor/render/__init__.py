"""Advice as text, JSON, Markdown, a page, SARIF and annotations: from the advice, and from nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

from align.advisor.render.source_location import BriefFile

if TYPE_CHECKING:
    from align.schemas.advice import Advice

__all__ = ["FORMATS", "Format", "BriefFile", "render"]

Format = Literal["text", "json", "markdown", "html", "sarif", "github"]
FORMATS: tuple[Format, ...] = get_args(Format)


def render(
    advice: Advice,
    format: Format = "text",
    *,
    brief: BriefFile | None = None,
    width: int | None = 100,
    colour: bool = False,
) -> str:
    """Return the advice in a format. The same advice gives the same bytes.

    brief: the file whose lines are annotated (sarif, github). width, colour: of the terminal (text); without a width no
    line is wrapped.
    """
    if format == "json":
        return advice.model_dump_json(by_alias=True, indent=1) + "\n"
    if format == "text":
        from align.advisor.render import terminal

        return terminal.render(advice, width, colour)
    if format == "markdown":
        from align.advisor.render import markdown

        return markdown.render(advice)
    if format == "html":
        from align.advisor.render import html_page

        return html_page.render(advice)
    from align.advisor.render.annotations import github, sarif

    return {"sarif": sarif, "github": github}[format](advice, brief)
