"""How an event log in a file is written: the flags, else what the bundle's training log was like.

Owns the flags for it, common to the commands that read files. A bundle's provenance says how the
CSV files it was trained on were written, so that the same files can be sent and scored as they are.
Called by cli.py, worker/score/cli.py and worker/score/labels.py.
"""

from __future__ import annotations

import argparse

from keyfold.export.bundle import Bundle
from keyfold.export.tables import TableForm

PROVENANCE = "table"  # member of a bundle's provenance; keyfold-export writes it


def add_form_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say how CSV files are written."""
    add, default = parser.add_argument, "default: as the bundle's training log, else"
    add("--csv-separator", metavar="C", help=f"between the cells of CSV ({default} a comma)")
    add("--csv-decimal", metavar="C", choices=(".", ","), help=f"decimal sign of CSV ({default} .)")
    add("--csv-encoding", metavar="NAME", help=f"of CSV ({default} utf-8)")
    add("--null", action="append", metavar="WORD",
        help="CSV cells that hold this are empty (more than one --null may be given)")  # fmt: skip


def form_of(given: argparse.Namespace, bundle: Bundle | None) -> TableForm:
    """Return how CSV files are written. Raises TableError: contradictory or impossible flags."""
    said = {} if bundle is None else bundle.manifest.provenance.get(PROVENANCE) or {}
    known = TableForm.from_json(said)
    return TableForm(
        given.csv_separator or known.separator,
        given.csv_decimal or known.decimal,
        given.csv_encoding or known.encoding,
        known.missing | set(given.null or ()),
        _text(bundle),
    )


def _text(bundle: Bundle | None) -> str:
    """Return the column of the events' texts; "": they are no texts."""
    text = None if bundle is None else bundle.manifest.features.text
    return "" if text is None else text.field
