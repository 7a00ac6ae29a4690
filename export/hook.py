"""The decoder hook: a user's function that turns a record's bytes into an event.

Owns loading it by name and what becomes of its result: the event as JSON would give it, so that
everything behind it is the same for every record. Called by formats.py, by training and
keyfold-verify score (which read the label from the same JSON) and by decoder_check.py.

The function takes the record's value (bytes, never null) and returns a mapping of text to numbers,
text, booleans, null, lists and mappings. It raises ValueError for a record that is no event, or
keyfold.export.errors.Reject with a reason that is safe to show. It must depend on the bytes alone:
training, the worker and keyfold-verify each call it, and must see the same event.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

import orjson

from keyfold.export.errors import Reject, SpecError

Hook = Callable[[bytes], Mapping[str, Any]]


def load_hook(name: str) -> Hook:
    """Import "package.module:function". Raises SpecError naming the setting."""
    module, _, function = name.partition(":")
    problem = f"events.decoder: expected an importable 'package.module:function', got {name!r}"
    try:
        found: Any = importlib.import_module(module)
        for part in function.split("."):
            found = getattr(found, part)
    except Exception as error:  # the seam: an import runs code that is not ours
        raise SpecError(f"{problem}: {error}; is its folder in PYTHONPATH?") from error
    if not callable(found):
        raise SpecError(f"{problem}: a {type(found).__name__} is no function")
    hook: Hook = found
    return hook


def json_of(name: str) -> Callable[[bytes], bytes]:
    """Return the function that turns a record's value into the event's JSON; it raises Reject."""
    return as_json(load_hook(name))


def as_json(hook: Hook) -> Callable[[bytes], bytes]:
    """Wrap a hook so that it returns JSON and raises nothing but Reject."""

    def convert(value: bytes) -> bytes:
        try:
            event: Any = hook(value)
        except Reject:
            raise
        except Exception as error:
            # The seam to code that is not ours: one record must not end the worker. The message of
            # an error often quotes what it could not read, so only its kind is shown.
            raise Reject(f"the decoder hook refused it ({type(error).__name__})") from error
        if not isinstance(event, Mapping):
            raise Reject(f"the decoder hook returned {type(event).__name__}, expected a mapping")
        try:
            return orjson.dumps(
                dict(event), option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NAIVE_UTC
            )
        except (TypeError, ValueError, RecursionError) as error:
            raise Reject("the decoder hook returned what JSON cannot hold") from error

    return convert
