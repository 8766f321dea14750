"""Card transactions, made up or read from a file: ``Time,V1..V28,Amount,Class``.

``Time`` is in seconds since the first transaction, ``V1`` to ``V28`` are principal components,
``Amount`` is in the card's currency and ``Class`` is 1 for fraud. Rules for this file: numpy
and the standard library only; the same seed gives the same transactions.
"""

from __future__ import annotations

import csv
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

__all__ = [
    "FEATURES",
    "MIN_FRAUDS",
    "MIN_ROWS",
    "TransactionFileError",
    "Transactions",
    "generate",
    "read_csv",
    "split",
]

#: The features of one transaction, in the model's order.
FEATURES: Final[tuple[str, ...]] = ("Time", *(f"V{i}" for i in range(1, 29)), "Amount")
LABEL: Final = "Class"

#: Below these a model can be neither trained nor judged.
MIN_ROWS: Final = 200
MIN_FRAUDS: Final = 10

TWO_DAYS_S: Final = 2 * 24 * 3600

# Where fraud differs: component, and the direction in which a fraud moves it.
_FRAUD_SHIFTS: Final = {3: -1.0, 4: 0.8, 7: -0.5, 10: -0.9, 11: 0.7, 12: -0.9, 14: -1.0, 16: -0.6, 17: -0.8}

_Generator = np.random.Generator
_Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Transactions:
    """Transactions in the order of their time.

    ``features`` is float32 of shape (rows, 30), columns as in ``FEATURES``; ``is_fraud`` is bool
    of shape (rows,).
    """

    features: npt.NDArray[np.float32]
    is_fraud: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.is_fraud)

    @property
    def frauds(self) -> int:
        """How many of them are fraud."""
        return int(self.is_fraud.sum())

    def take(self, rows: npt.NDArray[np.intp]) -> Transactions:
        """Return the transactions at ``rows`` (integer indices), in that order."""
        return Transactions(self.features[rows], self.is_fraud[rows])


class TransactionFileError(Exception):
    """The file isn't one of transactions. The message starts with the path and, where known, the line."""

    def __init__(self, path: Path, what: str, line: int | None = None) -> None:
        super().__init__(f"{path}:{line}: {what}" if line else f"{path}: {what}")


def generate(rows: int, seed: int, fraud_share: float = 0.01) -> Transactions:
    """Make up ``rows`` transactions over two days, ``fraud_share`` of them fraud.

    Fraud moves a few components by an amount that differs from case to case and is often small,
    so that it overlaps with what is ordinary and no model tells all of it apart.
    """
    rng = np.random.default_rng(seed)
    is_fraud = np.zeros(rows, dtype=np.bool_)
    is_fraud[rng.choice(rows, size=round(rows * fraud_share), replace=False)] = True
    columns = (_times(rng, rows)[:, None], _components(rng, is_fraud), _amounts(rng, is_fraud)[:, None])
    return Transactions(np.hstack(columns).astype(np.float32), is_fraud)


def _times(rng: _Generator, rows: int) -> _Floats:
    """Whole seconds in ascending order: quiet at four in the morning, busy in the afternoon."""
    second = np.arange(TWO_DAYS_S)
    density = 1.0 - 0.85 * np.cos(2 * np.pi * (second / 3600 - 4) / 24)
    cumulative = np.cumsum(density)
    return np.sort(np.searchsorted(cumulative, rng.uniform(0, cumulative[-1], rows))).astype(np.float64)


def _components(rng: _Generator, is_fraud: npt.NDArray[np.bool_]) -> _Floats:
    """V1 to V28: mean zero, standard deviation falling from 2 to 0.3, tails heavier than normal."""
    deviation = np.geomspace(2.0, 0.3, 28)
    degrees = 5  # of freedom; a t distribution's variance is degrees / (degrees - 2)
    unit = rng.standard_t(degrees, size=(len(is_fraud), 28)) / np.sqrt(degrees / (degrees - 2))
    shifts = np.zeros(28)
    for component, shift in _FRAUD_SHIFTS.items():
        shifts[component - 1] = shift
    severity = rng.gamma(shape=2.5, scale=0.8, size=len(is_fraud)) * is_fraud
    return np.asarray((unit + severity[:, None] * shifts) * deviation)


def _amounts(rng: _Generator, is_fraud: npt.NDArray[np.bool_]) -> _Floats:
    """Log-normal, in whole cents; fraud spreads wider."""
    spread = np.where(is_fraud, 1.9, 1.5)
    amounts = np.exp(np.log(22.0) + spread * rng.standard_normal(len(is_fraud)))
    return np.asarray(np.round(amounts, 2))


