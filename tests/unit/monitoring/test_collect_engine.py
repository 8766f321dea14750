"""What families tell of a real engine: they agree with each other, and with what was asked of it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
from tests.unit.live_support import CONFIG, write_version
from tests.unit.support import run, with_engine

from tensorferry.batching.statistics import Counters
from tensorferry.engine import Engine
from tensorferry.errors import TensorferryError
from tensorferry.monitoring.collect_engine import ROWS_BOUNDS, EngineCollector, _rows
from tensorferry.monitoring.families import Families
from tensorferry.repository import scan
from tensorferry.rollout.state import Rollout, Share
from tensorferry.tensors import Tensor, tensor_of

KEY = ("m", "1")
OBJECTIVE = CONFIG.replace("dynamic_batching { }", "") + (
    'dynamic_batching { }\nparameters { key: "latency_objective_ms" value { string_value: "2500" } }\n'
)
PER_VERSION_HISTOGRAMS = (
    "tensorferry_queue_seconds",
    "tensorferry_hold_seconds",
    "tensorferry_run_seconds",
    "tensorferry_response_seconds",
)


def column(rows: int) -> list[Tensor]:
    return [tensor_of("x", np.ones((rows, 1), np.float32))]


async def collected(engine: Engine) -> Families:
    return await EngineCollector(engine).collect()


async def call(engine: Engine, *rows: int) -> None:
    await asyncio.gather(*(engine.infer("m", column(each)) for each in rows))


def count_of(families: Families, name: str) -> int:
    return families[name].distributions[KEY].count


def test_the_families_of_one_version_agree_with_each_other(tmp_path: Path):
    write_version(tmp_path, 1)

    async def use(engine: Engine) -> Families:
        await call(engine, 1, 1, 2, 3)
        await call(engine, 4)
        with pytest.raises(TensorferryError):
            await engine.infer("m", column(1), timeout_s=0.0)
        return await collected(engine)

    families = with_engine(tmp_path, use)

    def value(name: str) -> float:
        return families[name].values[KEY]

    def all_reasons(name: str) -> float:
        return sum(each for key, each in families[name].values.items() if key[:2] == KEY)

    answered, batches = value("nv_inference_request_success"), value("nv_inference_exec_count")
    assert answered == 5
    assert value("nv_inference_count") == 11
    assert count_of(families, "tensorferry_queue_seconds") == answered
    assert count_of(families, "tensorferry_response_seconds") == answered
    assert count_of(families, "tensorferry_run_seconds") == batches
    assert count_of(families, "tensorferry_hold_seconds") == batches
    assert count_of(families, "tensorferry_batch_rows") == batches
    assert families["tensorferry_batch_rows"].distributions[KEY].total == 11
    assert all_reasons("tensorferry_batch_departures") == batches
    assert all_reasons("nv_inference_request_failure") == 1
    assert value("nv_inference_request_duration_us") == pytest.approx(
        value("nv_inference_queue_duration_us")
        + value("nv_inference_compute_input_duration_us")
        + value("nv_inference_compute_infer_duration_us")
        + value("nv_inference_compute_output_duration_us")
    )
    assert value("nv_inference_pending_request_count") == 0
    assert value("tensorferry_worker_streams") == 1
    assert value("tensorferry_worker_streams_busy") == 0
    assert value("tensorferry_model_ready") == 1
    assert value("tensorferry_model_loads") == 1


def test_only_a_model_with_an_objective_has_one(tmp_path: Path):
    write_version(tmp_path, 1)
    write_version(tmp_path, 1, name="hurried", config=OBJECTIVE)
    families = with_engine(tmp_path, collected)
    assert families["tensorferry_latency_objective_seconds"].values == {("hurried", "1"): 2.5}


def test_labels_and_shares_are_those_of_the_rollout(tmp_path: Path):
    config = CONFIG + "version_policy { all { } }\n"
    for version in (1, 2):
        write_version(tmp_path, version, config=config)

    async def use(engine: Engine) -> tuple[Families, Families]:
        before = await collected(engine)
        engine.set_rollout("m", Rollout({"stable": 1, "next": 2}, (Share("next", 1.0), Share("stable", 3.0))))
        return before, await collected(engine)

    before, after = with_engine(tmp_path, use)
    assert before["tensorferry_model_share"].values == {("m", "2"): 1.0}
    assert before["tensorferry_model_label"].values == {}
    assert after["tensorferry_model_share"].values == {("m", "1"): 0.75, ("m", "2"): 0.25}
    assert after["tensorferry_model_label"].values == {("m", "1", "stable"): 1, ("m", "2", "next"): 1}


def test_a_model_whose_configuration_is_refused_is_not_ready(tmp_path: Path):
    write_version(tmp_path, 1)
    write_version(tmp_path, 1, name="wrong", config="max_batch_size: ten\n")
    families = with_engine(tmp_path, collected)
    ready = families["tensorferry_model_ready"].values
    assert ready[KEY] == 1
    assert [value for (name, _), value in ready.items() if name == "wrong"] == [0]


def test_a_version_that_fails_to_load_is_not_ready_and_counted(tmp_path: Path):
    (write_version(tmp_path, 1) / "model.pt").write_bytes(b"nothing")
    families = with_engine(tmp_path, collected)
    assert families["tensorferry_model_ready"].values == {KEY: 0}
    assert families["tensorferry_model_load_failures"].values == {KEY: 1}
    assert families["nv_inference_request_success"].values == {KEY: 0}


def test_without_monitoring_there_are_counters_and_no_distributions_of_time(tmp_path: Path):
    write_version(tmp_path, 1)

    async def main() -> Families:
        engine = Engine(64, 2**30, has_histograms=False)
        await engine.load_all(scan(tmp_path))
        await call(engine, 1, 2)
        families = await collected(engine)
        await engine.close()
        return families

    families = run(main())
    assert families["nv_inference_request_success"].values == {KEY: 2}
    assert all(not families[name].distributions for name in PER_VERSION_HISTOGRAMS)
    assert count_of(families, "tensorferry_batch_rows") == families["nv_inference_exec_count"].values[KEY]


def test_batches_are_counted_under_the_least_bound_that_holds_their_rows():
    counters = Counters()
    for rows in (1, 2, 3, 4, 5, 4096, 4097):
        counters.executed(rows)
    counted = _rows(counters.snapshot(0, 0))
    by_bound = dict(zip((*ROWS_BOUNDS, None), counted.counts, strict=True))
    assert {bound: count for bound, count in by_bound.items() if count} == {
        1.0: 1,
        2.0: 1,
        4.0: 2,
        8.0: 1,
        4096.0: 1,
        None: 1,
    }
    assert counted.total == 1 + 2 + 3 + 4 + 5 + 4096 + 4097


def test_every_label_of_every_series_is_named(tmp_path: Path):
    write_version(tmp_path, 1)
    for family in with_engine(tmp_path, collected).values():
        for key in (*family.values, *family.distributions):
            assert len(key) == len(family.labels), family.name
            assert all(isinstance(each, str) for each in key), family.name
