"""The event spec: how a record becomes an event, beside the feature spec.

Owns the settings and their form in the manifest; decode.py and times.py act on them. Called by
training (which makes one), bundle (manifest) and decode; imported through events.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal
from zoneinfo import ZoneInfo

from keyfold.export.errors import SpecError

Tombstone = Literal["reject", "reset"]
# A number in "ms", "s", "us" or "ns" since 1970-01-01 UTC, or text: "iso" or a strptime pattern.
TimeUnit = str
NUMERIC_UNITS = ("ms", "s", "us", "ns")


@dataclass(frozen=True, slots=True)
class EventSpec:
    """How a record becomes an event, beside the feature spec."""

    key_field: str | None = None  # where an event log (a file) has the key; Kafka: the record key
    time_field: str | None = None  # event time's member (a path); None: the record's timestamp
    time_unit: TimeUnit = "ms"  # unit of a number, "iso", or a strptime pattern for text
    tombstone: Tombstone = "reject"  # what a record with a null value does to its key's state
    reset_after_ms: int | None = None  # a key silent for longer starts cold again; None: never
    time_zone: str = "UTC"  # of times as text that name none themselves
    decoder: str = ""  # "package.module:function": value bytes -> mapping; "": JSON

    def __post_init__(self) -> None:
        if self.time_unit not in (*NUMERIC_UNITS, "iso"):
            self._check_pattern()
        if self.tombstone not in ("reject", "reset"):
            raise SpecError(
                f"events.tombstone: expected 'reject' or 'reset', got {self.tombstone!r}"
            )
        after: object = self.reset_after_ms
        if after is not None and (isinstance(after, bool) or not isinstance(after, int)):
            raise SpecError(f"events.reset_after_ms: expected whole ms, got {after!r}")
        if isinstance(after, int) and after < 1:
            raise SpecError(f"events.reset_after_ms: expected at least 1 ms, got {after}")
        try:
            ZoneInfo(self.time_zone)
        except (ValueError, OSError, KeyError) as error:
            raise self._no_zone() from error
        module, colon, function = self.decoder.partition(":")
        if self.decoder and not (module and colon and function):
            raise SpecError(
                f"events.decoder: expected 'package.module:function', got {self.decoder!r}"
            )

    def _check_pattern(self) -> None:
        # A moment written with the pattern must be readable with it, or nothing ever is.
        problem = SpecError(
            "events.time_unit: expected 'ms', 's', 'us', 'ns', 'iso' or a pattern such as "
            f"'%d.%m.%Y %H:%M:%S', got {self.time_unit!r}"
        )
        if "%" not in self.time_unit:
            raise problem
        try:
            datetime.strptime(
                datetime(2024, 2, 3, 4, 5, 6, tzinfo=UTC).strftime(self.time_unit), self.time_unit
            )
        except (ValueError, UnicodeError) as error:
            raise problem from error

    def _no_zone(self) -> SpecError:
        return SpecError(
            "events.time_zone: expected a zone such as 'Europe/Berlin' that this machine knows "
            f"(else: pip install tzdata), got {self.time_zone!r}"
        )

    @property
    def is_first_version(self) -> bool:
        """Whether a reader of manifest version 1.0 understands it."""
        return self.time_unit in ("ms", "s") and self.time_zone == "UTC" and not self.decoder

    def to_json(self) -> dict[str, Any]:
        """Return the manifest's form; what is not set does not stand in it."""
        extra: dict[str, Any] = {}
        if self.reset_after_ms is not None:
            extra["reset_after_ms"] = self.reset_after_ms
        if self.time_zone != "UTC":
            extra["time_zone"] = self.time_zone
        if self.decoder:
            extra["decoder"] = self.decoder
        return {
            "codec": "json",
            "key_field": self.key_field,
            "time_field": self.time_field,
            "time_unit": self.time_unit,
            "tombstone": self.tombstone,
            **extra,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> EventSpec:
        """Read the manifest's form. Raises SpecError on a codec this version does not know."""
        if data["codec"] != "json":
            raise SpecError(f"events.codec: expected 'json', got {data['codec']!r}")
        return cls(
            key_field=data["key_field"],
            time_field=data["time_field"],
            time_unit=data["time_unit"],
            tombstone=data["tombstone"],
            reset_after_ms=data.get("reset_after_ms"),
            time_zone=data.get("time_zone", "UTC"),
            decoder=data.get("decoder", ""),
        )
