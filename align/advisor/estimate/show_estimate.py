"""An estimate for the terminal: two bars, components, other memory plans, remedies, time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from align.advisor.estimate.stage_estimate import RankMemory, StageEstimate
from align.schemas.advice import Estimate, Fit, Range
from align.schemas.errors import Problem
from align.schemas.text import format_bytes

COLOURS = {
    "weights": "blue",
    "gathered": "bright_blue",
    "adapter": "bright_cyan",
    "gradients": "cyan",
    "optimizer": "magenta",
    "reference": "bright_black",
    "critic": "bright_magenta",
    "reward": "bright_red",
    "activations": "yellow",
    "logits": "bright_yellow",
    "kv_cache": "green",
    "vllm": "bright_green",
    "base": "white",
}
LETTERS = dict(zip(COLOURS, "WGAgORCralkvb", strict=True))
"""The letters of a bar without colours."""
WIDTH = 50
GRADIENTS_OF_ONE_MICRO_BATCH = (
    "Each column is a phase at its fullest instant. In training that is before the backward pass, which trades "
    "activations for gradients; the gradients then stay until the next step, and so during generation."
)
"""The reason why ``gradients`` can have an entry for generation and none for training: one micro-batch a step."""
VERDICTS = {"fits": "fits", "tight": "tight", "does_not_fit": "does not fit"}
STYLE = {"fits": "green", "tight": "yellow", "does_not_fit": "red"}


def show(found: StageEstimate, console: Console) -> None:
    """Print a stage."""
    for block in blocks(found, console.color_system is not None):
        console.print(block)


def show_problems(problems: Iterable[Problem], console: Console) -> None:
    """Print what a launch would report about the whole run."""
    for problem in problems:
        stops = problem.level == "error"
        lead, style = ("training would refuse it: ", "red") if stops else ("warning: ", "yellow")
        console.print(Text(f"{lead}{problem}", style=style))


def blocks(found: StageEstimate, colour: bool) -> Iterator[RenderableType]:
    """Yield the blocks printed for a stage, from top to bottom."""
    devices = f"{found.devices} x {found.device}" if found.devices > 1 else found.device
    params = f"{found.shape.params / 1e6:,.1f}M" if found.shape.params >= 1e6 else f"{found.shape.params:,}"
    yield Text.assemble(
        (f"{found.name} ({found.algorithm})", "bold"),
        f"  {params} parameters on {devices}, {format_bytes(found.capacity)} each",
    )
    yield Text(f"strategy {found.why or found.strategy}")
    scale = max([found.capacity, *(sum(parts.values()) for parts in found.phases.values())])
    longest = max((sum(parts.values()) for parts in found.phases.values()), default=0.0)
    if longest < 0.2 * scale:  # else nothing could be seen of it
        scale = longest * 1.05
    for phase, parts in found.phases.items():
        yield _bar(phase, parts, scale, found.capacity, colour)
    yield verdict(found.fit)
    if found.refused:
        yield Text(f"training would refuse it: {found.refused}", style="red")
    yield components(found, colour)
    if len(found.ranks) > 1:
        yield ranks_table(found.ranks)
    training, generation = (found.phases.get(phase, {}) for phase in ("training", "generation"))
    if generation.get("gradients") and not training.get("gradients"):
        yield Text(GRADIENTS_OF_ONE_MICRO_BATCH, style="dim")
    if len(found.plans) > 1:
        yield plans_table(found)
    if found.remedies:
        yield Group(Text("What would help, each on top of those before:", style="bold"), *_remedies(found))
    elif not found.fits:
        wanted = "acceptable to training" if found.refused else "fit: more memory, or a smaller model"
        yield Text(f"No setting makes it {wanted}.", style="red")
    if found.measured:
        yield Text(f"Measured here: {_measured(found.measured)}")
    unknown = f"not known: {found.unknown or 'the number of steps is not'}; set train.max_steps to know it"
    yield Text(f"Time: {unknown if found.work is None else time_of(found.work, found.unknown)}")
    for assumption in found.assumptions:
        yield Text(f"Assumed: {assumption.fact} ({assumption.why}; {assumption.effect})", style="dim")


def verdict(fit: Fit) -> Text:
    """Format a fit as ``fits: 17.3 GB, 62.7 GB to spare``."""
    left = (
        f"{format_bytes(-fit.short_gb * 1e9)} to spare"
        if fit.short_gb <= 0
        else f"{format_bytes(fit.short_gb * 1e9)} too much"
    )
    return Text.assemble(
        (f"{VERDICTS[fit.verdict]}: ", STYLE[fit.verdict]), f"{format_bytes(fit.total_gb * 1e9)}, {left}"
    )


def _bar(phase: str, parts: Mapping[str, float], scale: float, capacity: float, colour: bool) -> Text:
    bar, drawn, upto = Text(f"{phase:<11}"), 0, 0.0
    for name, amount in parts.items():
        upto += amount
        cells = round(upto / scale * WIDTH) - drawn
        drawn += cells
        bar.append(("█" if colour else LETTERS.get(name, "?")) * cells, COLOURS.get(name, "white"))
    limit = min(WIDTH, round(capacity / scale * WIDTH))
    bar.append("·" * max(0, limit - drawn), "bright_black")
    return bar.append(f" {format_bytes(sum(parts.values()))}")


def components(found: StageEstimate, colour: bool) -> Table:
    """Return a table of bytes by component and phase; next to them the bytes that a dry run counted."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("")
    for phase in found.phases:
        table.add_column(phase, justify="right")
        if found.counted is not None:
            table.add_column("dry run", justify="right")
    names = [name for name in COLOURS if any(name in parts for parts in found.phases.values())]
    for name in names:
        sign = Text("█ " if colour else f"{LETTERS[name]} ", COLOURS[name])
        row: list[RenderableType] = [Text.assemble(sign, name.replace("_", " "))]
        for phase, parts in found.phases.items():
            row.append(format_bytes(parts[name]) if name in parts else "")
            if found.counted is not None:
                counted = found.counted.get(phase, {})
                row.append(format_bytes(counted[name]) if name in counted else "")
        table.add_row(*row)
    total: list[RenderableType] = ["  total"]
    for phase, parts in found.phases.items():
        total.append(format_bytes(sum(parts.values())))
        if found.counted is not None:
            total.append(format_bytes(sum(found.counted.get(phase, {}).values())))
    table.add_row(*total, style="bold")
    return table


