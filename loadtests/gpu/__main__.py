"""Measure models on a GPU through the whole server, in one run of under nine minutes that ends in one table.

Nothing is measured without a CUDA device: then it says so, and the exit status is 2. ``--rehearse`` runs
every step on this machine with tiny models and an emulated device; its figures mean nothing. The exit
status is 0 if everything was measured, without a failed call, and every target was met (which a rehearsal
doesn't ask), else 1.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from loadtests.gpu.deadline import Deadline, OutOfTime
from loadtests.gpu.requirements import REMEDY, gpu_problem, missing_packages
from loadtests.gpu.scale import REAL, REHEARSAL, Scale

if TYPE_CHECKING:
    from loadtests.gpu.bench import Found
    from loadtests.gpu.table import Row

__all__ = ["main"]

_REHEARSED = "rehearsal on an emulated device: no figure means anything"
_SLOW = (
    "WITHOUT THE HTTP2 TRANSPORT, which isn't compiled here: each call costs the server several times as\n"
    "much, and what many small calls reach is grpcio's limit; docs/gpu.md says how to bring it"
)
_LEGEND = """
of bare: of the bare loop's rows/s (the line whose note says so). of base: of the same case's with the base.
target: of "of bare" (>=) or of "GPU busy" (<=). GPU busy: the time that the model ran, by its events; that of
two streams adds up. GB/s in: copied to the device; of link: of the first line's. padding: share of
the elements. client core: share of a core that the busiest client took; near 100 % a closed loop measures
the clients. The rest, such as what NVML says and tokens/s, is in gpu.json."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write; see the module for the exit status."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.gpu", description=__doc__)
    parser.add_argument("--rehearse", action="store_true", help="run every step without a GPU")
    parser.add_argument(
        "--out", type=Path, default=Path("reports/gpu"), help="for gpu.json and the servers' logs"
    )
    options = parser.parse_args(arguments)
    if missing := missing_packages():
        print("packages are missing:", *missing, sep="\n  ", file=sys.stderr)
        print(REMEDY, file=sys.stderr)
        return 2
    if not options.rehearse and (problem := gpu_problem()):
        print(f"there is no GPU here, and nothing was measured: {problem}", file=sys.stderr)
        print("--rehearse runs every step without one", file=sys.stderr)
        return 2
    scale = REHEARSAL if options.rehearse else REAL
    options.out.mkdir(parents=True, exist_ok=True)
    return _measured(scale, options.out)


def _measured(scale: Scale, out: Path) -> int:
    from loadtests.gpu.bench import Found, plan, run
    from loadtests.gpu.rows import rows_of

    deadline, found = Deadline(scale.seconds.limit), Found()
    steps = plan(scale)
    print(f"the plan, {sum(each.seconds for each in steps):.0f} s of at most {scale.seconds.limit:.0f} s:")
    for each in steps:
        print(f"  {each.seconds:4.0f} s  {each.name}")
    print(flush=True)
    try:
        with tempfile.TemporaryDirectory(prefix="tensorferry-gpu-") as scratch, deadline.enforced():
            run(scale, Path(scratch), out, deadline, found)
    except (OutOfTime, KeyboardInterrupt) as error:
        found.notes.append(str(error) or "it was interrupted")
    except Exception as error:  # what was measured before it is told all the same
        traceback.print_exc()
        found.notes.append(f"it ended early: {type(error).__name__}: {error}")
    rows = rows_of(found, scale)
    _write(found, rows, scale, out)
    is_whole = "after" in found.bare and not found.notes and not any(row.missing for row in rows)
    is_whole = is_whole and not any(each.seen.errors for each in found.measured)
    missed = [] if scale.is_rehearsal else [row for row in rows if row.met is False]
    return 0 if is_whole and not missed else 1


def _write(found: Found, rows: Sequence[Row], scale: Scale, out: Path) -> None:
    import tensorferry
    from loadtests.gpu.rows import details_of
    from loadtests.gpu.table import as_text

    device = found.bare.get("before", {}).get("device", {})
    head = [_REHEARSED] if scale.is_rehearsal else []
    head.append(
        f"{device.get('name', 'no device')}, torch {device.get('torch', '?')}, "
        f"Python {platform.python_version()}, {os.cpu_count()} cores"
    )
    starts = ", ".join(f"{each:.0f}" for each in found.starts_s.values())
    head.append(f"served over {' and '.join(sorted(found.transports)) or 'nothing'}; starts took {starts} s")
    head.append(f"the server's code: {Path(tensorferry.__file__).parent}")
    if "grpcio" in found.transports:
        head.append(_SLOW)
    if found.no_nvml:
        head.append(f"no utilisation by NVML: {found.no_nvml}")
    text = "\n".join([*head, "", as_text(rows, judges=not scale.is_rehearsal), *found.notes, _LEGEND])
    print(f"\n{text}")
    document = {
        "is_rehearsal": scale.is_rehearsal,
        "device": device,
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "allocator": os.environ.get("PYTORCH_ALLOC_CONF") or os.environ.get("PYTORCH_CUDA_ALLOC_CONF"),
        "transports": sorted(found.transports),
        "starts_s": found.starts_s,
        "batches": found.rows,
        "rows": [row.to_dict() for row in rows],
        "details": details_of(found),
        "bare": found.bare,
        "notes": found.notes,
    }
    (out / "gpu.json").write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", "utf-8")
    (out / "gpu.txt").write_text(text + "\n", "utf-8")
    print(f"\nwritten: {out / 'gpu.json'}, {out / 'gpu.txt'}")


if __name__ == "__main__":
    raise SystemExit(main())
