"""Whether callers notice a shadow, or that their answers are being compared.

    python -m loadtests.shadowing

A model is asked at a steady rate, open loop, in windows: alone, beside a shadow that gets a copy of every
request, and divided between two equal versions. Prints p50 and p99 of each window, and the ratios to the
window alone of the same round; exit status 1 if a call failed or, with ``--most-ratio``, if the median
ratio of the shadow's p99 is more.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import grpc
import numpy as np

from tensorferry.benchmark import arrivals
from tensorferry.benchmark.generator import Options, Stream, run
from tensorferry.benchmark.requests import messages_for
from tensorferry.testing.models import write_mlp
from tensorferry.testing.process import ServerProcess
from tensorferry.wire import rollout_pb2, rollout_pb2_grpc

MODEL = "mlp"
_BODIES = 16
_TIMEOUT_S = 30.0


def main() -> int:
    options = _parsed()
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch) / "models"
        write_mlp(root)
        first = root / MODEL / "1" / "model.pt"
        second = root / MODEL / "2" / "model.pt"
        second.parent.mkdir()
        second.write_bytes(first.read_bytes())
        flags = ["--transport", "http2", "--log-level", "warning"]
        flags += ["--model-control-mode", "explicit", "--load-model", MODEL]
        with (
            ServerProcess(root, Path(scratch) / "log", flags=flags) as server,
            grpc.insecure_channel(server.grpc_address) as channel,
        ):
            return _compare(server.grpc_address, rollout_pb2_grpc.ModelRolloutStub(channel), options)


def _compare(target: str, stub: rollout_pb2_grpc.ModelRolloutStub, options: argparse.Namespace) -> int:
    _change(stub, set_label=rollout_pb2.SetLabel(label="stable", version=1))
    _change(stub, set_label=rollout_pb2.SetLabel(label="next", version=2))
    messages = messages_for(target, MODEL, count=_BODIES)
    shadow = rollout_pb2.SetShadow(shadow=rollout_pb2.Shadow(target="2", share=1.0))
    both = [rollout_pb2.Share(target=str(version), weight=1.0) for version in (1, 2)]
    ratios: dict[str, list[float]] = {"shadow": [], "split": []}
    failed = 0
    print(f"{options.rate:g} calls/s, windows of {options.seconds:g} s; ms from the instant due")
    print("round  window    p50    p99  failed")
    for number in range(options.rounds):
        alone, own = _window(target, messages, options, 3 * number)
        failed += own
        print(f"{number:5}   alone {alone[0]:6.2f} {alone[1]:6.2f} {own:7}")
        for place, name in enumerate(ratios):
            if name == "shadow":
                _change(stub, set_shadow=shadow)
            else:
                _change(stub, set_split=rollout_pb2.SetSplit(shares=both))
            found, own = _window(target, messages, options, 3 * number + place + 1)
            failed += own
            if name == "shadow":
                _tell_shadow(stub)
                _change(stub, set_shadow=rollout_pb2.SetShadow())
            else:
                _change(stub, set_split=rollout_pb2.SetSplit())
            ratios[name].append(found[1] / alone[1])
            print(
                f"{number:5} {name:>7} {found[0]:6.2f} {found[1]:6.2f} {own:7}  p99 x{ratios[name][-1]:.2f}"
            )
    medians = {name: float(np.median(each)) for name, each in ratios.items()}
    print(f"p99 beside a shadow: x{medians['shadow']:.2f}; divided and counted: x{medians['split']:.2f}")
    return 1 if failed or (options.most_ratio and medians["shadow"] > options.most_ratio) else 0


def _window(
    target: str, messages: list[bytes], options: argparse.Namespace, seed: int
) -> tuple[tuple[float, float], int]:
    """Return p50 and p99 in ms, and how many calls failed."""
    schedule = arrivals.poisson(options.rate, options.seconds, seed)
    result = run(target, [Stream(MODEL, schedule, messages)], Options())
    ok = result.status == 0
    p50, p99 = np.percentile((result.done_s - result.intended_s)[ok] * 1000, (50, 99))
    return (float(p50), float(p99)), int((~ok).sum())


def _tell_shadow(stub: rollout_pb2_grpc.ModelRolloutStub) -> None:
    asked = rollout_pb2.RolloutReportRequest(model_name=MODEL)
    for arm in stub.RolloutReport(asked, timeout=_TIMEOUT_S).arms:
        if arm.is_shadow:
            largest = max((n for n, count in enumerate(arm.score_differences.counts) if count), default=0)
            print(
                f"        copies compared {arm.compared:,}, dropped {arm.dropped:,}, differing {largest > 0}"
            )


def _change(stub: rollout_pb2_grpc.ModelRolloutStub, **change: object) -> None:
    request = rollout_pb2.ChangeRolloutRequest(model_name=MODEL, **change)  # type: ignore[arg-type]
    stub.ChangeRollout(request, timeout=_TIMEOUT_S)


def _parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rate", type=float, default=2000.0, help="calls/s")
    parser.add_argument("--seconds", type=float, default=3.0, help="length of a window")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--most-ratio", type=float, help="fail above this median ratio of the shadow's p99")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
