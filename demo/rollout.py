"""``python -m demo.rollout``: a model goes live, its bad successor is taken back, and no call is lost.

Runs the five commands of the README as they stand there, in ``.demo/rollout``, while callers send
card transactions. The successor is a mistake as it happens: trained on labels the wrong way round, 0
for fraud. It loads, it answers in time, its answers are probabilities; they mean the opposite.
"""

from __future__ import annotations

import argparse
import csv
import multiprocessing
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from ctypes import c_bool
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import grpc
import numpy as np
from rich.console import Console

from demo.callers import FRAUD_SHARE, Answers, card, keep_calling, traffic
from demo.options import leave_in_order, parser, positive
from demo.process import OwnProcessError, in_own_process
from demo.progress import Steps
from demo.train import CONFIG, save, scores_of, train
from demo.transactions import TransactionFileError, Transactions, generate, read_csv, split
from demo.verdict import Arm, Verdict, render
from tensorferry.testing.process import ListeningProcess, ServerProcessError
from tensorferry.wire import rollout_pb2 as pb
from tensorferry.wire.rollout_pb2_grpc import ModelRolloutStub

OUTPUT: Final = Path(".demo/rollout")
SENT_ROWS: Final = 30_000

PUSH: Final = (
    "tensorferry push fraud.pt --name fraud --config config.pbtxt --golden golden.npz --label stable"
)
SERVE: Final = "tensorferry serve --model-control-mode poll"
PUSH_NEXT: Final = "tensorferry push next.pt --name fraud --label canary"
CANARY: Final = "tensorferry rollout canary fraud --to canary --wait"
REPORT: Final = "tensorferry rollout report fraud"
#: Not one of the five: without it, the report has everything but the AUC.
FEEDBACK: Final = "tensorferry feedback labels.csv --name fraud"

#: Callers go on for so long after the canary has ended: its version must not answer any more.
AFTERWARDS_S: Final = 1.0

COMMAND_PATIENCE_S: Final = 120.0


