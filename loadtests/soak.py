"""Many calls, good and bad, against one server of the http2 transport; memory must stay flat.

    python -m loadtests.soak --calls 1000000

h2load sends the bulk in bursts, and an abuser (``abuse.py``) in between: calls that are reset, expire,
are malformed, and connections that drop. Exit status 1 if resident memory grows over the second half
by more than 2 % or 5 MiB, whichever is more, if anything is left in the transport's tables at the end,
or if a good call fails.
"""

from __future__ import annotations

import argparse
import random
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import numpy as np

from loadtests.abuse import CALLS_PER_CONNECTION, Abuser
from loadtests.bench.payload import METHOD, Body, fraud_body, write_repository
from tensorferry.testing.process import ServerProcess

#: Of the calls, those that the abuser makes.
ABUSED_SHARE = 0.1
BURSTS = 40
ALLOWED_BYTES = 5 * 2**20
ALLOWED_SHARE = 0.02
#: What must be 0 when all callers are gone.
GAUGES = (
    "tensorferry_connections",
    "tensorferry_streams",
    "tensorferry_unsent_bytes",
    "tensorferry_receiving_bytes",
    "tensorferry_in_flight_bytes",
)
SUCCESSES = 'nv_inference_request_success_total{model="fraud",version="1"}'
SETTLE_S = 20.0


def main() -> int:
    """Run the soak; return the exit status."""
    arguments = _parsed()
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        write_repository(root / "models")
        body = fraud_body(root / "models")
        flags = ["--transport", "http2", "--log-level", "error"]
        with ServerProcess(root / "models", root / "log", flags=flags) as server:
            soak = Soak(server, body, arguments.seed)
            soak.run(arguments.calls, arguments.seconds)
            left = soak.left()
        log = (root / "log").read_text()
    return soak.report(left, log)


class Soak:
    """One run: what was sent, and the server's memory after each burst."""

    def __init__(self, server: ServerProcess, body: Body, seed: int) -> None:
        self._server = server
        self._body = body
        port = int(server.grpc_address.rpartition(":")[2])
        self._abuser = Abuser(port, body.framed.read_bytes(), random.Random(seed))
        self._url = f"http://127.0.0.1:{port}{METHOD}"
        self.good = self.failed = self.bad = 0
        self.inferred = 0.0
        self.resident: list[int] = []
        self.seconds = 0.0

    def run(self, calls: int, most_seconds: float) -> None:
        """Make ``calls`` in bursts, for at most so long."""
        started = time.monotonic()
        burst = max(1, calls // BURSTS)
        while self.good + self.failed + self.bad < calls and self.seconds < most_seconds:
            self._bulk(round(burst * (1 - ABUSED_SHARE)))
            for _ in range(max(1, round(burst * ABUSED_SHARE / CALLS_PER_CONNECTION))):
                self.bad += self._abuser.connection()
            self.resident.append(_resident_bytes(self._server.pid))
            self.seconds = time.monotonic() - started
            print(
                f"{self.seconds:6.1f} s {self.good + self.bad:>9} calls {self.resident[-1] / 2**20:.1f} MiB",
                flush=True,
            )

    def _bulk(self, calls: int) -> None:
        command = ["h2load", f"-n{calls}", "-c16", "-m16", "-d", str(self._body.framed)]
        command += ["-H", "content-type: application/grpc", "-H", "te: trailers", self._url]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
        found = re.search(r"(\d+) succeeded, (\d+) failed, (\d+) errored, (\d+) timeout", done.stdout)
        if not found:
            raise SystemExit(f"h2load measured nothing:\n{done.stdout}{done.stderr}")
        self.good += int(found[1])
        self.failed += sum(int(found[group]) for group in (2, 3, 4))

    def left(self) -> dict[str, float]:
        """Return what isn't 0 once the callers are gone and the server has had time to notice."""
        give_up_at = time.monotonic() + SETTLE_S
        while time.monotonic() < give_up_at:
            values = _scraped(self._server.http_address)
            left = {name: values[name] for name in GAUGES if values[name]}
            if not left:
                break
            time.sleep(0.2)
        # h2load takes any reply for an answer; the model knows how many there were.
        self.inferred = values[SUCCESSES]
        return left

    def report(self, left: dict[str, float], log: str) -> int:
        """Print the outcome; return the exit status."""
        half = self.resident[len(self.resident) // 2 :]
        slope = float(np.polyfit(range(len(half)), half, 1)[0]) if len(half) > 1 else 0.0
        growth = slope * (len(half) - 1)
        allowed = max(ALLOWED_BYTES, ALLOWED_SHARE * half[0])
        print(f"calls in {self.seconds:.0f} s: {self.good} answered, {self.failed} failed, {self.bad} abused")
        for name, count in sorted(self._abuser.counts.items()):
            print(f"  {count:>8} {name}")
        print(
            f"resident MiB: {self.resident[0] / 2**20:.1f} after the first burst,"
            f" {half[0] / 2**20:.1f} at half, {half[-1] / 2**20:.1f} at the end;"
            f" fitted growth over the second half {growth / 2**20:+.2f} (allowed {allowed / 2**20:.1f})"
        )
        print(f"left in the tables: {left or 'nothing'}")
        print(f"answered by the model: {self.inferred:.0f}")
        errors = [line for line in log.splitlines() if "unexpected error" in line or "Traceback" in line]
        print(f"unexpected errors in the log: {len(errors)}")
        if errors:
            print(log[-4000:], file=sys.stderr)
        return int(bool(growth > allowed or left or self.failed or errors or self.inferred < self.good))


def _scraped(address: str) -> dict[str, float]:
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=30) as response:
        lines = response.read().decode().splitlines()
    return {
        name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[:1] != "#")
    }


def _resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


def _parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m loadtests.soak", description=__doc__)
    parser.add_argument("--calls", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=3600, help="at most so long")
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
