"""One schedule from its beginning to its verdict, in real time.

Owns the order: workers up, traffic and faults beside each other, everything healed, the operator's
command after a HALT, W at the log's end, workers stopped, the oracle. Faults themselves are in
faults.py, what they act on in stage.py. Used by __main__.py and the tests.
"""

from __future__ import annotations

import random
import re
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path

import redis
from confluent_kafka import KafkaException

from campaign import oracle
from campaign.archive import Archive
from campaign.bundles import Bundles
from campaign.faults import STRIKES
from campaign.kinds import KINDS, REBUILD, RESTORE, Outcome
from campaign.measure import read_arrived, read_emitted, recoveries
from campaign.result import Result
from campaign.scene import Scene
from campaign.schedule import Fault, Schedule
from campaign.sender import Sender
from campaign.services import Services
from campaign.stage import Stage
from campaign.traffic import chunks
from campaign.workers import PROGRAM, Ended, Workers

TICK_S = 0.03
START_S = 45.0  # until every partition has an owner
HEAL_S = 40.0  # from the healing of all faults until W is at the log's end
STRIKE_S = 15.0  # until a fault that others hold up has struck
HALT_S = 25.0  # from a fault until its HALT
CURE_AFTER_S = 2.0  # how long a HALT that may or may not come is looked at before it is cured
EX_USAGE, EX_CRASH = 2, 70  # the worker's exit statuses
COMMAND = "keyfold-state"


class Unexpected(Exception):
    """A schedule went otherwise than stated."""


def run_schedule(
    schedule: Schedule,
    services: Services,
    bundles: Bundles,
    folder: Path,
    program: Path = PROGRAM,
    env: Mapping[str, str] | None = None,
) -> Result:
    """Carry out a schedule and judge it. Never raises for what workers do."""
    folder.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    result = Result(schedule)
    scene = Scene(schedule, services, bundles, folder)
    workers = Workers(folder, scene.settings(), schedule.workers, program, env)
    plan = list(chunks(schedule.traffic, schedule.seed))
    plain = schedule.traffic.aborted is None
    sender = Sender(scene.kafka.address, scene.input, plan, schedule.duration_s, plain)
    stage = Stage(scene, workers, sender, Archive(), random.Random(f"stage {schedule.seed}"))
    try:
        Playing(stage, result).play()
    except Exception as error:  # noqa: BLE001 - the seam: one schedule must not end the others
        result.problems.append(f"{type(error).__name__}: {error}")
        result.outcome = "failed"
        (folder / "traceback.txt").write_text(traceback.format_exc())
    finally:
        workers.kill()
        _heal_or_renew(stage, services, result)
        with suppress(Exception):
            sender.finish()
        result.struck = [strike.kind for strike in stage.strikes]
        result.notes += [*stage.notes, *(f"{COMMAND} {c}" for c in stage.operated)]
        result.seconds = time.monotonic() - begun
        if result.good:
            scene.close()
    return result


def _heal_or_renew(stage: Stage, services: Services, result: Result) -> None:
    try:
        stage.heal()
    except Exception as error:  # noqa: BLE001 - the seam: services in ruins must not end the others
        result.problems.append(f"not healed: {type(error).__name__}: {str(error)[:200]}")
        result.outcome = "failed"
        services.renew(result.schedule.store)


