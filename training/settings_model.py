"""The `[model]` section: which family of networks, how large, and what may not go together.

Owns its settings' names, defaults and meaning, and refuses contradictions by name. It knows nothing
of Keras. A section of config.py; families/ builds what it says.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal

CELLS = ("lstm", "gru", "simple_rnn")
ENCODERS = ("mean", "max", "convolution", "gru", "lstm", "bi_gru", "bi_lstm")
# Settings that only some families know -> those families.
OF_FAMILIES: dict[str, tuple[str, ...]] = {
    "attention": ("recurrent", "frames", "seq2seq"),
    "residual": ("recurrent", "frames"),
    "norm": ("recurrent", "frames"),
    "recurrent_dropout": ("recurrent", "frames"),
    "activation": ("recurrent", "frames"),
    "reset_after": ("recurrent", "frames"),
    "memory": ("recurrent", "frames"),
    "merge": ("bidirectional",),
    "look_ahead": ("bidirectional",),
    "heads": ("transformer",),
    "kv_heads": ("transformer",),
    "filters": ("frames",),
    "kernel": ("frames",),
    "stride": ("frames",),
    "front": ("frames",),
    "sample_rate": ("frames",),
}
# Settings that only some cells know -> those cells.
OF_CELLS: dict[str, tuple[str, ...]] = {
    "memory": ("lstm",),
    "activation": ("simple_rnn",),
    "reset_after": ("gru",),
    "recurrent_dropout": CELLS,
}


@dataclass(frozen=True, slots=True)
class Model:
    """The network."""

    cell: str = (
        "lstm"  # of every recurrent layer: lstm, gru, simple_rnn, or your "package.module:f"
    )
    units: tuple[int, ...] = (
        64,
    )  # of each recurrent layer or transformer block, from the input on
    memory: int = 0  # LSTM: events that units remember before training, spread from 1 to so many
    dense: int = 0  # units of a ReLU layer between the last recurrent layer and the head; 0: none
    dropout: float = 0.0  # after each recurrent layer, while training
    input_noise: float = 0.0  # standard deviations of noise on scaled features, while training
    # Deviation of the logarithm of a factor on all scaled features of a sequence (anew in each
    input_gain: float = 0.0  # window), while training: as loud as it happens to be
    # seq2seq: an encoder, and a decoder of two layers as wide as the last of `units`
    family: Literal["recurrent", "transformer", "bidirectional", "frames", "seq2seq"] = "recurrent"
    activation: Literal["tanh", "relu"] = "tanh"  # of simple_rnn
    reset_after: bool = True  # of gru: the reset gate is applied after the product, or before it
    recurrent_dropout: float = 0.0  # on what a recurrent layer carries, while training
    residual: bool = False  # add each recurrent layer's input to its output, from the second on
    norm: Literal["", "layer"] = ""  # layer: normalise what each recurrent layer puts out
    attention: Literal["", "additive", "multiplicative"] = ""  # over the last hidden states
    # Events that attention, transformer and bidirectional layers look back at; seq2seq: the most
    window: int = 0  # symbols of a source, its end included, to which answers attend
    # bidirectional: events of the window that lie behind the one that is described: an answer comes
    look_ahead: int = 0  # so many events later; of a stack each layer looks so far ahead
    merge: Literal["concat", "sum"] = "concat"  # bidirectional: how both directions are joined
    heads: int = 4  # transformer: heads of each block
    kv_heads: int = 0  # transformer: heads of keys and values, which are the state; 0: as many
    filters: tuple[int, ...] = (16,)  # frames: of each convolution over the columns of one event
    kernel: int = 5  # frames: columns that one filter sees
    stride: int = 2  # frames: columns from one place of a filter to the next
    # frames: "log_mel": columns are samples of sound; one number of filters, the mel bands of each
    front: Literal["", "log_mel"] = ""  # `kernel` samples; "": convolutions that are learned
    sample_rate: int = 0  # log_mel: samples a second
    # With text.width, what reads a text inside its event; several stand side by side: mean, max (of
    # the symbols' vectors), convolution, gru, lstm, bi_gru, bi_lstm (through the symbols).
    encoders: tuple[str, ...] = ("convolution",)
    encoder_units: int = 64  # of a recurrent encoder's direction; filters of a convolution's width
    encoder_widths: tuple[int, ...] = (3, 4, 5)  # convolution: symbols that a filter sees
    encoder_pool: Literal["last", "max"] = "last"  # recurrent: its last state, or over all symbols
    encoder_dropout: float = 0.0  # on symbols' vectors and on what the encoders give, in training
    embedding: int = 0  # the one feature is a whole number, looked up as a vector so long; 0: no
    tokens: int = 0  # with embedding: how many whole numbers there are, from 0 on

    def __post_init__(self) -> None:
        object.__setattr__(self, "units", tuple(self.units))  # lists, where JSON kept them
        object.__setattr__(self, "filters", tuple(self.filters))
        object.__setattr__(self, "encoders", tuple(self.encoders))
        object.__setattr__(self, "encoder_widths", tuple(self.encoder_widths))
        if not self.units or min(self.units) < 1:
            raise ValueError(f"units: expected one or more positive numbers, got {self.units}")
        if self.cell not in CELLS and ":" not in self.cell:
            raise ValueError(
                f"cell: expected one of {', '.join(CELLS)} or package.module:function, got "
                f"{self.cell!r}"
            )
        for name in ("input_noise", "input_gain"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name}: expected at least 0, got {getattr(self, name)}")
        for name in ("dropout", "recurrent_dropout", "encoder_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}: expected 0 <= {name} < 1, got {getattr(self, name)}")
        self._check_belongings()
        self._check_window()
        self._check_family()
        self._check_embedding()
        self._check_encoders()

    def _check_belongings(self) -> None:
        """Refuse a setting that the family or the cell does not know, by its name."""
        defaults: dict[str, Any] = {item.name: item.default for item in fields(self)}
        for known, what, mine in (
            (OF_FAMILIES, "family", self.family),
            (OF_CELLS, "cell", self.cell),
        ):
            for name, those in known.items():
                value = getattr(self, name)
                if value != defaults[name] and mine not in those:
                    raise ValueError(
                        f"{name}: expected {defaults[name]!r} with {what} = {mine!r}, got {value!r}"
                    )
        if self.family == "transformer" and self.cell != "lstm":
            raise ValueError(f"cell: expected none with family = 'transformer', got {self.cell!r}")

    @property
    def delay(self) -> int:
        """How many events an answer comes after the one that it describes."""
        return self.look_ahead * len(self.units)

    def _check_window(self) -> None:
        if not 0 <= self.look_ahead < max(1, self.window):
            raise ValueError(
                f"look_ahead: expected 0 to {max(0, self.window - 1)}, less than window, got "
                f"{self.look_ahead}"
            )
        wanted = bool(self.attention) or self.family in ("transformer", "bidirectional")
        attends = self.attention and self.window > 1 and self.cell in ("lstm", "gru")
        if self.family == "seq2seq" and not attends:
            raise ValueError(
                "attention, window: expected attention = 'additive' or 'multiplicative', a window "
                "of the most symbols of a source, at least 2, and cell 'lstm' or 'gru' with family "
                f"= 'seq2seq', got {self.attention!r}, {self.window} and {self.cell!r}"
            )
        why = f"attention = {self.attention!r} and family = {self.family!r}"
        if wanted and self.window < 2:
            raise ValueError(f"window: expected at least 2 events with {why}, got {self.window}")
        if not wanted and self.window:
            raise ValueError(f"window: expected 0 with {why}, got {self.window}")

    def _check_family(self) -> None:
        if (self.residual or self.family == "transformer") and len(set(self.units)) > 1:
            what = "residual" if self.residual else "family = 'transformer'"
            raise ValueError(f"units: expected equal numbers with {what}, got {self.units}")
        if self.family == "transformer":
            kept = self.kv_heads or self.heads
            if self.heads < 1 or self.units[0] % self.heads or kept < 1 or self.heads % kept:
                raise ValueError(
                    f"heads: expected units in equal heads, and heads in equal groups of kv_heads, "
                    f"got {self.units[0]} units, {self.heads} heads and {kept} kv_heads"
                )
        if self.family == "bidirectional" and self.cell not in CELLS:
            raise ValueError(
                f"cell: expected one of {', '.join(CELLS)} with family = 'bidirectional', got "
                f"{self.cell!r}"
            )
        if min(self.kernel, self.stride, *self.filters, len(self.filters)) < 1:
            raise ValueError("filters, kernel, stride: expected positive numbers")
        if bool(self.front) != (self.sample_rate > 0):
            raise ValueError(
                "sample_rate: expected samples a second with front = 'log_mel', and 0 without, got "
                f"{self.sample_rate}"
            )
        if self.front and len(self.filters) != 1:
            raise ValueError(
                f"filters: expected one number, the mel bands, with front = {self.front!r}, got "
                f"{self.filters}"
            )

    def _check_embedding(self) -> None:
        # A text's symbols are counted in training: config.py asks for tokens where there is none.
        if (self.tokens and not self.embedding) or min(self.embedding, self.tokens) < 0:
            raise ValueError(
                f"embedding: expected it and tokens positive together, or both 0, got "
                f"{self.embedding} and {self.tokens}"
            )
        varied = [name for name in ("input_noise", "input_gain") if getattr(self, name)]
        if self.tokens and (varied or self.family == "frames"):
            what = f"{varied[0]} = 0" if varied else "another family than 'frames'"
            raise ValueError(f"embedding: expected {what} with it: whole numbers are no readings")

    def _check_encoders(self) -> None:
        known = set(self.encoders) <= set(ENCODERS)
        if not self.encoders or not known or len(set(self.encoders)) < len(self.encoders):
            raise ValueError(
                f"encoders: expected some of {', '.join(ENCODERS)}, each once, got "
                f"{list(self.encoders)}"
            )
        if min(self.encoder_units, *self.encoder_widths, len(self.encoder_widths)) < 1:
            raise ValueError("encoder_units, encoder_widths: expected positive numbers")
        if len(set(self.encoder_widths)) < len(self.encoder_widths):
            raise ValueError(f"encoder_widths: expected each once, got {self.encoder_widths}")

    @property
    def reads_inside(self) -> bool:
        """Whether anything is set about what reads a text inside its event."""
        return any(
            getattr(self, item.name) != item.default
            for item in fields(self)
            if item.name.startswith("encoder")
        )
