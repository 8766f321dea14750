"""Fuzz the extensions for a while: ``python -m tests.fuzz --seconds 60``.

Coverage leads the way if the extensions were built for it (``make fuzz`` does that); otherwise inputs
are changed at random. Exit status 1 if something didn't hold: the input is then in ``build/fuzz/``, and
``--replay FILE`` runs it again. After a crash the input that did it is ``build/fuzz/<target>.current``.
"""

from __future__ import annotations

import argparse
import faulthandler
import gc
import hashlib
import mmap
import random
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from tests.fuzz import corpus, scan_target
from tests.fuzz.coverage import Coverage
from tests.fuzz.program import run_program

from tensorferry.service import _scan
from tensorferry.transport import _http2

OUTPUT = Path("build/fuzz")
MOST_BYTES = 600
#: Fifty inputs that take so long are an endless loop.
HANGS_S = 60
SHARES = {"http2": 0.85, "scan": 0.15}


@dataclass(frozen=True, slots=True)
class Target:
    """What is fuzzed: the module that is watched, and what runs one input."""

    name: str
    module: ModuleType
    run: Callable[[bytes], object]
    seeds: list[bytes]


def targets() -> list[Target]:
    """Both extensions."""
    return [
        Target("http2", _http2, run_program, [bytes(8)]),
        Target("scan", _scan, scan_target.run_scan, scan_target.seeds()),
    ]


class Current:
    """A file that always holds the input that runs, whatever becomes of the process."""

    def __init__(self, path: Path) -> None:
        path.write_bytes(bytes(8 + 64 * MOST_BYTES))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)

    def note(self, data: bytes) -> None:
        self._map[:8] = len(data).to_bytes(8, "little")
        self._map[8 : 8 + len(data)] = data

    @staticmethod
    def read(path: Path) -> bytes:
        raw = path.read_bytes()
        return raw[8 : 8 + int.from_bytes(raw[:8], "little")]


class Fuzzer:
    """Changes inputs, runs them, and keeps those that reach something new."""

    def __init__(self, target: Target, chance: random.Random) -> None:
        self.target = target
        self.coverage = Coverage(target.module)
        self.kept: list[bytes] = []
        self.failures: dict[str, bytes] = {}
        self.runs = 0
        self._chance = chance
        self._current = Current(OUTPUT / f"{target.name}.current")
        for each in corpus.load(target.name) + target.seeds:
            self.try_one(each)
            if not self.coverage.is_there:
                self.kept.append(each)

    def try_one(self, data: bytes) -> None:
        """Run one input."""
        self._current.note(data)
        self.coverage.start()
        self.runs += 1
        try:
            self.target.run(data)
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            kind = f"{type(error).__name__} {where.filename}:{where.lineno}"
            if kind not in self.failures:
                self.failures[kind] = data
                path = OUTPUT / f"{self.target.name}-{hashlib.sha256(data).hexdigest()[:12]}.bin"
                path.write_bytes(data)
                traceback.print_exc()
                print(f"the input is {path}", flush=True)
        if self.coverage.is_new():
            self.kept.append(data)

    def go_on(self, seconds: float) -> None:
        """Fuzz for so long."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            faulthandler.dump_traceback_later(HANGS_S, exit=True)
            for _ in range(50):
                self.try_one(self._changed())
        faulthandler.cancel_dump_traceback_later()

    def smallest(self) -> list[bytes]:
        """Return few of the kept inputs that together reach what all of them do."""
        self.coverage.forget()
        few = []
        for each in sorted(self.kept, key=len):
            self.coverage.start()
            self.target.run(each)
            if self.coverage.is_new():
                few.append(each)
        return few if self.coverage.is_there else self.kept

    def _changed(self) -> bytes:
        chance = self._chance
        if not self.kept or chance.random() < 0.05:
            return chance.randbytes(chance.randrange(1, MOST_BYTES))
        data = bytearray(chance.choice(self.kept))
        for _ in range(1 << chance.randrange(5)):
            at = chance.randrange(len(data) + 1)
            how = chance.randrange(7)
            if how == 0:
                data[at:at] = chance.randbytes(chance.randrange(1, 8))
            elif how == 1:
                del data[at : at + chance.randrange(1, 16)]
            elif how == 2:
                other = chance.choice(self.kept)
                data[at:] = other[chance.randrange(len(other) + 1) :]
            elif how == 3:
                other = chance.choice(self.kept)
                start = chance.randrange(len(other) + 1)
                data[at:at] = other[start : start + chance.randrange(1, 32)]
            elif at < len(data):
                data[at] = chance.randrange(256) if how < 6 else data[at] ^ (1 << chance.randrange(8))
        return bytes(data[:MOST_BYTES])


def check_leaks(fuzzers: list[Fuzzer], rounds: int) -> bool:
    """Run the kept inputs ``rounds`` times; whether objects and resident memory stay the same."""
    inputs = [(each.target.run, data) for each in fuzzers for data in (each.kept or each.target.seeds)[:400]]
    sizes = []
    for turn in range(rounds + 3):
        for run, data in inputs:
            run(data)
        gc.collect()
        if turn >= 2:
            sizes.append(_resident_kib())
    left = {
        kind: sum(type(each).__name__ == kind for each in gc.get_objects())
        for kind in ("Stream", "Session", "Hub")
    }
    grown = sizes[-1] - sizes[len(sizes) // 2]
    print(
        f"leaks: {len(inputs)} inputs x {rounds}: resident {sizes[0]} -> {sizes[-1]} KiB"
        f" ({grown} in the second half), objects left {left}"
    )
    return not any(left.values()) and grown < 1024


def _resident_kib() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4


def _parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument(
        "--seed", type=int, default=None, help="for the same changes again (default: another)"
    )
    parser.add_argument("--save", action="store_true", help="keep what was found in tests/fuzz/corpus/")
    parser.add_argument(
        "--leaks",
        type=int,
        default=0,
        metavar="ROUNDS",
        help="run what was kept so often, and see whether memory grows",
    )
    parser.add_argument(
        "--replay",
        type=Path,
        metavar="FILE",
        help="run this one input of the http2 target (.bin or .current)",
    )
    return parser.parse_args()


def main() -> int:
    """Fuzz; return the exit status."""
    arguments = _parsed()
    faulthandler.enable()
    OUTPUT.mkdir(parents=True, exist_ok=True)
    if arguments.replay:
        path = arguments.replay
        data = Current.read(path) if path.suffix == ".current" else path.read_bytes()
        target = targets()[path.name.startswith("scan")]
        target.run(data)
        print("nothing to complain of")
        return 0
    seed = arguments.seed if arguments.seed is not None else random.randrange(2**32)
    chance = random.Random(seed)
    print(f"seed {seed}; extension {_http2.__file__}")
    fuzzers = [Fuzzer(target, chance) for target in targets()]
    for each in fuzzers:
        each.go_on(arguments.seconds * SHARES[each.target.name])
        led = f"{each.coverage.edges} edges" if each.coverage.is_there else "not led by coverage"
        print(
            f"{each.target.name}: {each.runs} runs, {len(each.kept)} inputs kept, {led},"
            f" {len(each.failures)} failures",
            flush=True,
        )
    failed = any(each.failures for each in fuzzers)
    if not failed and arguments.leaks:
        failed = not check_leaks(fuzzers, arguments.leaks)
    if arguments.save and not failed:
        for each in fuzzers:
            corpus.save(each.target.name, each.smallest())
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