def split(
    transactions: Transactions, seed: int, test_share: float = 0.3, max_test_rows: int = 12_000
) -> tuple[Transactions, Transactions]:
    """Divide into training and test transactions with the same share of fraud, each in order of time.

    At most ``max_test_rows`` go to the test side; what is over goes to training.
    """
    rng = np.random.default_rng(seed)
    share = min(test_share, max_test_rows / len(transactions))
    is_test = np.zeros(len(transactions), dtype=np.bool_)
    for label in (False, True):
        rows = np.flatnonzero(transactions.is_fraud == label)
        is_test[rng.choice(rows, size=max(1, int(len(rows) * share)), replace=False)] = True
    return transactions.take(np.flatnonzero(~is_test)), transactions.take(np.flatnonzero(is_test))


def read_csv(path: Path) -> Transactions:
    """Read a file of transactions. Columns may stand in any order, and further ones are ignored.

    Raises:
        TransactionFileError: no such file, a missing column, a cell that is no number, a label
            that is neither 0 nor 1, fewer than ``MIN_ROWS`` rows or ``MIN_FRAUDS`` frauds.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            transactions = _parse(path, csv.reader(file))
    except FileNotFoundError:
        raise TransactionFileError(path, "no such file") from None
    except OSError as error:
        raise TransactionFileError(path, f"can't be read: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise TransactionFileError(path, f"is no CSV text: {error}") from error
    _check_enough(path, transactions)
    return transactions


def _parse(path: Path, lines: Iterator[list[str]]) -> Transactions:
    header = [name.strip() for name in next(lines, [])]
    if not header:
        raise TransactionFileError(path, f"no header; the first line must name {_shape()}")
    columns = [_position(path, header, name) for name in (*FEATURES, LABEL)]
    cells = array("d")
    line_of_row = array("L")
    for line, row in enumerate(lines, start=2):
        if not row:
            continue  # a blank line, most often the last
        try:
            cells.extend([float(row[column]) for column in columns])
        except (ValueError, IndexError):
            raise TransactionFileError(path, _fault(header, columns, row), line) from None
        line_of_row.append(line)
    values = np.frombuffer(cells, dtype=np.float64).reshape(-1, len(columns))
    _check_values(path, values, line_of_row)
    return Transactions(values[:, :-1].astype(np.float32), values[:, -1] == 1)


def _position(path: Path, header: Sequence[str], name: str) -> int:
    if header.count(name) > 1:
        raise TransactionFileError(path, f"column {name!r} stands there twice", 1)
    if name not in header:
        raise TransactionFileError(path, f"column {name!r} is missing; the columns must be {_shape()}", 1)
    return header.index(name)


def _fault(header: Sequence[str], columns: Sequence[int], row: Sequence[str]) -> str:
    """Say which cell of a row that didn't convert is to blame."""
    if len(row) < len(header):
        return f"{len(row)} cells, and the header names {len(header)}"
    for column in columns:
        try:
            float(row[column])
        except ValueError:
            return f"column {header[column]!r} holds {row[column]!r}, which is no number"
    raise AssertionError("the row converts after all")


def _check_values(path: Path, values: _Floats, line_of_row: Sequence[int]) -> None:
    limit = np.finfo(np.float32).max
    unfit = np.argwhere(~(np.abs(values[:, :-1]) <= limit))  # "not <=" finds NaN as well
    if len(unfit):
        row, column = unfit[0]
        what = f"column {FEATURES[column]!r} holds {values[row, column]}, which is no finite float32"
        raise TransactionFileError(path, what, line_of_row[row])
    unlabelled = np.flatnonzero(~np.isin(values[:, -1], (0, 1)))
    if len(unlabelled):
        row = unlabelled[0]
        what = f"column {LABEL!r} holds {values[row, -1]:g}; it must be 0, or 1 for fraud"
        raise TransactionFileError(path, what, line_of_row[row])


def _check_enough(path: Path, transactions: Transactions) -> None:
    rows, frauds = len(transactions), transactions.frauds
    if rows < MIN_ROWS:
        raise TransactionFileError(path, f"{rows} transactions; at least {MIN_ROWS} are needed")
    if not frauds:
        raise TransactionFileError(path, f"no frauds: column {LABEL!r} is 0 in every row")
    if min(frauds, rows - frauds) < MIN_FRAUDS:
        what = f"{frauds} frauds among {rows} transactions; at least {MIN_FRAUDS} of each kind are needed"
        raise TransactionFileError(path, what)


def _shape() -> str:
    return "Time,V1..V28,Amount,Class"
