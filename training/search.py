"""A search over stated ranges of settings, judged on the validation part alone.

Owns the trials: which settings come next (Optuna's TPE, Bergstra et al. 2011), when a trial is not
worth its passes, what is remembered of each, and that a search that was killed goes on. The test
part is never looked at. Called by search_cli.py.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras

from keyfold.export.errors import Crash
from keyfold.training.checkpoint import data_sha256, plain
from keyfold.training.config import Config
from keyfold.training.fit import Watch
from keyfold.training.search_ranges import Range, with_values
from keyfold.training.train import Study, fitted

try:
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend
except ImportError as error:
    raise Crash("search: expected the package optuna: pip install 'keyfold[search]'") from error

JOURNAL = "trials.log"  # in the search's folder
MADE_OF, REFUSED, SECONDS, PASS = "made_of", "refused", "seconds", "pass"  # noted of a study, trial
PATIENT = 5  # trials and passes that are never cut short


class SearchError(Crash):
    """A search cannot be gone on with."""


@dataclass(frozen=True, slots=True)
class Task:
    """What is searched."""

    file: Path  # the config
    flags: tuple[str, ...]  # of --set
    ranges: tuple[Range, ...]  # what is tried
    config: Config  # as file and flags give it
    seed: int = 0  # of the trials' settings; that of the weights is fit.seed

    def made_of(self, study: Study) -> dict[str, Any]:
        """Return what makes two searches comparable."""
        ranges = {item.name: repr(item) for item in self.ranges}
        parts = (study.parts["train"], study.parts["validation"])
        events = {"the events": data_sha256(parts), "the search's seed": self.seed}
        return plain({**self.config.record(), "range of": ranges, **events})


@dataclass(frozen=True, slots=True)
class Trial:
    """One set of settings and what became of it."""

    number: int  # from 0, in the order of the search
    values: Mapping[str, str]  # by setting's name, as --set takes them
    loss: float | None  # the best validation loss; None: cut short, or refused
    best_pass: int  # from 1
    seconds: float  # it took
    why: str = ""  # it has no loss


class Search:
    """A search in a folder of its own."""

    def __init__(self, task: Task, study: Study, folder: Path) -> None:
        """Begin a search, or take up what the folder holds. Raises SearchError: another search."""
        self._task, self._data = task, study
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        folder.mkdir(parents=True, exist_ok=True)
        storage = JournalStorage(JournalFileBackend(str(folder / JOURNAL)))
        self._study = optuna.create_study(
            storage=storage,
            study_name="keyfold",
            load_if_exists=True,
            pruner=optuna.pruners.MedianPruner(PATIENT, PATIENT),
        )
        self._compare(folder)

    def run(self, trials: int) -> Iterator[Trial]:
        """Make trials until there are so many, and yield each."""
        while (number := len(self.trials)) < trials:
            # A seed for each: a search that was killed goes on as one that was not.
            self._study.sampler = optuna.samplers.TPESampler(seed=self._task.seed + number)
            yield self._try_next()

    @property
    def trials(self) -> list[Trial]:
        """Those that came to an end, the best first."""
        found = [_read(item, self._task.ranges) for item in self._study.get_trials(deepcopy=False)]
        ended = [trial for trial in found if trial is not None]
        return sorted(ended, key=lambda t: (t.loss is None, t.loss or 0.0, t.number))

    def best(self) -> tuple[Trial, Config]:
        """Return the best trial and its settings. Raises SearchError: none has a loss."""
        first = next(iter(self.trials), None)
        if first is None or first.loss is None:
            why = first.why if first is not None else "none was made"
            raise SearchError(f"search: expected a trial that trains, got none: {why}")
        return first, with_values(self._task.file, self._task.flags, first.values)

    def _compare(self, folder: Path) -> None:
        mine = self._task.made_of(self._data)
        before = self._study.user_attrs.get(MADE_OF)
        if before is None:
            self._study.set_user_attr(MADE_OF, json.dumps(mine))
            self._begin_with_the_config()
            return
        began = json.loads(before)
        for name in [*began, *mine]:
            if began.get(name) != mine.get(name):
                raise SearchError(
                    f"{folder}: {name}: expected {began.get(name)}, as the search began, got "
                    f"{mine.get(name)}: give another --out, or remove that folder"
                )
        for trial in self._study.get_trials(states=(optuna.trial.TrialState.RUNNING,)):
            # Its program was killed: it is made again.
            self._study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
            self._study.enqueue_trial(trial.params)

    def _begin_with_the_config(self) -> None:
        """See that the first trial is the config as it is, where the ranges hold its values."""
        own = {}
        for item in self._task.ranges:
            section, _, setting = item.name.partition(".")
            value = item.holds(getattr(getattr(self._task.config, section), setting))
            if value is not None:
                own[item.name] = value
        self._study.enqueue_trial(own)

    def _try_next(self) -> Trial:
        trial, began = self._study.ask(), time.monotonic()
        states = optuna.trial.TrialState
        loss, state = None, states.FAIL
        try:
            loss = self._fitted(trial)
            state = states.COMPLETE
        except optuna.TrialPruned:
            state = states.PRUNED
        except Crash as error:  # settings that make no network, or none that learns
            trial.set_user_attr(REFUSED, str(error))
        trial.set_user_attr(SECONDS, round(time.monotonic() - began, 1))
        self._study.tell(trial, loss, state=state)
        ended = self._study.get_trials(deepcopy=False)[trial.number]
        read = _read(ended, self._task.ranges)
        if read is None:
            raise SearchError(f"search: expected trial {trial.number} to have ended, got {ended}")
        return read

    def _fitted(self, trial: Any) -> float:
        """Return the best validation loss with a trial's settings."""
        values = {item.name: item.text(_drawn(trial, item)) for item in self._task.ranges}
        config = with_values(self._task.file, self._task.flags, values)

        def report(number: int, _: float, validation_loss: float, is_best: bool) -> None:
            trial.report(validation_loss, number)
            if is_best:
                trial.set_user_attr(PASS, number)
            if trial.should_prune():
                raise optuna.TrialPruned

        keras.backend.clear_session()  # else every trial's graphs stay in memory
        return min(fitted(self._data, config, Watch(report)).validation_loss)


def _drawn(trial: Any, item: Range) -> float | str:
    if item.choices:
        return str(trial.suggest_categorical(item.name, item.choices))
    if item.whole:
        return int(trial.suggest_int(item.name, int(item.least), int(item.most), log=item.log))
    return float(trial.suggest_float(item.name, item.least, item.most, log=item.log))


def _read(trial: Any, ranges: tuple[Range, ...]) -> Trial | None:
    """Return a trial of the library as one of ours; None: it has not ended, or was killed."""
    states, noted = optuna.trial.TrialState, trial.user_attrs
    why = {states.COMPLETE: "", states.PRUNED: "cut short: others were better by then"}
    if trial.state not in why and REFUSED not in noted:
        return None
    by_name = {item.name: item for item in ranges}
    values = {name: by_name[name].text(value) for name, value in trial.params.items()}
    done = trial.state == states.COMPLETE
    return Trial(
        trial.number,
        values,
        trial.value if done else None,
        noted.get(PASS, 0),
        noted.get(SECONDS, 0.0),
        why.get(trial.state, noted.get(REFUSED, "")),
    )
