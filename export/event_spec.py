"""The event spec: how a record becomes an event, beside the feature spec.

Owns the settings and their form in the manifest; decode.py and times.py act on them. Called by
training (which makes one), bundle (manifest) and decode; imported through events.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal, get_args
from zoneinfo import ZoneInfo

from keyfold.export.errors import SpecError

Tombstone = Literal["reject", "reset"]
# A number in "ms", "s", "us" or "ns" since 1970-01-01 UTC, or text: "iso" or a strptime pattern.
TimeUnit = str
NUMERIC_UNITS = ("ms", "s", "us", "ns")
Format = Literal["json", "msgpack", "packed", "avro"]  # of a record's value; see formats.py


@dataclass(frozen=True, slots=True)
class EventSpec:
    """How a record becomes an event, beside the feature spec."""

    key_field: str | None = None  # where an event log (a file) has the key; Kafka: the record key
    time_field: str | None = None  # event time's member (a path); None: the record's timestamp
    time_unit: TimeUnit = "ms"  # unit of a number, "iso", or a strptime pattern for text
    tombstone: Tombstone = "reject"  # what a record with a null value does to its key's state
    reset_after_ms: int | None = None  # a key silent for longer starts cold again; None: never
    time_zone: str = "UTC"  # of times as text that name none themselves
    decoder: str = ""  # "package.module:function": value bytes -> mapping; "": by format
    format: Format = "json"  # of a record's value in Kafka; rows of files are JSON in any case
    avro_schema: str = ""  # format "avro": the schema's JSON text
    # Its number in the registry: records begin with a zero and these four bytes; None: with none.
    avro_id: int | None = None
    end_field: str = ""  # a member that, where it says so (end_marker.py), ends the key's history

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
        self._check_format()

    def _check_format(self) -> None:
        if self.format not in get_args(Format):
            raise SpecError(
                f"events.format: expected one of {', '.join(get_args(Format))}, got {self.format!r}"
            )
        if self.end_field and self.format == "packed":
            raise SpecError("events.end_field: expected none in packed records, which hold numbers")
        if self.decoder and self.format != "json":
            raise SpecError(f"events.format: expected 'json' with a decoder, got {self.format!r}")
        if self.format == "packed" and self.time_field and self.time_unit not in NUMERIC_UNITS:
            raise SpecError(
                "events.time_unit: expected 'ms', 's', 'us' or 'ns' with packed records, "
                f"got {self.time_unit!r}"
            )
        if self.format == "avro" and not self.avro_schema:
            raise SpecError("events.avro_schema: expected the schema with format 'avro', got none")
        for name, given in (("avro_schema", self.avro_schema), ("avro_id", self.avro_id)):
            if self.format != "avro" and given not in ("", None):
                raise SpecError(
                    f"events.{name}: expected none with format {self.format!r}, only with 'avro'"
                )
        if self.avro_id is not None and not 0 <= self.avro_id < 2**32:
            raise SpecError(
                f"events.avro_id: expected 0 to {2**32 - 1}, or none, got {self.avro_id}"
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
    def ends(self) -> bool:
        """Whether there is anything that lets a key start anew."""
        told = self.end_field != "" or self.reset_after_ms is not None
        return told or self.tombstone == "reset"

    @property
    def is_first_version(self) -> bool:
        """Whether a reader of manifest version 1.0 understands it."""
        timed = self.time_unit in ("ms", "s") and self.time_zone == "UTC"
        return timed and not self.decoder and self.format == "json"

    @property
    def of_files(self) -> EventSpec:
        """How rows of files become events: they are JSON, whatever a topic holds."""
        return replace(self, format="json", avro_schema="", avro_id=None)

    def to_json(self) -> dict[str, Any]:
        """Return the manifest's form; what is not set does not stand in it."""
        extra: dict[str, Any] = {}
        if self.reset_after_ms is not None:
            extra["reset_after_ms"] = self.reset_after_ms
        if self.time_zone != "UTC":
            extra["time_zone"] = self.time_zone
        if self.decoder:
            extra["decoder"] = self.decoder
        if self.avro_schema:
            extra["avro_schema"] = self.avro_schema
        if self.avro_id is not None:
            extra["avro_id"] = self.avro_id
        if self.end_field:
            extra["end_field"] = self.end_field
        return {
            "codec": self.format,
            "key_field": self.key_field,
            "time_field": self.time_field,
            "time_unit": self.time_unit,
            "tombstone": self.tombstone,
            **extra,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> EventSpec:
        """Read the manifest's form. Raises SpecError on a codec this version does not know."""
        if data["codec"] not in get_args(Format):
            raise SpecError(
                f"events.codec: expected one of {', '.join(get_args(Format))}, "
                f"got {data['codec']!r}"
            )
        return cls(
            key_field=data["key_field"],
            time_field=data["time_field"],
            time_unit=data["time_unit"],
            tombstone=data["tombstone"],
            reset_after_ms=data.get("reset_after_ms"),
            time_zone=data.get("time_zone", "UTC"),
            decoder=data.get("decoder", ""),
            format=data["codec"],
            avro_schema=data.get("avro_schema", ""),
            avro_id=data.get("avro_id"),
            end_field=data.get("end_field", ""),
        )
