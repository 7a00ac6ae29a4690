"""What init found out in one object, and the sizes of model and training that it leads to.

Owns the choice of sizes, the time that they take, and the kind of a label. Called by cli.py and
toml_text.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from keyfold.export.tables import is_csv
from keyfold.training.forecast import ABOVE
from keyfold.training.init.columns import FRACTION, TEXT, WHOLE, Table
from keyfold.training.init.key import Told
from keyfold.training.init.rhythm import Rhythm
from keyfold.training.init.roles import Roles

MOST_REJECTS = 0.01  # the default of data.max_reject_share


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much model and training a log gets."""

    units: int  # of the recurrent layer
    rows: int  # sequences side by side
    window: int  # steps of a window
    stretch: int  # events that a long sequence is cut into; 0: it is not cut
    passes: int  # most passes
    patience: int  # passes without progress before it stops


@dataclass(frozen=True, slots=True)
class Found:
    """Everything that init found out."""

    table: Table  # the log
    roles: Roles  # what its columns are
    rhythm: Rhythm  # when its events come
    told: Told  # what the person said
    kind: str  # "forecast", "regression" or "classification"

    @property
    def is_csv(self) -> bool:
        """Whether the files are CSV, in which alone words may be read as missing."""
        return all(is_csv(file) for file in self.table.files)

    @property
    def wrong_words(self) -> int:
        """How many words stand where numbers should, and make rejects."""
        if self.is_csv:
            return 0
        fields = {*self.roles.numbers, self.roles.value}
        numbers = [column for name, column in self.table.columns.items() if name in fields]
        return sum(int((column.kinds == TEXT).sum()) for column in numbers)

    @property
    def reject_share(self) -> float:
        """The share of lines that are known to become rejects."""
        bad = self.rhythm.no_time + self.table.broken + self.wrong_words
        return bad / (self.table.rows + self.table.broken)


def sizes(found: Found) -> Sizes:
    """Choose sizes so that a CPU is done in minutes."""
    rows, columns = found.table.rows, len(found.roles.features)
    units = 32 if columns <= 12 else 64
    # Fewer passes over more data: the number of updates is what counts.
    passes = 40 if rows <= 50_000 else 25 if rows <= 200_000 else 10 if rows <= 500_000 else 5
    width = 32 if rows >= 20_000 else 16
    stretch = 512 if found.rhythm.longest > 1024 else 0
    return Sizes(units, width, 64, stretch, passes, max(3, passes // 5))


def minutes(found: Found) -> float:
    """Estimate how long the training takes at most, on 2 cores as of 2026."""
    chosen, rows = sizes(found), found.table.rows
    # Measured: 12 us for an event and a pass with 32 units and 12 columns; 15 s to start and save.
    passes_s = rows * chosen.passes * 12e-6 * chosen.units / 32
    return (15.0 + rows * 100e-6 + passes_s) / 60.0


def anomaly_rate(found: Found) -> float:
    """Choose the share of validation events above the threshold, so that some are."""
    rate = ABOVE / max(1, found.rhythm.validation)
    return min(0.01, max(0.001, math.ceil(rate * 1e4) / 1e4))


def kind_of_label(found_table: Table, label: str) -> str:
    """Say whether a label is a number to be predicted or a class."""
    if not label:
        return "forecast"
    column = found_table.columns[label]
    few_whole = column.share(FRACTION) == 0 and column.distinct <= 10
    if column.share(WHOLE, FRACTION) > 0.99 and not few_whole:
        return "regression"
    return "classification" if column.share(TEXT, WHOLE) > 0.5 else "regression"
