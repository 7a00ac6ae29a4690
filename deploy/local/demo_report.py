"""The demo's report: one HTML file without anything from elsewhere, for a person to read.

Owns the page's text and layout; the pictures are from demo_plots.py, the numbers from the summary
and the score. Called by demo.py at the end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from typing import Any

from local.demo_plots import bars, confusion, legend, losses, timeline
from local.demo_score import Score
from local.demo_summary import Summary

STYLE = """
:root { color-scheme: light }
body { margin: 0; background: #f6f8fa; color: #24292f;
       font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif }
main { max-width: 928px; margin: 0 auto; padding: 28px 16px 48px }
h1 { font-size: 26px; line-height: 1.25; margin: 0 0 6px }
h2 { font-size: 18px; margin: 0 0 4px }
p { margin: 0 0 12px; max-width: 86ch }
section p:last-child { margin-bottom: 0 }
.lead { color: #57606a; margin-bottom: 20px }
section { background: #fff; border: 1px solid #d8dee4; border-radius: 10px;
          padding: 20px 24px; margin: 0 0 18px }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(128px, 1fr)); gap: 10px;
         margin: 0 0 18px }
.tile { background: #fff; border: 1px solid #d8dee4; border-radius: 10px; padding: 12px 14px }
.tile b { display: block; font-size: 23px; line-height: 1.2; font-variant-numeric: tabular-nums }
.tile span { color: #57606a; font-size: 13px }
.good b { color: #1a7f37 } .bad b { color: #cf222e }
.verdict { border-left: 5px solid #1a7f37; } .verdict.wrong { border-left-color: #cf222e }
.pair { display: grid; gap: 18px; margin-bottom: 18px;
        grid-template-columns: repeat(auto-fit, minmax(min(380px, 100%), 1fr)) }
.pair section { margin: 0 }
.legend { margin: 0 0 10px } .class { margin-right: 16px; white-space: nowrap; font-size: 13px }
.class i { display: inline-block; width: 12px; height: 12px; border-radius: 3px;
           margin-right: 6px; vertical-align: -1px }
svg { max-width: 100%; height: auto; display: block; margin-top: 10px;
      font-family: inherit; font-variant-numeric: tabular-nums }
small { color: #57606a }
"""


@dataclass(frozen=True, slots=True)
class Page:
    """What the report is about."""

    title: str  # heading
    about: str  # what the events are
    history: Mapping[str, Any] | None  # losses by pass; None: the model was not trained here
    killed_ms: int  # when the first worker was killed, UTC epoch ms


def write_report(page: Page, summary: Summary, score: Score) -> str:
    """Return the whole page."""
    sections = [
        _verdict(summary),
        _section(
            "What was true, and what was predicted",
            "Each key's events from left to right in event time; the truth above, the prediction "
            "made at that very event below. At the line the worker was killed. The second one "
            "went on from the hidden states saved in Valkey: a model that had lost its memory "
            "would show a break here.",
            legend(score.names) + timeline(score.traces, page.killed_ms),
        ),
        '<div class="pair">' + _accuracy(summary) + _confusion(score) + "</div>",
    ]
    if page.history is not None:
        sections.append(_training(page.history))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>keyfold demo</title><style>{STYLE}</style></head><body><main>"
        f'<h1>{escape(page.title)}</h1><p class="lead">{escape(page.about)} '
        "Half way through the stream the worker that served the model was killed.</p>"
        f"{_tiles(summary)}{''.join(sections)}"
        f"<p><small>Broker: {escape(summary.broker)}. The whole demo took {summary.seconds:.0f} s. "
        f"Events/s: of the second worker on the {summary.waited:,} events that had waited, from "
        "taking over until they were predicted and saved.</small></p></main></body></html>\n"
    )


def _tiles(s: Summary) -> str:
    def tile(value: str, name: str, kind: str = "") -> str:
        return f'<div class="tile {kind}"><b>{value}</b><span>{name}</span></div>'

    def zero(count: int) -> str:
        return "bad" if count else "good"

    tiles = [
        tile(f"{s.events:,}", "events"),
        tile(f"{s.lost:,}", "lost", zero(s.lost)),
        tile(f"{s.conflicts:,}", "conflicts", zero(s.conflicts)),
        tile(f"{s.wrong_states:,}", "wrong states", zero(s.wrong_states)),
        tile(f"{s.duplicates:,}", "duplicates"),
        tile(f"{s.events_per_s:,.0f}", "events/s"),
    ]
    return f'<div class="tiles">{"".join(tiles)}</div>'


def _verdict(s: Summary) -> str:
    problems = s.problems()
    if problems:
        items = "; ".join(escape(problem) for problem in problems)
        return (
            '<section class="verdict wrong"><h2>Not as promised</h2>'
            f"<p>{items}. The worker's logs and verify.json are beside this file.</p></section>"
        )
    return (
        '<section class="verdict"><h2>As if there had been no kill</h2>'
        f"<p>Every one of the {s.events:,} events has its prediction, and every prediction is what "
        "the model says when it is run offline over the key's events in order (largest difference "
        f"{s.max_abs_difference:.2g}). So is every key's hidden state in Valkey. {_repeated(s)}"
        "</p></section>"
    )


def _repeated(s: Summary) -> str:
    if not s.duplicates:
        return "The kill happened to hit right after a save: nothing had to be repeated."
    return (
        f"{s.duplicates:,} predictions had been put out but not saved when the worker was killed; "
        "the second worker put them out again under the same id and with the same value, so that "
        "a reader can tell."
    )


def _accuracy(s: Summary) -> str:
    values = {"this model": s.accuracy}
    if s.accuracy_nonrecurrent is not None:
        values["without memory"] = s.accuracy_nonrecurrent
    values["majority"] = s.accuracy_majority
    text = "Share of events with the right label, counted from the streamed predictions. "
    if s.accuracy_nonrecurrent is not None:
        text += (
            "None of these keys was seen in training. A net of about the same size that sees one "
            "event at a time, and the most frequent label, are what a memory has to beat."
        )
    else:
        text += "The most frequent label is what any model has to beat."
    return _section("Accuracy", text, bars(values))


def _confusion(score: Score) -> str:
    return _section(
        "Confusions",
        "Of the events with the label on the left, the share predicted as the label above.",
        confusion(score.names, score.confusion),
    )


def _training(history: Mapping[str, Any]) -> str:
    picture = losses(history["train_loss"], history["validation_loss"], history["best_pass"])
    return _section(
        "Training",
        "The loss on the training keys and on two people held out for choosing when to stop. "
        "Neither holds the people who were served.",
        picture,
    )


def _section(title: str, text: str, picture: str) -> str:
    return f"<section><h2>{title}</h2><p>{text}</p>{picture}</section>"
