"""Settings: flag over environment over file over default, and errors by the setting's name.

Uses a settings type of its own, so that the rules are held apart from the worker's settings. No
error text may show what could be a secret. Needs no service.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from keyfold.export import settings
from keyfold.export.settings import SettingsError

SECRET = "hunter2"


@dataclass(frozen=True, slots=True)
class Server:
    """One section with a setting of each type."""

    url: str  # required
    port: int = 1  # number
    wait_s: float = 0.5  # number
    loud: bool = False  # flag
    mode: Literal["", "fast", "safe"] = ""  # choice
    folder: Path | None = None  # optional
    names: tuple[str, ...] = ()  # list
    sizes: tuple[int, ...] = ()  # list of numbers
    token: str = field(default="", repr=False, metadata={"secret": True})  # never a flag
    ca_file: Path | None = None  # a setting whose own name ends so
    weights: str | tuple[str, ...] = ()  # a word or a list

    def __post_init__(self) -> None:
        if self.port < 0:
            raise ValueError(f"port: expected at least 0, got {self.port}")


@dataclass(frozen=True, slots=True)
class Extra:
    """A section without required settings."""

    depth: int = 3  # number


@dataclass(frozen=True, slots=True)
class Everything:
    """The settings of these tests."""

    server: Server  # required
    extra: Extra = field(default_factory=Extra)  # optional


def write(folder: Path, text: str) -> Path:
    file = folder / "s.toml"
    file.write_text(text)
    return file


def test_flag_beats_environment_beats_file_beats_default(tmp_path: Path) -> None:
    file = write(tmp_path, '[server]\nurl = "file"\nport = 2\nwait_s = 2\nnames = ["file"]\n')
    environment = {"KEYFOLD_SERVER__URL": "env", "KEYFOLD_SERVER__PORT": "3"}
    got = settings.read(Everything, file, environment, ["server.url=flag"])
    assert got == Everything(Server("flag", 3, 2.0, names=("file",)), Extra())
    assert isinstance(got.server.wait_s, float)


def test_text_is_converted_to_the_declared_type() -> None:
    flags = ["url=u", "port=7", "wait_s=1e-3", "loud=TRUE", "mode=safe", "folder=/x", "names=a, b",
             "sizes=1,2"]  # fmt: skip
    got = settings.read(Everything, None, {}, [f"server.{flag}" for flag in flags])
    assert got.server == Server("u", 7, 0.001, True, "safe", Path("/x"), ("a", "b"), (1, 2))


def test_value_of_a_flag_may_hold_equals_signs() -> None:
    assert settings.read(Everything, None, {}, ["server.url=a=b=c"]).server.url == "a=b=c"


def test_secret_is_read_from_the_file_that_the_environment_names(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(f"{SECRET}\n")
    got = settings.read(Everything, None, {"KEYFOLD_SERVER__URL_FILE": str(tmp_path / "secret")})
    assert got.server.url == SECRET


def test_any_setting_may_be_taken_from_a_file_wherever_it_is_given(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(f"{SECRET}\n")
    path = tmp_path / "secret"
    file = write(tmp_path, f'[server]\nurl = "u"\ntoken_file = "{path}"\n')
    assert settings.read(Everything, file, {}).server.token == SECRET
    got = settings.read(Everything, None, {}, ["server.url=u", f"server.token_file={path}"])
    assert got.server.token == SECRET
    got = settings.read(Everything, file, {"KEYFOLD_SERVER__TOKEN": "environment wins"})
    assert got.server.token == "environment wins"


def test_a_setting_whose_own_name_ends_in_file_is_a_path(tmp_path: Path) -> None:
    environment = {"KEYFOLD_SERVER__URL": "u", "KEYFOLD_SERVER__CA_FILE": str(tmp_path / "ca")}
    assert settings.read(Everything, None, environment).server.ca_file == tmp_path / "ca"


def test_a_secret_as_a_flag_is_refused_because_ps_shows_it() -> None:
    with pytest.raises(SettingsError) as caught:
        settings.read(Everything, None, {}, ["server.url=u", f"server.token={SECRET}"])
    assert str(caught.value) == (
        "--set server.token: everybody on this machine can see a flag (ps); give "
        "server.token_file, or an environment variable"
    )


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "the file it names is not readable: No such file or directory"),
        (b"", "expected text in the file it names, got an empty one"),
        (b"\r\n\n", "expected text in the file it names, got an empty one"),
        (b"\xff\xfe", "the file it names is not readable: expected a file of UTF-8 text"),
    ],
)
def test_a_secret_file_of_no_use_is_one_line_that_names_the_setting(
    tmp_path: Path, content: bytes | None, why: str
) -> None:
    path = tmp_path / SECRET  # some write the secret itself there
    if content is not None:
        path.write_bytes(content)
    file = write(tmp_path, f'[server]\nurl = "u"\ntoken_file = "{path}"\n')
    with pytest.raises(SettingsError) as caught:
        settings.read(Everything, file, {})
    assert str(caught.value) == f"{file}: server.token_file: {why}"


def test_of_a_secret_file_only_the_last_line_break_is_no_part_of_the_secret(
    tmp_path: Path,
) -> None:
    path = tmp_path / "token"
    for end in ("", "\n", "\r\n"):
        path.write_bytes(f" {SECRET} {end}".encode())
        got = settings.read(Everything, None, {}, ["server.url=u", f"server.token_file={path}"])
        assert got.server.token == f" {SECRET} "


def test_a_secret_given_twice_in_one_place_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path, f'[server]\nurl = "u"\ntoken = "{SECRET}"\ntoken_file = "/x"\n')
    with pytest.raises(SettingsError, match=r"server\.token_file: expected server\.token or this"):
        settings.read(Everything, file, {})


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ('["walk=5", "a,b=2"]', ("walk=5", "a,b=2")),
        ("[walk=5, run=2]", ("walk=5", "run=2")),  # a shell has taken the quotes
        ("balanced", "balanced"),
        ("[walk]=5", "[walk]=5"),
    ],
)
def test_a_list_as_in_the_file_is_a_list_where_a_flag_could_be_a_text_too(
    text: str, read: str | tuple[str, ...]
) -> None:
    given = settings.read(Everything, None, {}, ["server.url=u", f"server.weights={text}"])
    assert given.server.weights == read


def test_variables_of_others_are_not_read() -> None:
    environment = {
        "KEYFOLD_SERVER__URL": "u", "KEYFOLD_BUNDLE": "x", "OTHER_SERVER__PORT": "x",
        "KEYFOLD_TRAIN_SERVER__PORT": "x",
    }  # fmt: skip
    assert settings.read(Everything, None, environment).server == Server("u")


URL = '[server]\nurl = "u"\n'
ERRORS = {
    "required": ("", [], "server.url is required and has no default"),
    "unknown section": (URL + "[serve]\nx = 1\n", [], "unknown section [serve]; expected one of"),
    "unknown setting": (URL + "prot = 1\n", [], "unknown setting server.prot; expected one of"),
    "unknown in a flag": (URL, ["server.prot=1"], "--set server.prot: unknown setting server.prot"),
    "not a section": ("url = 1\n", [], "expected sections only, got the setting 'url'"),
    "not TOML": ("[server\n", [], "not valid TOML"),
    "not a number": (URL + 'port = "1"\n', [], "server.port: expected int, got text"),
    "a flag as number": (URL + "port = true\n", [], "server.port: expected int, got bool"),
    "a fraction": (URL + "port = 1.5\n", [], "server.port: expected int, got float 1.5"),
    "bad choice": (URL + 'mode = "slow"\n', [], "server.mode: expected one of '', 'fast', 'safe'"),
    "not a list": (URL + 'names = "a"\n', [], "server.names: expected a list, got str"),
    "bad item": (URL + 'sizes = [1, "2"]\n', [], "server.sizes: expected int, got text"),
    "bad flag text": (URL, ["server.loud=maybe"], "--set server.loud: server.loud: expected bool"),
    "bad number text": (URL, ["server.port=x"], "server.port: expected int, got text"),
    "contradiction": (URL + "port = -1\n", [], "server.port: expected at least 0, got -1"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_wrong_setting_is_refused_by_name(case: str, tmp_path: Path) -> None:
    text, flags, message = ERRORS[case]
    with pytest.raises(SettingsError, match=re.escape(message)):
        settings.read(Everything, write(tmp_path, text), {}, flags)


def test_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"none\.toml: not readable: No such file"):
        settings.read(Everything, tmp_path / "none.toml", {})


def test_wrong_environment_variable_is_named() -> None:
    environment = {"KEYFOLD_SERVER__URL": "u", "KEYFOLD_SERVER__PORT": "x"}
    with pytest.raises(SettingsError, match=r"KEYFOLD_SERVER__PORT: server\.port: expected int"):
        settings.read(Everything, None, environment)
    environment = {"KEYFOLD_SERVER__URL": "u", "KEYFOLD_SERVER__PROT": "1"}
    with pytest.raises(SettingsError, match=r"KEYFOLD_SERVER__PROT: unknown setting server\.prot"):
        settings.read(Everything, None, environment)


def test_unknown_section_in_the_environment_names_the_variable() -> None:
    environment = {"KEYFOLD_SERVER__URL": "u", "KEYFOLD_SERVE__PORT": "1"}
    with pytest.raises(SettingsError, match=r"KEYFOLD_SERVE__PORT.*unknown section \[serve\]"):
        settings.read(Everything, None, environment)


@pytest.mark.parametrize(
    ("toml", "environment", "flags"),
    [
        (f'[server]\nurl = ["{SECRET}"]\n', {}, []),
        (f'[server]\nurl = {{ a = "{SECRET}" }}\n', {}, []),
        (f'[server]\nurl = "u"\nport = "{SECRET}"\n', {}, []),
        (f'[server]\nurl = "{SECRET}\n', {}, []),
        (f'[server]\nurl = "{SECRET}"\nurl = "{SECRET}"\n', {}, []),
        (URL, {"KEYFOLD_SERVER__PORT": SECRET}, []),
        (URL, {"KEYFOLD_SERVER__PORT_FILE": f"/nowhere/{SECRET}"}, []),
        (URL, {}, [f"server.port={SECRET}"]),
        (URL, {}, [f"serverurl={SECRET}"]),
        (URL, {}, [f"server.={SECRET}"]),
        (URL, {}, [f"server.ulr={SECRET}"]),
    ],
)
def test_error_text_never_shows_a_value_that_may_be_secret(
    toml: str, environment: dict[str, str], flags: list[str], tmp_path: Path
) -> None:
    with pytest.raises(SettingsError) as caught:
        settings.read(Everything, write(tmp_path, toml), environment, flags)
    assert SECRET not in str(caught.value)
