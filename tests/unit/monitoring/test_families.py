"""Families on their way between processes."""

from __future__ import annotations

import json

import pytest

from tensorferry.monitoring.families import Distribution, Family, from_json, parts_of, to_json

LABELS = ("model", "version")


def family(kind: str, series: int) -> Family:
    keys = [(f'm{number}"\\\n', "1") for number in range(series)]
    if kind == "histogram":
        distributions = {key: Distribution((0.5, 1.0), [1, 2, 3], 4.5) for key in keys}
        return Family("x", "X", kind, LABELS, distributions=distributions)
    return Family("x", "X", kind, LABELS, "max", {key: float(2**53 - 1) for key in keys})


@pytest.mark.parametrize("kind", ["counter", "gauge", "histogram"])
@pytest.mark.parametrize("series", [0, 1, 64, 65, 2000])
def test_a_family_told_in_parts_is_the_same_again(kind: str, series: int):
    whole = family(kind, series)
    parts = list(parts_of(whole))
    assert len(parts) >= 1
    assert max(len(each.values) for each in parts) <= 512
    assert max(len(each.distributions) for each in parts) <= 64
    told = json.dumps([to_json({each.name: each})[0] for each in parts])
    assert from_json(json.loads(told)) == {"x": whole}