class CommandError(Exception):
    """A command ended with another code than it should, or didn't end."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended: its code, and when (``time.monotonic``)."""

    code: int
    at_s: float


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demonstration; 0 if the bad version was taken back by itself and no call failed."""
    options = _options(argv)
    leave_in_order()
    console = Console()
    try:
        sent = _prepare(options, console)
        os.chdir(options.output)
        verdict = _run(sent, options)
    except (
        TransactionFileError, ServerProcessError, OwnProcessError, CommandError, grpc.RpcError
    ) as error:  # fmt: skip
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("demo: interrupted", file=sys.stderr)
        return 130
    print(f"\n{render(verdict)}\n\nModels and log: {options.output}", flush=True)
    return 1 if verdict.problems else 0


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    what = "Take a fraud model live, and see its bad successor be taken back by itself."
    made = parser("python -m demo.rollout", what, OUTPUT, in_flight=32)
    made.add_argument("--training-steps", type=positive, default=400, help="batches to train on")
    return made.parse_args(argv)


# -- before the commands ------------------------------------------------------------------------


def _prepare(options: argparse.Namespace, console: Console) -> Transactions:
    """Train both models, and write what the commands publish; return the transactions to send."""
    output: Path = options.output
    with Steps(console) as steps:
        with steps.step("Read transactions" if options.csv else "Generate transactions") as step:
            transactions = read_csv(options.csv) if options.csv else generate(options.rows, options.seed)
            step.detail = f"{len(transactions):,}, of them {transactions.frauds:,} frauds"
        training, test = split(transactions, options.seed)
        with steps.step("Train fraud.pt", options.training_steps) as step:
            model = train(training, options.seed, options.training_steps, step.at)
        with steps.step("Train next.pt on labels the wrong way round", options.training_steps) as step:
            bad = train(mislabelled(training), options.seed, options.training_steps, step.at)
    output.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(output / "models", ignore_errors=True)
    (output / "models").mkdir()
    (output / "config.pbtxt").write_text(CONFIG, encoding="utf-8")
    save(model, output / "fraud.pt")
    save(bad, output / "next.pt")
    proof = test.features[:64]
    golden = {"inputs/features": proof, "outputs/score": scores_of(model, proof)}
    np.savez(output / "golden.npz", **golden)  # type: ignore[arg-type]  # as if a name could be allow_pickle
    return traffic(test, SENT_ROWS, options.seed, made_up=options.csv is None)


def mislabelled(transactions: Transactions) -> Transactions:
    """Return the transactions with their labels the wrong way round."""
    return Transactions(transactions.features, ~transactions.is_fraud)


# -- the commands -------------------------------------------------------------------------------


def _run(sent: Transactions, options: argparse.Namespace) -> Verdict:
    """Run the commands, in the directory of what they publish."""
    os.environ |= {"TENSORFERRY_MODEL_REPOSITORY": "models"}
    os.environ |= {"TENSORFERRY_GRPC_PORT": "0", "TENSORFERRY_HTTP_PORT": "0"}
    _run_command(PUSH)
    print(f"\n$ {SERVE} &", flush=True)
    server = ListeningProcess(_argv(SERVE), Path("server.log"), listens_for=("grpc", "http"))
    with server:
        print(f"grpc listening on {server.grpc_address} ({server.transport})\nready", flush=True)
        os.environ["TENSORFERRY_SERVER"] = server.grpc_address
        with _callers(server.grpc_address, sent, options.in_flight) as called:
            _run_command(PUSH_NEXT)
            canary = _run_command(CANARY, codes=(0, 1))
            time.sleep(AFTERWARDS_S)
        answers = called.result()
        write_labels(Path("labels.csv"), answers, sent)
        print("\n# later the frauds are known; scores are kept from the canary's start on", flush=True)
        _run_command(FEEDBACK)
        _run_command(REPORT)
        return _verdict(server.grpc_address, answers, canary)


@contextmanager
def _callers(target: str, sent: Transactions, in_flight: int) -> Iterator[Future[Answers]]:
    """Let callers send transactions while the block runs; the future has their answers afterwards."""
    stop = multiprocessing.get_context("spawn").RawValue(c_bool, False)
    share = f"{FRAUD_SHARE:.0%}"
    print(
        f"\n# from now on callers score transactions, {in_flight} at a time; {share} are frauds", flush=True
    )
    with ThreadPoolExecutor(1) as thread:
        args = (target, sent.features, in_flight, stop)
        called = thread.submit(in_own_process, keep_calling, args, lambda done: None)
        try:
            yield called
        finally:
            stop.value = True


def _run_command(line: str, codes: Sequence[int] = (0,)) -> Ended:
    """Show a command line, run it, and pass on what it prints as it comes.

    Raises:
        CommandError: it ended with none of ``codes``, or not within ``COMMAND_PATIENCE_S``.
    """
    print(f"\n$ {line}", flush=True)
    try:
        code = subprocess.run(_argv(line), check=False, timeout=COMMAND_PATIENCE_S).returncode
    except subprocess.TimeoutExpired:
        raise CommandError(f"`{line}` took longer than {COMMAND_PATIENCE_S:g} s") from None
    ended = Ended(code, time.monotonic())
    if code not in codes:
        raise CommandError(f"`{line}` ended with code {code}; what it says stands above")
    return ended


def _argv(line: str) -> list[str]:
    """Return the command's words; ``tensorferry`` is the one of this Python, activated or not."""
    program, *arguments = shlex.split(line)
    assert program == "tensorferry"
    return [sys.executable, "-m", program, *arguments]


def write_labels(path: Path, answers: Answers, sent: Transactions) -> None:
    """Write the true labels of what was answered, as `tensorferry feedback` reads them."""
    with path.open("w", newline="", encoding="utf-8") as file:
        lines = csv.writer(file)
        lines.writerow(("key", "label"))
        lines.writerows((card(int(row)), int(sent.is_fraud[row])) for row in np.unique(answers.rows))


def _verdict(target: str, answers: Answers, canary: Ended) -> Verdict:
    with grpc.insecure_channel(target) as channel:
        stub = ModelRolloutStub(channel)  # type: ignore[no-untyped-call]
        rollout = stub.RolloutStatus(pb.RolloutStatusRequest(model_name="fraud"), timeout=10).rollout
        report = stub.RolloutReport(pb.RolloutReportRequest(model_name="fraud"), timeout=10)
    return Verdict(
        calls=answers.calls,
        failures=answers.failures,
        answered_by_bad=answers.by(rollout.canary.version),
        answered_by_bad_afterwards=answers.by_after(rollout.canary.version, canary.at_s),
        is_rolled_back=canary.code == 1 and rollout.canary.state == pb.Canary.ROLLED_BACK,
        reason=rollout.canary.reason,
        arms=[
            Arm(arm.version, arm.labelled, (arm.auc.value, arm.auc.low, arm.auc.high))
            if arm.HasField("auc")
            else Arm(arm.version, arm.labelled, None)
            for arm in report.arms
        ],
    )


if __name__ == "__main__":
    sys.exit(main())
