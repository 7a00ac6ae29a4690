"""Which members of a JSON object are read, and nothing else of it is built.

Owns paths: "temp" is a member of the event; "readings.temp" is the event's own member of that name
or, without one, the member "temp" of its member "readings". A member that is absent, or whose
parent is no object, reads as None. Called by decode.py and
whoever reads a label or key.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Union

import msgspec
from msgspec import UNSET

NUMBER: Any = float  # a member that must be a number or null
SCALAR: Any = str | int | float | bool  # a member that must not be an array or object
_ANY = SCALAR | list[msgspec.Raw]  # what may stand where an object is looked for


@dataclass(slots=True)
class _Node:
    """An object of the event, as far as it is looked into."""

    leaves: dict[str, Any] = field(default_factory=dict)  # member -> type of its value
    parents: dict[str, _Node] = field(default_factory=dict)  # member -> the object it may be
    names: list[str] = field(default_factory=list)  # of its members; number i is attribute "c<i>"

    def attribute(self, name: str) -> str:
        """Return the attribute of a member, which it then has."""
        if name not in self.names:
            self.names.append(name)
        return f"c{self.names.index(name)}"

    def build(self) -> Any:
        """Return the class whose attributes are the members."""
        members = []
        for number, name in enumerate(self.names):
            kinds = [self.leaves[name]] if name in self.leaves else []
            if name in self.parents:
                kinds += [self.parents[name].build(), _ANY]
            # Absent differs from null only where a nested member may stand in.
            default = UNSET if "." in name else None
            kinds += [msgspec.UnsetType] if "." in name else []
            members.append((f"c{number}", Union[(*kinds, None)], default))
        rename = {f"c{number}": name for number, name in enumerate(self.names)}
        return msgspec.defstruct("Row", members, rename=rename)


class Members:
    """Reads the members at `paths`, each NUMBER or SCALAR, from many events at once."""

    def __init__(self, paths: Mapping[str, Any]) -> None:
        root = _Node()
        self._routes = [_route(root, path, kind) for path, kind in paths.items()]
        self.row: Any = root.build()  # the class to decode an event into; row() has no members

    def columns(self, rows: Sequence[Any]) -> list[Sequence[Any]]:
        """Return the values of N rows, path by path."""
        if not rows:
            return [()] * len(self._routes)
        every = list(zip(*map(msgspec.structs.astuple, rows), strict=True))
        return [list(_nested(every, *route)) if route[1] else every[route[0]]
                for route in self._routes]  # fmt: skip


def _route(root: _Node, path: str, kind: Any) -> tuple[int, tuple[str, ...]]:
    """Add a path; return the number of its own member and where else the value may be."""
    own = int(root.attribute(path)[1:])
    root.leaves[path] = kind
    *parents, last = path.split(".")
    node, steps = root, []
    for name in parents:
        steps.append(node.attribute(name))
        node = node.parents.setdefault(name, _Node())
    if not parents:
        return own, ()
    node.leaves.setdefault(last, kind)
    return own, (*steps, node.attribute(last))


def _nested(every: Sequence[Sequence[Any]], own: int, steps: tuple[str, ...]) -> Iterator[Any]:
    first, *others = steps
    parents: Iterable[Any] = every[int(first[1:])]
    for value, parent in zip(every[own], parents, strict=True):
        if value is not UNSET:
            yield value
            continue
        for step in others:
            parent = getattr(parent, step, None)
        yield None if parent is UNSET else parent
