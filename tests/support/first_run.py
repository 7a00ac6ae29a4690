"""A worker.toml on disk and the commands of a first day on it, run as a person would.

Owns writing the file and catching status and lines. Imported as `from first_run import FirstRun`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from live_worker import Serving

from keyfold.worker import cli


class FirstRun:
    """keyfold-worker's commands around one worker.toml."""

    def __init__(self, serving: Serving, capsys: pytest.CaptureFixture[str]) -> None:
        self.serving, self._capsys = serving, capsys
        self.file = serving.folder / "worker.toml"
        self.settings: dict[str, dict[str, Any]] = {
            "kafka": {
                "brokers": serving.kafka.address, "input": serving.input,
                "output": serving.output, "group": serving.group, "request_timeout_s": 10.0,
            },
            "redis": {"url": serving.valkey.url},
            "worker": {"bundle": str(serving.bundle.path), "start": "earliest"},
        }  # fmt: skip
        self.write()

    def write(self) -> Path:
        """Write the settings as they are now."""
        lines = []
        for section, settings in self.settings.items():
            lines.append(f"[{section}]")
            lines += [f"{name} = {json.dumps(value)}" for name, value in settings.items()]
        self.file.write_text("\n".join(lines) + "\n")
        return self.file

    def run(self, *words: str) -> tuple[int, list[str]]:
        """Run keyfold-worker; return the status and all lines that it printed."""
        self._capsys.readouterr()
        status = cli.main(list(words))
        said = self._capsys.readouterr()
        lines = (said.out + said.err).splitlines()
        assert "Traceback" not in said.err
        return status, lines

    def check(self, *sets: str) -> tuple[int, Report]:
        """Run `keyfold-worker check`."""
        status, lines = self.run("check", str(self.file), *(f"--set={one}" for one in sets))
        return status, Report(lines)


class Report:
    """What `keyfold-worker check` printed, findings joined to one line each."""

    def __init__(self, lines: list[str]) -> None:
        self.lines = lines
        self.findings: list[tuple[str, str, str]] = []  # level, question, text
        for line in lines:
            if line.startswith(("ok ", "WARN ", "FAIL ", "skip ")):
                self.findings.append((line[:5].strip(), line[6:16].strip(), line[16:]))
            elif line.startswith(" " * 16) and self.findings:
                level, name, text = self.findings[-1]
                self.findings[-1] = (level, name, f"{text} {line.strip()}")

    def of(self, level: str, name: str = "") -> list[str]:
        """Return the texts of a level, of one question if it is named."""
        return [t for found, q, t in self.findings if found == level and name in ("", q)]
