"""The member of an event that ends its key's history: events.end_field.

Owns what counts as an end: any value but null, false, 0, "" and the text "false" in any case. It is
read apart from the rest of the event, so that plain numbers keep their short path. Called by
decode.py, for training, the worker and keyfold-verify alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keyfold.export.columns import LONGEST_WORD, Rejects
from keyfold.export.formats import Format, Rows
from keyfold.export.members import SCALAR, Members

NO_END = (None, False, 0, "")


class EndMarker:
    """Reads the marker of many events at once."""

    def __init__(self, field: str, form: Format) -> None:
        self._members = Members({field: SCALAR})
        self._read = Rows(form, self._members.row, self._members.row()).read

    def read(self, values: Sequence[bytes | None], rejects: dict[int, str]) -> NDArray[np.bool_]:
        """Say of N records which end their key's history; an object or array is a reject.

        `rejects` are those known already, and are completed: a reject ends nothing.
        """
        wrong = Rejects()
        (column,) = self._members.columns(self._read(values, wrong))
        ends = np.array([_is_end(value) for value in column], np.bool_)
        for row, why in wrong.items():
            rejects.setdefault(row, why)
        ends[list(rejects)] = False
        return ends


def _is_end(value: Any) -> bool:
    # A table's text knows no booleans: pandas writes "False", which says no as false does.
    if isinstance(value, str) and len(value) <= LONGEST_WORD and value.lower() == "false":
        return False
    return value not in NO_END
