"""`make native-fuzz`: hostile bytes for the native module, each case beside its twin in Python.

Owns how inputs are made and spoiled, from a seed. tests/worker/native/test_fuzz.py runs some; the
command builds the module with the address and undefined-behaviour sanitizers into a temporary
folder and runs many: make native-fuzz N=1000000 SEED=1.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from zlib import crc32

import numpy as np
from aiokafka.record.util import calc_crc32c
from native_twins import (
    Numbers,
    Predictions,
    Section,
    Written,
    cut_python,
    exact,
    outcome,
    pack_native,
    pack_python,
    parse_native,
    parse_python,
    read_back,
    record,
)

from keyfold.export.events import OutputSpec
from keyfold.worker import native

REPOSITORY = Path(__file__).resolve().parents[2]
FLAGS = (
    "-std=c++17", "-O1", "-g", "-fPIC", "-shared", "-fno-omit-frame-pointer",
    "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-D_GLIBCXX_ASSERTIONS",
)  # fmt: skip
NAMES = ("a", "temp", "a-long-name-of-a-member", "time", "%")
NUMBERS = Numbers(NAMES)
# What breaks JSON, varints and lengths most.
BYTES = b'{}[]":,.eE+-0123456789 \t\n\\/\x00\x01\x02\x1f\x7f\x80\xc2\xed\xff'
TOKENS = [
    b"0", b"-0", b"-0.0", b"00", b"01", b"-", b"1.", b".5", b"1e5", b"1E+5", b"1e-5", b"1e", b"1e+",
    b"1e400", b"-1e400", b"1e-400", b"5e-324", b"2.4e-324", b"1.7976931348623157e308",
    b"1.7976931348623159e308", b"9007199254740993", b"9007199254740993.0", b"999999999999999999",
    b"9999999999999999999", b"18446744073709551616.5", b"0.1", b"1e22", b"1e23", b"1e000005",
    b"0." + b"0" * 70 + b"1", b"1" + b"0" * 70, b"null", b"true", b"false", b"NaN", b"Infinity",
    b'"1"', b'""', b"[]", b"{}", b"[1,2,[3]]", b'{"a":1,"b":[{}]}', b"[" * 20 + b"]" * 20, b"[1,]",
    b'{"a"}', b'"\xc3\xa9"', b'"\\n"', b'"\\u0041"', b'"' + b"x" * 40 + b'"', b'"\x7f"', b"tru",
    b"[1", b'{"a":1', b'"\x01"', b'"\\"', b'"\\""', b'"\\q"', b'"\xff"',
    b'"\xc2\xb0C and so on"', "\"é€😀\"".encode(), b'"\\ud83d\\ude00"', b'"\\ud83d"', b'"\\ude00"',
    b'"\\u12g4"', b'"\\/\\b\\f\\r\\t\\\\"', b"\\u", b"\\", b'"\\ud83d\\u0041"',
    b'"' + b"x" * 30 + b'\x1f"',
]  # fmt: skip
OUTPUTS = [
    OutputSpec("regression", ("y",)),
    OutputSpec("regression", ("load", "100%", 'a "b"')),
    OutputSpec("classification", ("walk", "run", "sit")),
]
PREDICTIONS = [(outputs, Predictions(outputs, "b" * 12, "events")) for outputs in OUTPUTS]


def spoiled(rng: random.Random, data: bytes) -> bytes:
    """Change some bytes, cut some out, double some, or cut the end off."""
    out = bytearray(data)
    for _ in range(rng.choice((0, 1, 1, 1, 2, 5))):
        at = rng.randrange(len(out) + 1)
        match rng.randrange(6):
            case 0:
                out[at : at + 1] = rng.randbytes(1)
            case 1:
                out[at : at + 1] = bytes([rng.choice(BYTES)])
            case 2:
                del out[at : at + rng.choice((1, 1, 2, 9))]
            case 3:
                out[at:at] = out[at : at + rng.choice((1, 2, 9, 40))]
            case 4:
                del out[at:]
            case _:
                out[at:at] = rng.choice(TOKENS)
    return bytes(out)


def fuzz_records(rng: random.Random) -> None:
    """Read a batch that is whole, spoiled, or was never one."""
    rows = [_random_record(rng, delta) for delta in range(rng.randrange(5))]
    data = b"".join(rows) if rng.random() < 0.95 else rng.randbytes(rng.randrange(60))
    section = Section(
        spoiled(rng, data), max(len(rows) + rng.choice((0, 0, 0, 0, 1, -1)), 0),
        rng.choice((0, 7, 2**63 - 3, -(2**63))), rng.choice((0, 1_700_000_000_000, 2**63 - 1)),
        rng.choice((-1, 5)), rng.choice((0, 8, -(2**63))),
    )  # fmt: skip
    got, expected = outcome(parse_native, section), outcome(parse_python, section)
    assert got == expected, f"{section}: expected {expected}, got {got}"


def _random_record(rng: random.Random, delta: int) -> bytes:
    texts = [None, b"", b"key", rng.randbytes(rng.choice((1, 63, 64, 200)))]
    names = [b"", b"name", "ä€😀".encode(), b"\xed\xa0\x80", b"\xc0\x80", b"\xf4\x90\x80\x80"]
    headers = [(rng.choice(names[: rng.choice((3, 3, 6))]), rng.choice(texts)) for _ in range(2)]
    time_delta = rng.choice((0, 1, -1, 2**62, -(2**63), rng.randrange(10**6)))
    delta = rng.choice((delta, delta, delta, 2**31, -5, 2**63 - 1))
    count = rng.choice((0, 0, 1, 2))
    return record(delta, rng.choice(texts), rng.choice(texts), time_delta, headers[:count])


def fuzz_cut(rng: random.Random) -> None:
    """Cut parts, some of which are none."""
    data = rng.randbytes(rng.choice((0, 1, 50)))
    edges = (0, 1, 25, 49, 50, 51, -1, -2, 2**31 - 1, -(2**31))
    at, lengths = ([rng.choice(edges) for _ in range(2)] for _ in range(2))
    try:
        expected = cut_python(data, at, lengths)
    except ValueError as error:
        expected = [str(error).encode()]
    try:
        got = native.cut(exact(data), np.array(at, np.int32), np.array(lengths, np.int32))
    except ValueError as error:
        got = [str(error).encode()]
    assert got == expected, f"{at}, {lengths}: expected {expected}, got {got}"


def fuzz_numbers(rng: random.Random) -> None:
    """Read a few events, most of them spoiled."""
    values = [_random_event(rng) for _ in range(rng.randrange(1, 4))]
    NUMBERS.check([spoiled(rng, v) if rng.random() < 0.5 else v for v in values])


def _random_event(rng: random.Random) -> bytes:
    members = [(name.encode(), _random_number(rng)) for name in NAMES]
    others = rng.choice((0, 0, 1, 3))
    members += [
        (rng.choice((b"other", b"b", b"", b"\\u0061", "é".encode())), rng.choice(TOKENS))
        for _ in range(others)
    ]
    if rng.random() < 0.5:
        rng.shuffle(members)
    space = rng.choice((b"", b"", b" ", b"\n\t "))
    colon, comma = b":" + space, b"," + space
    return b"{" + comma.join(b'"%b"%b%b' % (name, colon, text) for name, text in members) + b"}"


def _random_number(rng: random.Random) -> bytes:
    kind = rng.random()
    if kind < 0.03:
        return rng.choice(TOKENS)
    if kind < 0.5:
        return repr(round(rng.gauss(0, 100), rng.randrange(12))).encode()
    sign = rng.choice(("", "-"))
    digits = "".join(rng.choices("0123456789", k=rng.choice((1, 2, 8, 9, 16, 17, 19, 20, 30))))
    places = rng.choice(("", "." + digits[: rng.randrange(1, 20)]))
    exponent = rng.choice(("", "", f"e{rng.randrange(-330, 330)}", f"E+{rng.randrange(30)}"))
    return f"{sign}{rng.choice((str(int(digits)), '0'))}{places}{exponent}".encode()


def fuzz_predictions(rng: random.Random) -> None:
    """Write predictions of any floats."""
    outputs, predictions = rng.choice(PREDICTIONS)
    rows = rng.randrange(4)
    y = np.frombuffer(rng.randbytes(4 * rows * len(outputs.names)), np.float32)
    if rng.random() < 0.3:
        y = np.array([rng.choice((1, 0.5, -0.0)) * rng.randrange(3) for _ in y], np.float32)
    edges = (0, 1, -1, 1_700_000_000_000, 2**63 - 1, -(2**63))
    numbers = [[rng.choice(edges) for _ in range(rows)] for _ in range(3)]
    kinds = (b"k", b"~", b'"', b"\n", b"\x7f", b"\xff", "é".encode())
    keys = [rng.choice(kinds) * rng.choice((0, 1, 50, 5000)) for _ in range(rows)]
    written = Written(
        numbers[0], keys, numbers[1], numbers[2],
        y.reshape(rows, len(outputs.names)),
        rng.choice((None, [rng.random() < 0.5 for _ in range(rows)])),
    )  # fmt: skip
    got, expected = predictions.native(3, written), predictions.python(3, written)
    assert got == expected, f"{written}: expected {expected}, got {got}"


def fuzz_find(rng: random.Random) -> None:
    """Look keys up, some of which are not there."""
    data, index = b"abcabd", {b"abc": 7, b"": 8, b"abd": 0, b"ab": 2**40}
    rows = [(rng.randrange(4), rng.randrange(-1, 4)) for _ in range(rng.randrange(5))]
    keys = [None if length < 0 else data[at : at + length] for at, length in rows]
    expected = [-1 if key is None else index.get(key, -1) for key in keys]
    columns = np.array(rows, np.int32).reshape(len(rows), 2)
    slots = np.full(len(rows), -5, np.intp)
    unknown = native.find(exact(data), columns[:, 0], columns[:, 1], index, slots)
    assert slots.tolist() == expected, f"{keys}: expected {expected}, got {slots}"
    assert unknown == [row for row, slot in enumerate(expected) if slot < 0]


def fuzz_sums(rng: random.Random) -> None:
    """Sum up bytes of sizes around the steps of the instructions."""
    data = rng.randbytes(rng.choice((*range(130), 1000, 1008, 4095)))
    assert native.crc32c(exact(data)) == calc_crc32c(data)
    size = rng.choice((*range(5, 160), 523))
    sum_at, count = rng.randrange(size - 3), rng.randrange(4)
    keys = [rng.randbytes(rng.choice((0, 1, 16, 63, 64, 65, 200))) for _ in range(count)]
    rows = [rng.randbytes(size) for _ in range(count)]
    expected = [
        row[:sum_at]
        + crc32(row[sum_at + 4 :], crc32(key)).to_bytes(4, "little")
        + row[sum_at + 4 :]
        for row, key in zip(rows, keys, strict=True)
    ]
    prefix = rng.choice((b"", b":", b"long:"))
    written = native.write_states(prefix, b"".join(rows), size, sum_at, keys)
    assert read_back(written, 2 * count)[1::2] == expected
    assert read_back(written, 2 * count)[::2] == [prefix + key for key in keys]


def fuzz_pack(rng: random.Random) -> None:
    """Write messages of sizes around the steps of varints and the limit."""
    sizes = (0, 1, 55, 56, 57, 62, 63, 64, 65, 500, 8180, 8192)
    texts = [None, *(b"x" * size for size in sizes)]
    few, many = rng.randrange(4), rng.randrange(140)
    messages = [(rng.choice(texts), rng.choice(texts)) for _ in range(few)]
    messages += [(b"k", b"v")] * rng.choice((0, 0, many))
    limit = rng.choice((0, 70, 75, 80, 1000, 16_384, rng.randrange(20_000)))
    time_ms = rng.choice((0, 1_700_000_000_000, 2**63 - 1))
    got, expected = (pack(messages, time_ms, limit) for pack in (pack_native, pack_python))
    assert got == expected, f"{messages}, limit {limit}: expected {expected}, got {got}"


FUZZ: tuple[Callable[[random.Random], None], ...] = (
    fuzz_records, fuzz_records, fuzz_numbers, fuzz_numbers, fuzz_cut, fuzz_predictions, fuzz_pack,
    fuzz_find, fuzz_sums,
)  # fmt: skip


def main() -> int:
    """Build the module with sanitizers and fuzz it in a child, or be that child."""
    parser = argparse.ArgumentParser(prog="make native-fuzz")
    parser.add_argument("--cases", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--as-built", action="store_true", help="without building anything")
    arguments = parser.parse_args()
    if not arguments.as_built:
        return _with_sanitizers(arguments.cases, arguments.seed)
    if not native.available():
        print(f"no native module in {native.__path__[0]}")
        return 1
    rng, begun = random.Random(arguments.seed), time.monotonic()
    for case in range(arguments.cases):
        FUZZ[case % len(FUZZ)](rng)
    took = time.monotonic() - begun
    print(f"{arguments.cases} cases from seed {arguments.seed} in {took:.0f} s: no difference")
    return 0


def _with_sanitizers(cases: int, seed: int) -> int:
    with tempfile.TemporaryDirectory(prefix="keyfold-fuzz-") as folder:
        asan = _build(Path(folder) / "keyfold")
        environment = os.environ | {
            "LD_PRELOAD": asan,
            "ASAN_OPTIONS": "detect_leaks=0",  # the interpreter's own
            "PYTHONMALLOC": "malloc",  # its allocator would hide a look beyond an object
            "PYTHONPATH": folder,  # its keyfold goes before the installed one
        }
        command = [sys.executable, __file__, "--as-built", f"--cases={cases}", f"--seed={seed}"]
        return subprocess.run(command, check=False, env=environment).returncode


def _build(keyfold: Path) -> str:
    """Put together as much of keyfold as the fuzz needs; return the sanitizer to be preloaded."""
    package = keyfold / "worker" / "native"
    package.mkdir(parents=True)
    (keyfold / "export").symlink_to(REPOSITORY / "export")
    for name in ("__init__.py", "native/__init__.py"):
        shutil.copy(REPOSITORY / "worker" / name, keyfold / "worker" / name)
    sources = map(str, sorted((REPOSITORY / "worker" / "native").glob("*.cpp")))
    compiler = (sysconfig.get_config_var("CXX") or "g++").split()[0]
    built = package / f"_codec{sysconfig.get_config_var('EXT_SUFFIX')}"
    include = f"-I{sysconfig.get_path('include')}"
    subprocess.run([compiler, *FLAGS, include, *sources, "-o", str(built)], check=True)
    where = [compiler, "-print-file-name=libasan.so"]
    return subprocess.run(where, check=True, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
