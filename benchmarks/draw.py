"""Draw results/side_by_side as docs/images/speed.svg: a bar for each algorithm and model, TRL's default = 1.

    python benchmarks/draw.py [RESULTS_DIRECTORY] [SVG]

Prints the table of docs/speed.md too.

The picture has its own background, light or dark as the reader's system is, so that it can be read on any page. It
loads nothing. The line across the end of a bar is the interval of the median (see README.md).
"""

from __future__ import annotations

import json
import sys
from html import escape
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from figures import RESULTS, Figure, ratios, read

IMAGE = Path(__file__).parents[1] / "docs" / "images" / "speed.svg"
NAMES = {
    "sft": "SFT",
    "reward_model": "Reward model",
    "dpo": "DPO",
    "kto": "KTO",
    "rloo": "RLOO",
    "grpo": "GRPO",
    "grpo-long": "GRPO, prompts of 470 tokens",
}
"""Algorithms in the order of the picture."""
MODELS = {"0.85m": "0.85M parameters, vocabulary 512", "42m": "42M parameters, vocabulary 32,000"}
LEFT, SCALE, ROW, HEAD, WIDTH = 224, 430, 30, 92, 760
STYLE = """
text { font: 13px system-ui, -apple-system, "Segoe UI", sans-serif; fill: #1f2733 }
.paper { fill: #fbfcfe; stroke: #d5dbe3 }
.title { font-size: 16px; font-weight: 600 }
.small { font-size: 12px; fill: #55606e }
.model { font-weight: 600 }
.align { fill: #2467d1 }
.best { fill: #a9b3c0 }
.one { stroke: #55606e; stroke-dasharray: 3 3 }
.interval { stroke: #1f2733; stroke-width: 1.5 }
@media (prefers-color-scheme: dark) {
  text { fill: #e4e9f0 }
  .paper { fill: #151a21; stroke: #313a46 }
  .small { fill: #a3adba }
  .align { fill: #5c9bff }
  .best { fill: #56616f }
  .one { stroke: #a3adba }
  .interval { stroke: #e4e9f0 }
}
"""


class Bar(NamedTuple):
    """One comparison, TRL's default = 1. best: TRL's best setting, None where the default is it."""

    name: str
    value: float
    low: float
    high: float
    best: float | None


def bars_of(directory: Path) -> dict[str, list[Bar]]:
    """Return the bars of each model in the order of the picture; comparisons that were not made are left out."""
    found: dict[str, list[Bar]] = {}
    for model in MODELS:
        for algorithm, name in NAMES.items():
            path = directory / f"{algorithm}-{model}.json"
            if path.exists():
                figures, rest = read(path)
                ours = figures["processor time, of trl padded"]
                sides = rest["details"]["sides"]
                best = None
                if "trl best" in sides:
                    best = median(ratios(sides["trl best"]["per_step"], sides["trl padded"]["per_step"]))
                found.setdefault(model, []).append(Bar(name, ours.value, ours.low, ours.high, best))
    return found


def svg(bars: dict[str, list[Bar]], footer: str) -> str:
    """Return the picture."""
    parts, y = list[str](), HEAD
    for model, group in bars.items():
        parts.append(_text(24, y + 14, MODELS[model], "model"))
        y += 26
        for bar in group:
            parts += _row(bar, y)
            y += ROW
        y += 12
    one = LEFT + SCALE
    parts.append(f'<line class="one" x1="{one}" x2="{one}" y1="{HEAD - 8}" y2="{y - 8}"/>')
    height = y + 32
    said = ", ".join(f"{bar.name} {bar.value:.2f}" for group in bars.values() for bar in group)
    size = f'viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}"'
    head = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-labelledby="title description">',
        '<title id="title">Processor time of a training step, align beside TRL</title>',
        f'<desc id="description">{escape(said)}; TRL\'s default is 1.</desc>',
        f"<style>{STYLE}</style>",
        f'<rect class="paper" x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1}" rx="8"/>',
        _text(24, 34, "Processor time of a training step", "title"),
        _box("align", 24, 50, 12, 12),
        _text(42, 61, "align", "small"),
        _box("best", 92, 50, 12, 12),
        _text(110, 61, "TRL, best setting", "small"),
        _text(one, HEAD - 16, "TRL, default = 1", "small", "middle"),
    ]
    return "\n".join([*head, *parts, _text(24, height - 14, footer, "small"), "</svg>"]) + "\n"


def _row(bar: Bar, y: int) -> list[str]:
    ends = f'x1="{LEFT + _wide(bar.low)}" x2="{LEFT + _wide(bar.high)}"'
    parts = [
        _text(LEFT - 10, y + 14, bar.name, "", "end"),
        _box("align", LEFT, y + 1, _wide(bar.value), 13),
        f'<line class="interval" {ends} y1="{y + 7.5}" y2="{y + 7.5}"/>',
        _text(WIDTH - 24, y + 12, f"{bar.value:.2f}", "", "end"),
    ]
    if bar.best is not None:
        parts.append(_box("best", LEFT, y + 16, _wide(bar.best), 5))
    return parts


def _box(style: str, x: float, y: float, width: float, height: float) -> str:
    return f'<rect class="{style}" x="{x}" y="{y}" width="{width}" height="{height}" rx="2"/>'


def _wide(share: float) -> float:
    return round(min(share, 1.04) * SCALE, 1)


def _text(x: float, y: float, words: str, style: str, anchor: str = "start") -> str:
    return f'<text class="{style}" x="{x}" y="{y}" text-anchor="{anchor}">{escape(words)}</text>'


def footer(directory: Path) -> str:
    """Return the line under the picture: when, with what and on what it was measured."""
    contents = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(directory.glob("*.json"))]
    dates = sorted({content["date"] for content in contents})
    last: dict[str, Any] = contents[-1]
    used, machine = last["versions"], last["machine"]
    shape = f"one core of {machine['processor']} ({machine['vectors']}), float32"
    return f"{dates[-1]}; TRL {used['trl']}, torch {used['torch'].partition('+')[0]}; {shape}; same rows"


def table(directory: Path) -> list[str]:
    """Return the lines of a Markdown table of all comparisons."""
    lines = [
        "| model | algorithm | of TRL's default | of its best | CPU s a step | memory, of default; best | roofline |",
        "|---|---|---|---|---|---|---|",
    ]
    for model in MODELS:
        for algorithm in (*NAMES, "ppo"):
            path = directory / f"{algorithm}-{model}.json"
            if not path.exists():
                continue
            figures, _ = read(path)
            cells = [model.upper(), NAMES.get(algorithm, "PPO")]
            cells += [_cell(figures.get(f"processor time, of trl {setting}"), True) for setting in ("padded", "best")]
            cells.append(_cell(figures["align: seconds a step"]))
            memory = (figures.get(f"peak memory, of trl {setting}") for setting in ("padded", "best"))
            cells.append("; ".join(_cell(each) for each in memory if each) or "–")
            cells.append(_cell(figures.get("align: share of the roofline")))
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def _cell(figure: Figure | None, interval: bool = False) -> str:
    if figure is None:
        return "–"
    return f"{figure.value:.2f}" + (f" ({figure.low:.2f} to {figure.high:.2f})" if interval else "")


def main() -> None:
    """Draw."""
    directory = Path(sys.argv[1]) if len(sys.argv) > 1 else RESULTS / "side_by_side"
    image = Path(sys.argv[2]) if len(sys.argv) > 2 else IMAGE
    print("\n".join(table(directory)))
    image.write_text(svg(bars_of(directory), footer(directory)), encoding="utf-8")


if __name__ == "__main__":
    main()
