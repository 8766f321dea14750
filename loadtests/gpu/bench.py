"""The run: bare loops, a server for each configuration with its cases, bare loops again."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from loadtests.gpu.cases import (
    BASE_CASES,
    COMPARED_CASES,
    Case,
    Instruments,
    Measured,
    Server,
    check_answers,
    measure,
)
from loadtests.gpu.clients import Clients
from loadtests.gpu.deadline import Deadline
from loadtests.gpu.models import BERT, FRAUD, IMAGE, IMAGE_BYTES, Variant, write_modules, write_repository
from loadtests.gpu.nvml import Watcher
from loadtests.gpu.scale import Scale
from loadtests.gpu.yardstick import Yardstick, best_rows
from tensorferry.testing.process import SERVE, Limits, ServerProcess

__all__ = ["BASE", "VARIANTS", "Found", "Step", "cases_of", "plan", "run"]

BASE: Final = Variant("base", "base: 1 stream, graphs auto, 3 slots")
#: The one that everything is compared with, and what is changed of it; what is told first runs first.
VARIANTS: Final = (
    BASE,
    Variant("graphs_off", "graphs off", cuda_graphs="off"),
    Variant("overlap_off", "overlap off (1 slot)", staging_slots=1),
    Variant("streams_2", "2 streams", streams=2),
    Variant("streams_2_shared", "2 streams, shared weights", streams=2, shares_weights=True),
)

_EMULATED: Final = (sys.executable, "-m", "tensorferry.testing.emulated_server", "serve")
_START_S: Final = 150.0
_STOP_S: Final = 8.0
#: Scrapes, clients' starts, the check of answers and the last ones, in seconds a case.
_CASE_BESIDES_S: Final = 1.6
_LOOP_KINDS: Final = 3


@dataclass(frozen=True, slots=True)
class Step:
    """A part of the run, and what it is thought to take in seconds."""

    name: str
    seconds: float


@dataclass(slots=True)
class Found:
    """What has been measured so far; the run fills it in.

    ``missing`` says for a configuration's name and a case why it wasn't measured, ``bare`` has what the bare
    processes printed, by "before" and "after", ``notes`` what else went wrong. ``no_nvml`` says why NVML told
    nothing.
    """

    rows: dict[str, int] = field(default_factory=dict)
    bare: dict[str, dict[str, Any]] = field(default_factory=dict)
    measured: list[Measured] = field(default_factory=list)
    missing: dict[tuple[str, Case], str] = field(default_factory=dict)
    transports: set[str] = field(default_factory=set)
    starts_s: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    no_nvml: str = ""

    @property
    def yardstick(self) -> Yardstick:
        """The bare loops as far as they ran."""
        return Yardstick(*[self.bare.get(when, {}).get("loops", []) for when in ("before", "after")])

    def of(self, variant: Variant, case: Case) -> Measured | None:
        """Return what was measured of a case with a configuration."""
        for each in self.measured:
            if (each.variant, each.case) == (variant, case):
                return each
        return None


def cases_of(variant: Variant) -> tuple[Case, ...]:
    """Return what is measured with a configuration."""
    return BASE_CASES if variant is BASE else COMPARED_CASES


def searched(scale: Scale) -> dict[str, tuple[int, ...]]:
    """Return the batch sizes that the bare loops try for each model."""
    images, sequences = scale.resnet.batches, scale.bert.batches
    return {IMAGE: images, IMAGE_BYTES: images[-2:], BERT: sequences, FRAUD: (scale.fraud_rows,)}


def plan(scale: Scale) -> list[Step]:
    """Return the steps in their order."""
    times = scale.seconds
    loop_s = _LOOP_KINDS * times.loop * 1.4
    case_s = times.settle + times.case + _CASE_BESIDES_S
    loops = sum(map(len, searched(scale).values()))
    return [
        Step("write the models", times.models),
        Step("bare loops", times.process + loops * loop_s),
        *(Step(f"server, {each.says}", times.server + len(cases_of(each)) * case_s) for each in VARIANTS),
        Step("bare loops again", times.process + len(searched(scale)) * loop_s),
    ]


def run(scale: Scale, scratch: Path, out: Path, deadline: Deadline, found: Found) -> None:
    """Measure all that there is time for; fill ``found`` in on the way.

    Raises:
        OutOfTime: the time was over; ``found`` has what was measured until then.
        RuntimeError: the bare loops failed, without which nothing can be judged.
    """
    _Run(scale, scratch, out, deadline, found).whole()


class _Run:
    """One run; ``found`` is its result."""

    def __init__(self, scale: Scale, scratch: Path, out: Path, deadline: Deadline, found: Found) -> None:
        self._scale = scale
        self._scratch = scratch
        self._out = out
        self._deadline = deadline
        self._found = found
        self._steps = iter(plan(scale))
        self._began_s = time.monotonic()

    def whole(self) -> None:
        for variant in VARIANTS:
            for case in cases_of(variant):
                self._found.missing[variant.name, case] = "there was no time for it"
        self._deadline.kept_s = plan(self._scale)[-1].seconds
        self._begin()
        modules = self._scratch / "modules"
        write_modules(modules, self._scale)
        self._begin()
        self._bare("before", modules, searched(self._scale))
        loops = self._found.bare["before"]["loops"]
        self._found.rows = {model: best_rows(loops, model) for model in searched(self._scale)}
        uuid = self._found.bare["before"]["device"]["uuid"]
        watcher = Watcher(uuid, is_rehearsal=self._scale.is_rehearsal)
        self._found.no_nvml = watcher.why_not
        for variant in VARIANTS:
            self._begin()
            if self._deadline.has_room_for(self._scale.seconds.server):
                self._server(variant, modules, watcher)
        self._deadline.kept_s = 0.0
        if self._deadline.has_room_for(self._begin().seconds):
            self._bare("after", modules, {model: (rows,) for model, rows in self._found.rows.items()})

    def _begin(self) -> Step:
        step = next(self._steps)
        now_s = time.monotonic() - self._began_s
        print(f"  at {now_s:4.0f} s: {step.name} ({step.seconds:.0f} s)", flush=True)
        return step

    def _bare(self, when: str, modules: Path, batches: Mapping[str, Sequence[int]]) -> None:
        job = self._scratch / f"{when}.json"
        told = {"modules": str(modules), "is_rehearsal": self._scale.is_rehearsal, "batches": batches}
        job.write_text(json.dumps(told), "utf-8")
        log = self._out / f"bare_{when}.log"
        with log.open("w", encoding="utf-8") as errors:
            done = subprocess.run(
                [sys.executable, "-m", "loadtests.gpu.bare", str(job)],
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                check=False,
            )
        if done.returncode:
            said = log.read_text("utf-8", errors="replace")
            raise RuntimeError(f"the bare loops failed ({done.returncode}):\n{said[-2000:]}")
        self._found.bare[when] = json.loads(done.stdout.splitlines()[-1])

    def _server(self, variant: Variant, modules: Path, watcher: Watcher) -> None:
        repository = self._scratch / variant.name
        # What isn't measured isn't loaded: its graphs alone would take seconds.
        models = {case.model for case in cases_of(variant)}
        rows = {model: count for model, count in self._found.rows.items() if model in models}
        write_repository(repository, modules, self._scale, variant, rows)
        flags = ("--shared-memory", "on")
        limits = Limits(max(1.0, min(_START_S, self._deadline.left_s)), _STOP_S)
        program = _EMULATED if self._scale.is_rehearsal else SERVE
        log = self._out / f"{variant.name}.log"
        began_s = time.monotonic()
        running = ServerProcess(repository, log, flags=flags, program=program, limits=limits)
        with self._excused(variant, cases_of(variant)), running as process:
            self._found.starts_s[variant.name] = time.monotonic() - began_s
            self._found.transports.add(process.transport)
            answers = self._found.bare["before"]["answers"]
            server = Server(process, variant, self._scale, rows, answers)
            for model in rows:
                check_answers(server, model)
            with Clients(self._scale.clients) as clients:
                self._cases(server, Instruments(clients, watcher))

    def _cases(self, server: Server, by: Instruments) -> None:
        times = self._scale.seconds
        for case in cases_of(server.variant):
            if not self._deadline.has_room_for(times.settle + times.case + _CASE_BESIDES_S):
                continue
            closed = self._found.of(server.variant, case.closed)
            if case.is_open and closed is None:
                self._found.missing[server.variant.name, case] = "its closed loop wasn't measured"
                continue
            with self._excused(server.variant, (case,)):
                rate = closed.seen.calls_per_s if closed else None
                self._found.measured.append(measure(server, case, by, rate))
                del self._found.missing[server.variant.name, case]

    def _excused(self, variant: Variant, cases: Sequence[Case]) -> _Excused:
        return _Excused(self._found, variant, cases)


class _Excused:
    """Notes why ``cases`` of a configuration couldn't be measured, and lets the others go on."""

    def __init__(self, found: Found, variant: Variant, cases: Sequence[Case]) -> None:
        self._found = found
        self._keys = [(variant.name, case) for case in cases]

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        if error is None:
            return False
        missing = self._found.missing
        why = f"{type(error).__name__}: {error}"
        print(f"    failed: {why}", flush=True)
        if lost := [key for key in self._keys if key in missing]:
            missing.update(dict.fromkeys(lost, why.splitlines()[0][:300]))
        else:
            self._found.notes.append(f"{self._keys[0][0]}, after its cases: {why}")
        return isinstance(error, Exception)
