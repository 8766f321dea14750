"""What was found, as rows of the table, in the plan's order: those that are missing too. Arithmetic alone."""

from __future__ import annotations

from typing import Any, Final

from loadtests.gpu.bench import BASE, VARIANTS, Found, cases_of, searched
from loadtests.gpu.cases import Case, Measured
from loadtests.gpu.models import BERT, FRAUD, IMAGE, IMAGE_BYTES, Variant
from loadtests.gpu.payloads import mix_of
from loadtests.gpu.scale import Scale
from loadtests.gpu.table import Row

__all__ = ["details_of", "rows_of"]

_AT_LEAST: Final = 0.95
_BUSY_AT_MOST: Final = 0.8
_DRIFT: Final = 0.05

_KINDS: Final = {"resident": "", "graphs": ", graphs", "copies": ", with copies"}
_BARE: Final = "the link, and bare loops: without a server, inputs on the device unless it says copies"


def rows_of(found: Found, scale: Scale) -> list[Row]:
    """Return the link, the bare loops, and every case of every configuration."""
    rows = [_link(found, scale)]
    rows += [_bare(found, model, kind) for model in searched(scale) for kind in _KINDS]
    for variant in VARIANTS:
        rows += [_case(found, scale, variant, case) for case in cases_of(variant)]
    return rows


def _link(found: Found, scale: Scale) -> Row:
    size = scale.link_bytes / 2**20
    case = f"copies of {size:g} MiB"
    link = found.bare.get("before", {}).get("link")
    if link is None:
        return Row(case, _BARE, missing="the bare loops didn't run")
    figures = {"in_gb_per_s": link["in"] / 1e9, "out_gb_per_s": link["out"] / 1e9, "of_link": 1.0}
    both = (
        f"the link: pinned memory, one way alone; {link['out'] / 1e9:.3g} GB/s out, and at once"
        f" {link['in_beside_out'] / 1e9:.3g} in and {link['out_beside_in'] / 1e9:.3g} out"
    )
    return Row(case, _BARE, figures, notes=(both,))


def _bare(found: Found, model: str, kind: str) -> Row:
    count = found.rows.get(model)
    case = f"{model}{_KINDS[kind]}"
    if count is None:
        return Row(case, _BARE, missing="the bare loops didn't run")
    yardstick = found.yardstick
    rate = yardstick.of_kind(kind, model, count)
    if rate is None:
        failed = [loop["failed"].get(kind) for loop in yardstick.before if loop["model"] == model]
        return Row(case, _BARE, missing=next(filter(None, failed), "it failed"))
    best = yardstick.rate(model, count)
    notes = []
    if kind == yardstick.best_kind(model, count):
        notes.append(
            'what "of bare" of its model is of: the better of the loops with inputs on the device, with the'
            " smallest batch within 2 % of the best; mean of before and after the servers"
        )
        notes += _drift(found, model, count)
    figures = {"rows_per_s": rate, "of_bare": rate / best if best else None, "batch_rows": float(count)}
    return Row(case, _BARE, figures, notes=tuple(notes))


def _drift(found: Found, model: str, count: int) -> list[str]:
    drift = found.yardstick.drift(model, count)
    if drift is None:
        return ["the bare loops were not measured again after the servers: no drift is known"]
    if abs(drift) > _DRIFT:
        return [
            f"the bare loop of {model} did {drift:+.1%} after the servers against before: mind the ratios"
        ]
    return []


def _case(found: Found, scale: Scale, variant: Variant, case: Case) -> Row:
    at_least = busy_at_most = None
    if variant is BASE and case.model in (IMAGE, BERT) and not (case.is_open or case.is_large_call):
        at_least = _AT_LEAST
    if case.model == FRAUD and not case.is_open and variant.name in (BASE.name, "graphs_off"):
        busy_at_most = _BUSY_AT_MOST
    name = case.name(scale)
    measured = found.of(variant, case)
    if measured is None:
        missing = found.missing.get((variant.name, case), "it wasn't run")
        return Row(name, variant.says, {}, at_least, busy_at_most, (), missing)
    figures = _figures(found, measured)
    if case.model == BERT:
        figures["tokens_per_s"] = measured.rows_per_s * mix_of(scale.bert).mean_tokens
    notes = measured.seen.faults
    if busy_at_most is not None and variant.cuda_graphs == "off":
        notes += ("without graphs, busy counts the time that the device waits for the next kernel's launch",)
    return Row(name, variant.says, figures, at_least, busy_at_most, notes)


def _figures(found: Found, measured: Measured) -> dict[str, float | None]:
    case, says, link = measured.case, measured.says, found.bare["before"]["link"]
    base = None if measured.variant is BASE else found.of(BASE, case)
    bare = found.yardstick.rate(case.model, found.rows[case.model])
    # A loop of the fraud model says nothing of calls of one row; an open one's rate is what it was told.
    is_comparable = case.model in (IMAGE, IMAGE_BYTES, BERT) and not case.is_open
    inward, outward = says.in_bytes_per_s, says.out_bytes_per_s
    return {
        "rows_per_s": measured.rows_per_s,
        "of_bare": measured.rows_per_s / bare if bare and is_comparable else None,
        "of_base": measured.rows_per_s / base.rows_per_s if base and base.rows_per_s else None,
        "p50_ms": measured.seen.p50_ms,
        "p99_ms": measured.seen.p99_ms,
        "batch_rows": says.batch_rows,
        "graph_share": says.graph_share,
        "device_busy": says.device_busy,
        "gpu_utilization": measured.gpu.get("utilization"),
        "in_gb_per_s": None if inward is None else inward / 1e9,
        "of_link": None if inward is None else inward / link["in"],
        "out_gb_per_s": None if outward is None else outward / 1e9,
        "padding": says.padding if case.model == BERT else None,
        "padded_rows": says.padded_rows,
        "server_cores": says.server_cores,
        "client_busy": measured.seen.busy,
    }


def details_of(found: Found) -> list[dict[str, Any]]:
    """Return what the table has no room for, of each case, as plain values for JSON."""
    return [
        {
            "model": each.case.model,
            "configuration": each.variant.name,
            "way": each.case.way,
            "open_loop": each.case.is_open,
            "nvml": each.gpu,
            "copying": each.says.copying,
            "memory_bytes": each.says.memory_bytes,
            "errors": each.seen.errors,
            "seconds": each.says.seconds,
        }
        for each in found.measured
    ]
