"""The manifest: what a bundle promises, as JSON, and the id that follows from it.

Owns its form, its versions, the id (the hash of everything that decides a prediction) and the
refusal of what contradicts itself. It knows no file and no runtime; the folder around it is
bundle.py's. Imports numpy and the standard library only. Imported through bundle.py.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from keyfold.export import answers
from keyfold.export.anomaly import Back
from keyfold.export.columns import check_targets
from keyfold.export.decode_graph import DecodeGraph
from keyfold.export.errors import BundleError, SpecError
from keyfold.export.events import EventSpec, OutputSpec
from keyfold.export.features import FeatureSpec
from keyfold.export.front import Front
from keyfold.export.likelihood import Surprise
from keyfold.export.states import DTYPES, OWN_PREFIXES, StateSpec

FORMAT = "keyfold-bundle"
VERSION = "1.3"  # same major: readable
THIRD_VERSION = "1.2"  # of a manifest that needs nothing of 1.3, with text: likewise
SECOND_VERSION = "1.1"  # of a manifest without text: likewise
FIRST_VERSION = "1.0"  # of a manifest that needs nothing newer: its id stays what it was
STEP, GOLDEN = "step.onnx", "golden.npz"
ID_LENGTH = 16  # hex digits of SHA-256
MAX_STATE_BYTES = 64 * 1024  # of one key; a larger one makes every save slow
TOLERANCE = 1e-5  # times max(1, RMS of the golden output): float32 noise across CPU kinds


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a bundle promises. All but `golden_sha256` and `provenance` decides its id."""

    events: EventSpec  # record -> event
    features: FeatureSpec  # event -> x, F = number of columns
    outputs: OutputSpec  # y -> prediction, O = number of names
    states: tuple[StateSpec, ...]  # the graph's tensors of a key's state
    step_sha256: str  # of step.onnx
    min_rows: int = 1  # smallest B at which a row's result is the same as at any other
    max_steps: int = 512  # largest T of one call
    tolerance: float = TOLERANCE  # of golden sequences and offline comparisons
    golden_sha256: str = ""  # of golden.npz
    provenance: Mapping[str, Any] = field(default_factory=dict)  # who, when, from what
    decode: DecodeGraph | None = None  # the graph that answers what was read; None: step does

    @property
    def id(self) -> str:
        """The bundle's id: SHA-256 over the canonical JSON of the semantic part."""
        return hash_of(self._semantic())

    @property
    def kept(self) -> tuple[StateSpec, ...]:
        """All tensors of a key's state, in storage order: the graph's, then what is around it."""
        front, back = Front.of(self.features), Back.of(self.outputs)
        surprise, keeper = Surprise.of(self.outputs), answers.keeper_of(self.outputs)
        # What each event begins anew is the event's, not the key's.
        anew = self.decode is not None and self.decode.anew
        return (
            *(() if anew else self.states),
            *(front.states if front is not None else ()),
            *(back.states if back is not None else ()),
            *(surprise.states if surprise is not None else ()),
            *(keeper.states if keeper is not None else ()),
        )

    @property
    def width(self) -> int:
        """How many columns the step graph's y has."""
        return len(self.outputs.names) if self.decode is None else self.decode.width

    @property
    def state_bytes(self) -> int:
        """Bytes of one key's tensors."""
        return sum(state.bytes_per_key for state in self.kept)

    @property
    def version(self) -> str:
        """The oldest version whose readers understand this manifest."""
        first = (
            self.features.is_plain
            and self.events.is_first_version
            and self.outputs.forecast is None
        )
        if self._is_newest:
            return VERSION
        if self.features.text is not None:
            return THIRD_VERSION
        return FIRST_VERSION if first else SECOND_VERSION

    @property
    def _is_newest(self) -> bool:
        """Whether it uses what only readers of VERSION understand."""
        outputs = self.outputs
        return (
            not outputs.is_straight
            or outputs.kind == "transcription"
            or outputs.top > 0
            or outputs.likelihood is not None
            or outputs.generate is not None
            or self.features.inner is not None
            or bool(self.events.end_field)
        )

    @property
    def collects_after_ms(self) -> int | None:
        """How long a key may be silent until its state need not be kept; None: for ever.

        Its next event would reset it anyway; but then a session still has to be answered.
        """
        return None if self.outputs.answers == "session" else self.events.reset_after_ms

    def _semantic(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "version": self.version,
            "events": self.events.to_json(),
            "features": self.features.to_json(),
            "outputs": self.outputs.to_json(),
            "states": [state.to_json() for state in self.states],
            "step": {
                "file": STEP,
                "sha256": self.step_sha256,
                "min_rows": self.min_rows,
                "max_steps": self.max_steps,
            },
            "tolerance": self.tolerance,
            **({} if self.decode is None else {"decode": self.decode.to_json()}),
        }

    def to_json(self) -> dict[str, Any]:
        """Return the manifest file's content."""
        return {
            "id": self.id,
            **self._semantic(),
            "golden": {"file": GOLDEN, "sha256": self.golden_sha256},
            "provenance": dict(self.provenance),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Manifest:
        """Read a manifest file's content. Raises BundleError naming the member that is wrong."""
        _check_version(data)
        try:
            step, decode = data["step"], data.get("decode")
            manifest = cls(
                events=EventSpec.from_json(data["events"]),
                features=FeatureSpec.from_json(data["features"]),
                outputs=OutputSpec.from_json(data["outputs"]),
                states=tuple(map(StateSpec.from_json, data["states"])),
                step_sha256=step["sha256"],
                min_rows=step["min_rows"],
                max_steps=step["max_steps"],
                tolerance=data["tolerance"],
                golden_sha256=data["golden"]["sha256"],
                provenance=data["provenance"],
                decode=None if decode is None else DecodeGraph.from_json(decode),
            )
        except KeyError as error:
            raise BundleError(f"manifest: expected member {error}, got none") from error
        except (TypeError, AttributeError, SpecError) as error:
            raise BundleError(f"manifest: {error}") from error
        _check_numbers(manifest)
        manifest.check()
        _check_targets(manifest)
        return manifest

    def check(self) -> None:
        """Refuse what cannot be served. Raises BundleError."""
        _check_states(self)
        _check_text(self)
        _check_answers(self)


def _check_version(data: Mapping[str, Any]) -> None:
    if data.get("format") != FORMAT:
        raise BundleError(f"manifest: expected format {FORMAT!r}, got {data.get('format')!r}")
    major = str(data.get("version", "")).partition(".")[0]
    if major != VERSION.partition(".")[0]:
        raise BundleError(
            f"manifest: expected version {VERSION.partition('.')[0]}.x, got {data.get('version')!r}"
        )


def _check_numbers(manifest: Manifest) -> None:
    for name in ("min_rows", "max_steps"):
        value = getattr(manifest, name)
        if not isinstance(value, int) or value < 1:
            raise BundleError(f"manifest: step.{name}: expected at least 1, got {value!r}")
    tolerance = manifest.tolerance
    if not isinstance(tolerance, int | float) or not 0 <= tolerance < math.inf:
        raise BundleError(f"manifest: tolerance: expected at least 0, got {tolerance!r}")


def _check_targets(manifest: Manifest) -> None:
    try:
        check_targets(manifest.features, manifest.outputs.targets)
        answers.check(manifest.outputs, manifest.events, manifest.features.unrolled)
    except SpecError as error:
        raise BundleError(f"manifest: {error}") from error


def _check_text(manifest: Manifest) -> None:
    """Refuse what has no meaning yet for events of several steps."""
    _check_likelihood(manifest)
    if manifest.features.text is None:
        return
    if manifest.outputs.forecast is not None and manifest.features.unrolled is not None:
        raise BundleError("manifest: outputs: expected no forecast with features.text, got one")
    if manifest.outputs.kind == "transcription" and manifest.features.unrolled is not None:
        raise BundleError("manifest: outputs: expected no transcription with features.text")
    if manifest.events.format == "packed":
        raise BundleError("manifest: events.codec: expected no 'packed' with features.text")


def _check_likelihood(manifest: Manifest) -> None:
    text = manifest.features.text
    if manifest.outputs.likelihood is None:
        return
    if text is None or manifest.outputs.names != text.names:
        raise BundleError(
            "manifest: outputs.likelihood: expected features.text and its symbols as "
            f"outputs.names, got {'other names' if text is not None else 'no text'}: only a model "
            "of next symbols says how likely a text is"
        )
    if not manifest.outputs.is_straight or manifest.decode is not None:
        raise BundleError(
            "manifest: outputs.likelihood: expected one prediction for each text, about itself, "
            "got other answers"
        )


def _check_answers(manifest: Manifest) -> None:
    """Refuse answers by symbols where there are none, and a decode graph that cannot begin."""
    outputs, text, decode = manifest.outputs, manifest.features.unrolled, manifest.decode
    if (outputs.target is not None) != (decode is not None):
        raise BundleError("manifest: expected outputs.target and decode together, or neither")
    if outputs.generate is None:
        return
    if text is None or (decode is None and text.names != outputs.names):
        raise BundleError(
            "manifest: outputs.generate: expected features.text, a step for each symbol, whose "
            "symbols are the outputs"
        )
    if decode is not None:
        decode.check(manifest.states, len(outputs.names))


def _check_states(manifest: Manifest) -> None:
    for state in manifest.states:
        if state.dtype not in DTYPES:
            raise BundleError(
                f"manifest: state {state.input!r}: expected dtype {', '.join(DTYPES)}, "
                f"got {state.dtype!r}"
            )
    names = [state.input for state in manifest.states] + [s.output for s in manifest.states]
    if len(set(names)) != len(names) or {"x", "lengths", "y"} & set(names):
        raise BundleError(f"manifest: states: expected distinct names, got {names}")
    for name in names:
        if name.startswith(OWN_PREFIXES):
            raise BundleError(
                f"manifest: state {name!r}: expected a name that does not begin with "
                f"{' or '.join(OWN_PREFIXES)} (keyfold's own), rename it"
            )
    size = max(manifest.state_bytes, sum(state.bytes_per_key for state in manifest.states))
    if size > MAX_STATE_BYTES:
        raise BundleError(
            f"manifest: states: expected at most {MAX_STATE_BYTES} bytes a key, "
            f"got {size}; use fewer units or a shorter window"
        )


def hash_of(content: Mapping[str, Any]) -> str:
    """Return the id that follows from the semantic part of a manifest file's content."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:ID_LENGTH]
