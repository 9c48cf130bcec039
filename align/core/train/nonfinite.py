"""What is said when a loss or gradient is NaN or infinite."""

from __future__ import annotations

from collections.abc import Mapping

from align.schemas.errors import AlignError

ROWS_NAMED = 8


class NonFinite(AlignError):
    """NaN or infinity in a loss or gradient; nothing was updated."""

    def __init__(self, step: int, metrics: Mapping[str, float], rows: list[str], in_a_row: int) -> None:
        self.step, self.rows = step, rows
        more = f" and {len(rows) - ROWS_NAMED} more" if len(rows) > ROWS_NAMED else ""
        named = f"; its rows: {', '.join(rows[:ROWS_NAMED])}{more}" if rows else ""
        again = f", the {in_a_row}th such step in a row" if in_a_row > 1 else ""
        super().__init__(
            f"the loss is {metrics['loss']} and the gradient norm {metrics['grad_norm']}{again}{named}",
            "look at these rows; a lower learning rate, a warm-up or a wider dtype may help; "
            "train.on_nonfinite: skip leaves such steps out and counts them",
            where=f"step {step}",
        )
