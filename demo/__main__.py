"""``python -m demo``: the whole way from transactions to a report, and an exit code that says how it went."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Coroutine, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from rich.console import Console

from demo.drive import Burst, burst, one_by_one
from demo.evaluate import agreement, roc_auc
from demo.options import leave_in_order, parser, positive
from demo.outcome import Outcome
from demo.process import OwnProcessError, in_own_process
from demo.progress import Step, Steps
from demo.report import Report, as_json, render
from demo.train import export, offline_scores, train
from demo.transactions import TransactionFileError, Transactions, generate, read_csv, split
from tensorferry.testing.process import ServerProcess, ServerProcessError

OUTPUT: Final = Path(".demo")
TRAINING_STEPS: Final = 400

_BY_HAND: Final = """\
Try it by hand, the server in one terminal and a client in another:
  {python} -m tensorferry serve --model-repository {repository}
  curl localhost:8002/metrics     (and in a browser, live: http://localhost:8002/)
  {python} -c '
import numpy as np, tensorferry_client
with tensorferry_client.Client("localhost:8001") as client:
    print(client.infer("fraud", {{"features": np.zeros((2, 30), np.float32)}}).outputs["score"])'

Report: {report}   Server log: {log}"""


@dataclass(frozen=True, slots=True)
class Trained:
    """A model in its repository, and the transactions that it hasn't seen."""

    repository: Path
    model: Path
    training_rows: int
    test: Transactions


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demonstration; 0 if every call was answered and every score is the offline model's."""
    given = _options(argv)
    leave_in_order()
    console = Console()
    try:
        with Steps(console) as steps:
            report = _run(given, steps)
    except (TransactionFileError, ServerProcessError, OwnProcessError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("demo: interrupted", file=sys.stderr)
        return 130
    _write_out(report, given.output, console)
    return 1 if report.problems else 0


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    what = "Train a fraud model, serve it with Tensorferry, send transactions at it, and report."
    made = parser("python -m demo", what, OUTPUT, in_flight=64)
    made.add_argument("--one-by-one", type=positive, default=3_000, help="most to send one by one")
    made.add_argument("--seconds", type=positive, default=8, help="least length of the burst")
    return made.parse_args(argv)


def _run(options: argparse.Namespace, steps: Steps) -> Report:
    transactions = _transactions(options, steps)
    trained = _train(transactions, options, steps)
    stream, load = _serve(trained, options, steps)
    rows = np.concatenate((stream.rows, load.rows))
    scores = np.concatenate((stream.scores, load.scores))
    with steps.step("Run the same model offline"):
        offline = offline_scores(trained.model, trained.test.features)
    auc, offline_auc = _aucs(rows, scores, offline, trained.test)
    return Report(
        source=str(options.csv) if options.csv else f"generated, seed {options.seed}",
        transactions=len(transactions),
        frauds=transactions.frauds,
        trained_on=trained.training_rows,
        served=len(trained.test),
        in_flight=options.in_flight,
        stream=stream,
        burst=load,
        auc=auc,
        offline_auc=offline_auc,
        agreement=agreement(scores, offline[rows]),
    )


def _transactions(options: argparse.Namespace, steps: Steps) -> Transactions:
    with steps.step("Read transactions" if options.csv else "Generate transactions") as step:
        transactions = read_csv(options.csv) if options.csv else generate(options.rows, options.seed)
        step.detail = f"{len(transactions):,}, of them {transactions.frauds:,} frauds"
    return transactions


def _train(transactions: Transactions, options: argparse.Namespace, steps: Steps) -> Trained:
    with steps.step("Train and export the model", TRAINING_STEPS) as step:
        training, test = split(transactions, options.seed)
        model = train(training, options.seed, TRAINING_STEPS, step.at)
        repository = options.output / "models"
        path = export(model, repository)
        step.detail = f"on {len(training):,} transactions, to {path}"
    return Trained(repository, path, len(training), test)


def _serve(trained: Trained, options: argparse.Namespace, steps: Steps) -> tuple[Outcome, Outcome]:
    """Serve the model, send all load at it, and stop the server; return both phases' outcomes."""
    features = trained.test.features
    server = ServerProcess(trained.repository, options.output / "server.log")
    with ExitStack() as running:
        with steps.step("Start the server") as step:
            running.enter_context(server)
            step.detail = f"grpc on {server.grpc_address}; watch it live: http://{server.http_address}/"
        first = features[: options.one_by_one]
        with steps.step("Score one by one", len(first)) as step:
            stream = _drive(server, step, one_by_one, first)
            step.detail = f"{len(stream.scores):,} answers"
        with steps.step(f"Burst, {options.in_flight} in flight") as step:
            load = Burst(options.in_flight, options.seconds)
            outcome = _drive(server, step, burst, features, load)
            step.detail = f"{len(outcome.scores):,} answers"
        with steps.step("Stop the server") as step:
            running.close()
            step.detail = "ended with code 0"
    return stream, outcome


def _drive(
    server: ServerProcess, step: Step, phase: Callable[..., Coroutine[Any, Any, Outcome]], *args: object
) -> Outcome:
    """Run a phase of load in a process of its own; a server that died meanwhile speaks first."""
    try:
        return in_own_process(phase, (server.grpc_address, *args), step.at)
    except OwnProcessError:
        server.require_alive()
        raise


def _aucs(
    rows: npt.NDArray[np.intp],
    scores: npt.NDArray[np.float32],
    offline: npt.NDArray[np.float32],
    test: Transactions,
) -> tuple[float | None, float | None]:
    """AUC of the served scores, one for each transaction, and of the offline scores of the same ones."""
    served, first = np.unique(rows, return_index=True)
    is_fraud = test.is_fraud[served]
    if is_fraud.all() or not is_fraud.any():
        return None, None
    return roc_auc(scores[first], is_fraud), roc_auc(offline[served], is_fraud)


def _write_out(report: Report, output: Path, console: Console) -> None:
    path = output / "report.json"
    path.write_text(json.dumps(as_json(report), indent=2) + "\n", encoding="utf-8")
    python = os.path.relpath(sys.executable)
    by_hand = _BY_HAND.format(
        python=python, repository=output / "models", report=path, log=output / "server.log"
    )
    console.print(f"\n{render(report)}\n{by_hand}", markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