class Playing:
    """One schedule under way."""

    def __init__(self, stage: Stage, result: Result) -> None:
        self._stage, self._result = stage, result
        self._scene, self._workers = stage.scene, stage.workers
        self._schedule = result.schedule
        self._snapshots: list[Path] = []  # files of the first attempt that succeeded
        self._tries = 0
        self._cured = False

    def play(self) -> None:
        """Carry the schedule out. Raises Unexpected and whatever the services raise."""
        stage, schedule = self._stage, self._schedule
        self._workers.fill()
        self._until(self._all_owned, START_S, "every partition to have an owner")
        stage.sender.start()
        begun = time.monotonic()
        if schedule.cure == RESTORE:
            damage_s = min(f.at_s for f in schedule.faults if KINDS[f.kind].cures)
            stage.later(damage_s / 2, self._take_snapshots, heals=False)
        timed = [fault for fault in schedule.faults if not KINDS[fault.kind].last]
        while timed or time.monotonic() < begun + schedule.duration_s:
            if timed and time.monotonic() >= begun + timed[0].at_s:
                fault = timed.pop(0)
                stage.attempt(partial(STRIKES[fault.kind], stage, fault))
            self._tick()
        for fault in schedule.faults:
            if KINDS[fault.kind].last:
                if KINDS[fault.kind].at_rest:
                    self._rest(check=KINDS[fault.kind].starts_over)
                # Another fault may keep the service away for a while yet.
                self._until(partial(self._struck, fault), STRIKE_S, f"{fault.kind} to strike")
        self._heal()
        self._judge()

    def _struck(self, fault: Fault) -> bool:
        STRIKES[fault.kind](self._stage, fault)
        return True

    # -- time --------------------------------------------------------------------------------------

    def _tick(self) -> None:
        self._stage.run_due()
        for ended in self._workers.supervise():
            self._note_end(ended)
        time.sleep(TICK_S)

    def _until(self, reached: Callable[[], bool], limit_s: float, what: str) -> None:
        deadline = time.monotonic() + limit_s
        while True:
            with suppress(redis.RedisError, KafkaException, OSError):
                if reached():
                    return
            if time.monotonic() > deadline:
                where = ""
                with suppress(redis.RedisError, KafkaException, OSError):
                    ends = self._scene.kafka.ends(self._scene.input, self._scene.partitions)
                    where = f"; W {self._scene.watermarks()}, ends {ends}"
                raise Unexpected(f"waited {limit_s:.0f} s for {what}{where}")
            for _ in range(5):
                self._tick()

    def _all_owned(self) -> bool:
        return all(nonce for nonce in self._scene.owners().values())

    # -- workers that end --------------------------------------------------------------------------

    def _note_end(self, ended: Ended) -> None:
        run, result = ended.run, self._result
        death = run.death
        if death is not None:
            at_ms, where = death
            self._stage.note_strike("kill-at-point", at_ms, self._stage.owned_by(run), where)
            run.order.unlink(missing_ok=True)
        if ended.code == -9:
            result.crashes += 1
        elif not run.intended or (run.intended == "SIGTERM" and ended.code != 0):
            said = run.child.log_tail().splitlines()[-1]
            said = re.sub(r"s\d+-[0-9a-f]{6}-\w+|\d+", "N", said)[:200]
            result.exits[f"{ended.code}: {said}"] = result.exits.get(f"{ended.code}: {said}", 0) + 1

    # -- the end -----------------------------------------------------------------------------------

    def _rest(self, check: bool) -> None:
        """Heal, let everything sent so far be served, and check it if it will not be seen again."""
        stage = self._stage
        stage.sender.paused.set()
        stage.heal()
        self._until(self._saved_as_sent, HEAL_S, "W to reach the end of a paused traffic")
        if check:
            self._ask_oracle()

    def _saved_as_sent(self) -> bool:
        return self._scene.all_saved() and self._all_owned()

    def _heal(self) -> None:
        """Heal, cure a HALT, finish the traffic, wait until all is served."""
        stage, expected = self._stage, self._schedule.expected
        stage.heal()
        stage.sender.finish()
        if expected is Outcome.HALT:
            self._until(lambda: bool(self._workers.halts()), HALT_S, "a HALT")
            self._cure()
        deadline = time.monotonic() + HEAL_S
        suspect = 0.0
        while not self._settled():
            halted = self._workers.halts()
            if halted and expected is Outcome.EITHER and not self._cured:
                suspect = suspect or time.monotonic() + CURE_AFTER_S
                if time.monotonic() > suspect:
                    self._cure()
                    deadline = time.monotonic() + HEAL_S
            if time.monotonic() > deadline:
                scene = self._scene
                logs = scene.kafka.extents(scene.input, scene.partitions)
                where = f"W is {scene.watermarks()}, the logs are {logs}"
                self._until(self._settled, 0.0, f"all to be saved: {where}; HALTs {halted[-2:]}")
            for _ in range(5):
                self._tick()
        self._result.outcome = "HALT, healed" if self._cured else "healed"

    def _settled(self) -> bool:
        with suppress(redis.RedisError, KafkaException, OSError):
            return self._scene.all_saved() and self._scene.all_of_its_bundle()
        return False

    def _cure(self) -> None:
        """Check the HALT's message and run the operator's command."""
        self._cured = True
        schedule = self._schedule
        halts = self._workers.halts()
        wanted = "|".join(KINDS[f.kind].message for f in schedule.faults if KINDS[f.kind].message)
        for why in halts:
            if COMMAND not in why:
                self._result.problems.append(f"a HALT names no command: {why}")
        if not any(re.search(wanted, why) for why in halts):
            self._result.problems.append(f"expected a HALT about {wanted!r}, got {halts[-1]}")
        if any(fault.kind == "recreated" for fault in schedule.faults):
            self._renew_outputs()
        self._operate(schedule.cure if schedule.cure != RESTORE else self._restore())
        self._workers.come_back()

    def _renew_outputs(self) -> None:
        """Outputs about the former topic's records would contradict those about the new ones."""
        self._workers.stay_away()
        self._result.problems += self._workers.stop()
        self._tick()
        for topic in (self._scene.output, self._scene.dead_letter):
            self._scene.kafka.delete_topic(topic)
        self._scene.create_outputs()

    def _take_snapshots(self) -> None:
        """Take snapshots; again later when a service is away just now."""
        self._tries += 1
        folder = self._scene.folder / f"snapshots-{self._tries}"
        status, said = self._scene.operate(f"snapshot {folder}")
        if status == 0:
            self._snapshots = sorted(folder.iterdir())
        else:
            self._stage.notes.append(f"no snapshot: {said[-100:].strip()}")
            self._stage.later(0.5, self._take_snapshots, heals=False)

    def _restore(self) -> str:
        if not self._snapshots:
            return REBUILD
        return f"{RESTORE} {' '.join(map(str, self._snapshots))} --yes"

    def _operate(self, command: str) -> None:
        self._stage.operated.append(command)
        status, said = self._scene.operate(command)
        if status != 0:
            raise Unexpected(f"{COMMAND} {command} ended with {status}: {said[-500:]}")

    def _judge(self) -> None:
        """Stop the workers, ask the oracle, measure."""
        stage, result = self._stage, self._result
        result.problems += self._workers.stop()
        for run in self._workers.extras:
            self._check_extra(run.child.exit_code)
        self._ask_oracle()
        halts = self._workers.halts()
        if halts and self._schedule.expected is Outcome.HEALED:
            result.problems.append(f"expected no HALT, got {len(halts)}: {halts[0]}")
        refused = [why for why in result.exits if why.startswith(f"{EX_USAGE}:")]
        if refused and self._schedule.expected is not Outcome.HALT:
            result.problems.append(f"a worker refused to serve: {refused[0]}")
        if not result.events:
            result.problems.append("the oracle saw no events: nothing was proven")
        emitted, arrived = read_emitted(self._scene), read_arrived(self._scene)
        result.recoveries = recoveries(stage.strikes, emitted, arrived)

    def _check_extra(self, code: int | None) -> None:
        if code not in (0, -9, EX_CRASH, -15):
            self._result.problems.append(f"a worker that joined for a while ended with {code}")

    def _ask_oracle(self) -> None:
        stage, result = self._stage, self._result
        exactly_once = self._schedule.outputs == "exactly-once"
        repeated = any("--emit-again" in command for command in stage.operated)
        # An operator's rebuild excuses no prediction; what the fault itself took is excused.
        fresh = any(KINDS[kind].starts_over for kind in (strike.kind for strike in stage.strikes))
        require_from = None if fresh else 0
        findings = oracle.judge(
            self._scene, stage.archive, exactly_once and not repeated, require_from
        )
        wrong = oracle.violations(findings)
        result.violations = {**result.violations, **wrong}
        report = findings.to_json()
        if wrong:
            result.examples = report["examples"]
        # Where the oracle is asked twice, it sees the same events again or others.
        result.events = max(result.events, findings.events)
        result.duplicates = max(result.duplicates, int(report["duplicates"]))