def ranks_table(ranks: Sequence[RankMemory]) -> Table:
    """Return a table of what each process takes: rank 0, then all others as a range."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    phases = list(ranks[0].phases)
    for name in ("rank", *phases, "of the host's memory"):
        table.add_column(name, justify="left" if name == "rank" else "right")
    first, others = ranks[0], ranks[1:]
    table.add_row("0", *(format_bytes(first.phases[phase]) for phase in phases), _gathered(first))
    spans = []
    for phase in phases:
        low, high = (format_bytes(bound(rank.phases[phase] for rank in others)) for bound in (min, max))
        spans.append(low if low == high else f"{low} to {high}")
    table.add_row("1" if len(others) == 1 else f"1 to {len(others)}", *spans, _gathered(others[0]))
    return table


def _gathered(rank: RankMemory) -> str:
    """Return what a process takes of its host's memory, empty for nothing."""
    why = ", while it gathers a checkpoint" if rank.rank == 0 else ""
    return f"{format_bytes(rank.host)}{why}" if rank.host else ""


def plans_table(found: StageEstimate) -> Table:
    """Return a table of memory plans and their fit."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("plan", "a device", "verdict", ""):
        table.add_column(name, justify="right" if name in ("a device", "") else "left")
    for plan in found.plans:
        by = f"{format_bytes(abs(plan.short_gb) * 1e9)} {'too much' if plan.short_gb > 0 else 'to spare'}"
        table.add_row(
            plan.strategy, format_bytes(plan.total_gb * 1e9), Text(VERDICTS[plan.verdict], STYLE[plan.verdict]), by
        )
    return table


def _remedies(found: StageEstimate) -> Iterator[Text]:
    for setting, fit in found.remedies:
        yield Text.assemble(f"  {setting:<40} ", verdict(fit))


def _measured(measured: Mapping[str, float]) -> str:
    words = []
    if "factor" in measured:
        peak, estimated = format_bytes(measured["peak"]), format_bytes(measured["estimated"])
        words.append(
            f"peak {peak} where {estimated} was estimated, so activations and logits x{measured['factor']:.2f}"
        )
    if "step_seconds" in measured:
        words.append(f"{measured['step_seconds']:.3g} s a step")
    if "hours" in measured:
        words.append(f"{hours(Range(low=measured['hours'] * 0.9, high=measured['hours'] * 1.2))} at that pace")
    return "; ".join(words)


def time_of(spent: Estimate, unknown: str = "") -> str:
    """Return the hours as a range, or the work alone where the device's speed is not known, with the reason."""
    if spent.wall_hours is None or spent.gpu_hours is None:
        flops = spent.flops.high if spent.flops is not None else 0.0
        return f"{flops:.3g} FLOP; {unknown}"
    cost = f", {_range(spent.cost)} {spent.currency}" if spent.cost is not None else ""
    return f"{hours(spent.wall_hours)}, {_range(spent.gpu_hours)} GPU-hours{cost} ({spent.basis})"


def hours(values: Range) -> str:
    """Format a range of hours in the unit that suits it: 3 to 4 s, 1.5 to 2 h, 3 to 5 days."""
    for unit, name in ((24 * 2, "days"), (1.0, "h"), (1 / 60, "min")):
        if values.high >= unit:
            each = 24.0 if name == "days" else unit
            return f"{_range(Range(low=values.low / each, high=values.high / each))} {name}"
    return f"{_range(Range(low=values.low * 3600, high=values.high * 3600))} s"


def _range(values: Range) -> str:
    return f"{values.low:.3g} to {values.high:.3g}"
