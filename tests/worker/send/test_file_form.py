"""Files are read as the bundle's training log was written, unless flags say otherwise."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from keyfold.export import bundle as contract
from keyfold.export.bundle import Bundle
from keyfold.export.tables import MISSING, TableForm
from keyfold.export.text import Text
from keyfold.worker.send.file_form import PROVENANCE, add_form_flags, form_of

GERMAN = TableForm(";", ",", "latin-1", MISSING | {"---"})


def parsed(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_form_flags(parser)
    return parser.parse_args(words)


def trained_on(form: TableForm | None) -> Bundle:
    bundle = contract.load(Path("deploy/local/demo/bundle"))
    said = {} if form is None else {PROVENANCE: form.to_json()}
    return replace(bundle, manifest=replace(bundle.manifest, provenance=said))


def test_a_file_is_read_as_the_bundles_training_log_was_written() -> None:
    assert form_of(parsed(), trained_on(GERMAN)) == GERMAN


def test_flags_win_and_null_words_are_added() -> None:
    flags = parsed("--csv-separator", "|", "--csv-decimal", ".", "--null", "?", "--null", "off")
    form = form_of(flags, trained_on(GERMAN))
    assert form == TableForm("|", ".", "latin-1", MISSING | {"---", "?", "off"})


def test_the_cells_that_a_bundle_reads_as_texts_are_sent_as_texts() -> None:
    bundle = trained_on(None)
    features = replace(bundle.manifest.features, fields=(), text=Text("line"))
    bundle = replace(bundle, manifest=replace(bundle.manifest, features=features))
    assert form_of(parsed(), bundle) == TableForm(text="line")


def test_a_bundle_that_says_nothing_or_none_at_all_means_ordinary_files() -> None:
    assert form_of(parsed(), trained_on(None)) == form_of(parsed(), None) == TableForm()
