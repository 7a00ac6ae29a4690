"""Records in, events; events out, predictions: the wire formats, one codec for everybody.

Owns nothing itself: it is the one name under which training, the worker and keyfold-verify import
the event spec (event_spec.py), the decoder (decode.py), the output spec (outputs.py) and the
prediction's bytes (predictions.py), so that what was learned is what is served. The functions take
many records at once because the worker does; one record is a list of one.
"""

from keyfold.export.decode import Decoded, Decoder
from keyfold.export.event_spec import EventSpec, TimeUnit, Tombstone
from keyfold.export.nesting import MAX_NESTING
from keyfold.export.outputs import Anomaly, Dynamic, Forecast, OutputSpec
from keyfold.export.predictions import (
    MAX_KEY_BYTES,
    Caused,
    PredictionEncoder,
    key_fragment,
    why_no_key,
)
from keyfold.export.times import MAX_TIME_MS

__all__ = [
    "MAX_KEY_BYTES",
    "MAX_NESTING",
    "MAX_TIME_MS",
    "Anomaly",
    "Caused",
    "Decoded",
    "Decoder",
    "Dynamic",
    "EventSpec",
    "Forecast",
    "OutputSpec",
    "PredictionEncoder",
    "TimeUnit",
    "Tombstone",
    "key_fragment",
    "why_no_key",
]
