"""The kinds of things plugins offer. A new kind is one line here and one hook in hookspecs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of plugin.

    name: what messages call it. hook: where it registers. base: ``module:Class`` its classes derive from (imported
    only when one is used), None while any class will do. functions: whether a bare function serves as well.
    configured: whether run files choose it and give it settings.
    """

    name: str
    hook: str
    base: str | None = None
    functions: bool = False
    configured: bool = True


KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("algorithm", "register_algorithms", base="align.core.algorithm.base:Algorithm"),
        Kind("reward", "register_rewards", base="align.core.rewards.base:Reward", functions=True),
        Kind("generator", "register_generators", base="align.core.generation.base:Generator"),
        Kind("format", "register_formats", base="align.core.data.formats:Format"),
        Kind("eval", "register_evals"),
        Kind("strategy", "register_strategies", base="align.core.engine.strategy:Strategy"),
        Kind("logger", "register_loggers", base="align.core.engine.logger:Logger"),
        Kind("rule", "register_rules", functions=True),
        Kind("command", "register_commands", configured=False),
    )
}
