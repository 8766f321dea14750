"""The GPU benchmark where it is arithmetic: what is sent, what is compared with what, and the table."""

from __future__ import annotations

import signal
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from loadtests.gpu.bench import BASE, VARIANTS, Found, cases_of, plan, searched
from loadtests.gpu.cases import is_near
from loadtests.gpu.clients import seen_in
from loadtests.gpu.deadline import Deadline, OutOfTime
from loadtests.gpu.jobs import Sent
from loadtests.gpu.loops import Device, copying, graphed, link, resident
from loadtests.gpu.models import (
    BERT,
    FRAUD,
    IMAGE,
    IMAGE_BYTES,
    BertEncoder,
    Images,
    ResNet50,
    write_modules,
    write_repository,
)
from loadtests.gpu.payloads import CHECKED, checked_call, mix_of
from loadtests.gpu.pretend import Pretend
from loadtests.gpu.requirements import missing_packages
from loadtests.gpu.rows import rows_of
from loadtests.gpu.scale import REAL, REHEARSAL, Scale
from loadtests.gpu.server_says import Between, Scrape
from loadtests.gpu.table import Row, as_text
from loadtests.gpu.yardstick import Yardstick, best_rows

SCALES = pytest.mark.parametrize("scale", [REAL, REHEARSAL], ids=["real", "rehearsal"])
NINE_MINUTES_S = 540


def sent(since_s: list[float], done_s: list[float], **other: object) -> Sent:
    """One client, from 0 to 10 s, with nothing wrong."""
    whole = {"began_s": 0.0, "ended_s": 10.0, "late_s": np.zeros(1), "errors": {}, "busy": 0.5} | other
    return Sent(since_s=np.array(since_s), done_s=np.array(done_s), **whole)  # type: ignore[arg-type]


def loop(rows: int, model: str = "bert", **rates: float) -> dict[str, object]:
    return {"model": model, "rows": rows, "failed": {}} | {
        kind: {"rows_per_s": rate} for kind, rate in rates.items()
    }


def scraped(at_s: float, cpu_s: float = 0.0, **series: float) -> Scrape:
    """Series of the model ``m``; ``name__label__value`` has a label more."""
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for name, value in series.items():
        metric, _, more = name.partition("__")
        labels = dict([more.split("__")]) if more else {}
        found.setdefault(metric, []).append(({"model": "m", **labels}, value))
    return Scrape(at_s, cpu_s, found)


class TestPlan:
    def test_a_run_takes_less_than_nine_minutes_as_planned_and_as_enforced(self):
        assert sum(step.seconds for step in plan(REAL)) <= REAL.seconds.limit < NINE_MINUTES_S

    def test_every_configuration_but_the_first_changes_one_thing_or_shares_weights_too(self):
        assert VARIANTS[0] is BASE
        for each in VARIANTS[1:]:
            names = ("streams", "shares_weights", "cuda_graphs", "staging_slots")
            changed = {name for name in names if getattr(each, name) != getattr(BASE, name)}
            assert len(changed) == 1 or changed == {"streams", "shares_weights"}

    def test_whatever_is_compared_is_measured_with_the_base_too(self):
        for each in VARIANTS:
            assert set(cases_of(each)) <= set(cases_of(BASE))

    @SCALES
    def test_cases_have_names_of_their_own(self, scale: Scale):
        names = [case.name(scale) for case in cases_of(BASE)]
        assert len(set(names)) == len(names)


class TestDeadline:
    def test_there_is_no_room_for_what_would_take_what_is_kept(self):
        deadline = Deadline(100.0)
        assert deadline.has_room_for(60.0)
        deadline.kept_s = 50.0
        assert not deadline.has_room_for(60.0)

    def test_what_is_under_way_ends_when_the_time_is_over_even_where_errors_are_excused(self):
        def excusing() -> None:
            try:
                signal.pause()
            except Exception:
                pytest.fail("was excused")

        with pytest.raises(OutOfTime), Deadline(0.0).enforced():
            excusing()

    def test_who_cannot_end_is_not_waited_for(self, monkeypatch):
        monkeypatch.setattr("loadtests.gpu.deadline._AGAIN_S", 0.001)

        def stuck() -> None:
            try:
                signal.pause()
            finally:
                signal.pause()  # as the wait for a process that can't be killed

        with pytest.raises(OutOfTime), Deadline(0.0).enforced():
            stuck()


class TestMix:
    @SCALES
    def test_lengths_lie_in_their_buckets(self, scale: Scale):
        buckets, mix = scale.bert.buckets, mix_of(scale.bert)
        for below, bucket in zip((0, *buckets), buckets, strict=False):
            if bucket in mix.lengths:
                assert below < mix.lengths[bucket].min()
                assert mix.lengths[bucket].max() <= bucket
        assert scale.bert.shortest <= min(each.min() for each in mix.lengths.values())

    @SCALES
    def test_a_turn_has_its_number_of_batches_of_all_buckets(self, scale: Scale):
        turn = mix_of(scale.bert).turn
        assert len(turn) == scale.bert.turn
        assert set(turn) == set(scale.bert.buckets)

    def test_shares_are_those_of_what_was_drawn_to_a_batch(self):
        mix = mix_of(REAL.bert)
        drawn = sum(map(len, mix.lengths.values()))
        for bucket, count in Counter(mix.turn).items():
            assert abs(count / len(mix.turn) - len(mix.lengths[bucket]) / drawn) <= 1 / len(mix.turn)


class TestModels:
    def test_they_have_the_sizes_of_the_real_ones(self):
        # torchvision's resnet50 has 25,557,032; of these 53,120 are normalisations, for 26,560 biases here.
        # Hugging Face's bert-base-uncased has 109,482,240, with 512 places and two segments.
        with torch.device("meta"):
            image, encoder = ResNet50(REAL.resnet), BertEncoder(REAL.bert)
        assert sum(each.numel() for each in image.parameters()) == 25_557_032 - 53_120 + 26_560
        fewer = (512 - 128) * 768 + 768
        assert sum(each.numel() for each in encoder.parameters()) == 109_482_240 - fewer

    def test_bytes_are_normalised_as_photographs_are(self):
        inner = torch.nn.Identity()
        given = torch.full((1, 3, 2, 2), 255, dtype=torch.uint8)
        taken = Images(inner)(given)[0, :, 0, 0]
        expected = (1 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
        torch.testing.assert_close(taken, expected)

    def test_padding_changes_no_answer_of_the_encoder(self):
        torch.manual_seed(0)
        encoder = BertEncoder(REHEARSAL.bert).eval()
        ids = torch.tensor([[5, 6, 7]])
        padded = torch.cat([ids, torch.full((1, 5), 9)], dim=1)
        lengths = torch.tensor([[3]])
        torch.testing.assert_close(encoder(padded, lengths), encoder(ids, lengths))


class TestLoops:
    def device(self, cuda: object = None) -> Device:
        return Device(cuda or Pretend(), torch.device("cpu"), is_real=False)

    def test_every_loop_runs_all_sets_in_turn(self):
        seen: list[float] = []

        def module(x: torch.Tensor) -> torch.Tensor:
            seen.append(float(x[0]))
            return x + 1

        sets = [(torch.full((size,), float(size)),) for size in (2, 1, 3)]
        for run in (resident, copying):
            seen.clear()
            more = (lambda each: each,) if run is copying else ()
            timing = run(self.device(), module, sets, 0.0, 2, *more)
            assert timing.run_s > 0
            assert len(timing.repeats) == 2
            assert seen[:6] == [2.0, 1.0, 3.0] * 2
            assert len(seen) % 3 == 0

    def test_two_graphs_are_captured_for_each_shape(self):
        captured: list[object] = []

        class Counting(Pretend):
            @staticmethod
            def graph(graph, pool=None, stream=None):
                captured.append(graph)
                return Pretend.graph(graph, pool, stream)

        sets = [(torch.zeros(size),) for size in (4, 8, 4, 4, 8, 4)]
        graphed(self.device(Counting()), torch.relu, sets, 0.0, 1)
        assert len(captured) == 4

    def test_the_link_is_measured_each_way_alone_and_beside_the_other(self):
        found = link(self.device(), 64, 1)
        assert found.keys() == {"in", "out", "in_beside_out", "out_beside_in"}
        assert min(found.values()) > 0


class TestChecks:
    @pytest.mark.parametrize("model", [IMAGE, IMAGE_BYTES, BERT, FRAUD])
    def test_no_two_calls_that_answers_are_checked_with_are_alike(self, model: str):
        calls = [checked_call(REHEARSAL, model, number) for number in range(CHECKED)]
        assert len({(each.shape, each.tobytes()) for each in calls}) == CHECKED
        assert {each.shape[0] for each in calls} == {1}

    def test_what_a_model_makes_of_unlike_calls_is_told_apart(self, tmp_path: Path):
        write_modules(tmp_path, REHEARSAL)
        model = torch.jit.load(tmp_path / f"{IMAGE}.pt")
        calls = [torch.from_numpy(checked_call(REHEARSAL, IMAGE, number)) for number in range(CHECKED)]
        with torch.inference_mode():
            rows = [model(each)[0].double().numpy() for each in calls]
        places = range(CHECKED)
        assert all(is_near(rows[one], rows[other]) == (one == other) for one in places for other in places)

    def test_an_answer_may_be_rounded_and_nothing_else(self):
        wanted = np.array([1.0, -2.0])
        assert is_near(wanted * 1.01, wanted)
        for wrong in (wanted * 1.1, wanted * np.nan, wanted[:1], np.zeros(2)):
            assert not is_near(wrong, wanted)


class TestRepositories:
    def test_only_models_that_are_measured_are_served(self, tmp_path: Path):
        write_modules(tmp_path / "modules", REHEARSAL)
        write_repository(tmp_path / "served", tmp_path / "modules", REHEARSAL, BASE, {FRAUD: 8})
        assert [each.name for each in (tmp_path / "served").iterdir()] == [FRAUD]


class TestYardstick:
    def test_the_best_batch_is_the_smallest_that_is_nearly_as_good_as_any(self):
        loops = [loop(32, resident=900.0), loop(64, resident=985.0), loop(128, resident=1000.0)]
        assert best_rows(loops, "bert") == 64

    def test_a_batch_that_failed_is_passed_over_and_a_model_without_any_is_an_error(self):
        assert best_rows([loop(32, resident=1.0), loop(64)], "bert") == 32
        with pytest.raises(ValueError, match="no bare loop of bert"):
            best_rows([loop(64)], "bert")

    def test_is_the_better_kind_with_resident_inputs_averaged_over_before_and_after(self):
        before = [loop(8, resident=100.0, graphs=200.0, copies=900.0)]
        after = [loop(8, resident=100.0, graphs=300.0)]
        both = Yardstick(before, after)
        assert both.rate("bert", 8) == 250.0
        assert both.best_kind("bert", 8) == "graphs"
        assert both.of_kind("resident", "bert", 8) == 100.0
        assert both.drift("bert", 8) == pytest.approx(0.5)

    def test_without_a_second_measurement_there_is_no_drift(self):
        once = Yardstick([loop(8, resident=100.0)], [])
        assert (once.rate("bert", 8), once.drift("bert", 8)) == (100.0, None)
        assert once.rate("bert", 16) is None


class TestSeen:
    def test_counts_what_was_answered_inside_the_window_over_all_clients(self):
        both = [sent([0.5, 1.5, 2.5], [1.0, 2.0, 3.0]), sent([1.9], [2.5])]
        seen = seen_in(both, 2.0, 3.0, is_open=False)
        assert (seen.calls_per_s, seen.busy) == (2.0, 0.5)
        assert seen.p50_ms == pytest.approx(550.0)
        assert seen.faults == ()

    def test_a_window_without_answers_has_no_latency(self):
        seen = seen_in([sent([], [])], 2.0, 3.0, is_open=False)
        assert (seen.calls_per_s, seen.p50_ms, seen.p99_ms) == (0.0, None, None)

    @pytest.mark.parametrize(
        ("other", "is_open", "says"),
        [
            ({"began_s": 2.5}, False, "whole window"),
            ({"ended_s": 2.5}, False, "whole window"),
            ({"errors": {"8: full": 3}}, False, "3 calls were not answered well (8: full)"),
            ({"busy": 0.95}, False, "clients may be the limit"),
            ({"late_s": np.array([0.01])}, True, "10.0 ms late"),
        ],
    )
    def test_says_why_a_window_is_not_what_it_claims(self, other, is_open, says):
        (fault,) = seen_in([sent([2.0], [2.1], **other)], 2.0, 3.0, is_open=is_open).faults
        assert says in fault

    def test_an_open_loop_may_take_a_whole_core_and_a_closed_one_may_be_late(self):
        assert seen_in([sent([2.0], [2.1], busy=1.0)], 2.0, 3.0, is_open=True).faults == ()
        late = sent([2.0], [2.1], late_s=np.array([0.01]))
        assert seen_in([late], 2.0, 3.0, is_open=False).faults == ()


class TestServerSays:
    def test_tells_what_grew_between_two_scrapes(self):
        before = scraped(10.0, 1.0, nv_inference_count_total=100, nv_inference_exec_count_total=10)
        after = scraped(
            12.0,
            4.0,
            nv_inference_count_total=300,
            nv_inference_exec_count_total=60,
            tensorferry_device_batches_total__graph__true=30,
            tensorferry_device_batches_total__graph__false=20,
            tensorferry_device_run_seconds_total=1.5,
            tensorferry_device_bytes_total__direction__in=4000,
            tensorferry_device_bytes_total__direction__out=400,
            tensorferry_device_padded_rows_total=50,
            tensorferry_true_elements_total=60,
            tensorferry_padded_elements_total=20,
        )
        says = Between(before, after, "m")
        assert (says.batch_rows, says.graph_share, says.device_busy) == (4.0, 0.6, 0.75)
        assert (says.in_bytes_per_s, says.out_bytes_per_s) == (2000.0, 200.0)
        assert (says.padding, says.padded_rows, says.server_cores) == (0.25, 0.2, 1.5)

    def test_what_the_server_does_not_tell_is_none(self):
        says = Between(scraped(1.0), scraped(2.0), "m")
        assert says.batch_rows is says.graph_share is says.device_busy is None
        assert says.padding is says.padded_rows is says.in_bytes_per_s is None

    def test_other_models_do_not_count(self):
        says = Between(scraped(1.0), scraped(2.0, tensorferry_device_run_seconds_total=1.0), "other")
        assert says.device_busy is None

    def test_of_metrics_that_were_told_twice_nothing_is_concluded(self):
        before, after = (scraped(at_s, tensorferry_device_run_seconds_total=1.0) for at_s in (1.0, 2.0))
        assert Between(before, after, "m").device_busy is None

    def test_a_device_that_did_nothing_while_others_did_is_not_busy(self):
        before = scraped(1.0, tensorferry_device_run_seconds_total=1.0, nv_energy_consumption_total=5)
        after = scraped(2.0, tensorferry_device_run_seconds_total=1.0, nv_energy_consumption_total=6)
        assert Between(before, after, "m").device_busy == 0.0


class TestTable:
    def test_marks_notes_once_each_and_in_order(self):
        rows = [Row("a", "x", notes=("late", "odd")), Row("b", "x", notes=("odd",))]
        text = as_text(rows, judges=True)
        marks = {line.split()[0]: line.split()[-1] for line in text.splitlines() if line[:1] in ("a", "b")}
        assert marks == {"a": "1,2", "b": "2"}
        assert text.endswith("[1] late\n[2] odd")

    @SCALES
    def test_fits_120_columns_whatever_was_measured(self, scale: Scale):
        largest = {
            "rows_per_s": 987_654.0,
            "of_bare": 0.987,
            "of_base": 1.234,
            "p50_ms": 98.7,
            "p99_ms": 987.6,
        }
        shares = dict.fromkeys(("graph_share", "padding", "client_busy", "of_link"), 1.0)
        others = {"device_busy": 1.98, "batch_rows": 511.0, "in_gb_per_s": 54.3, "server_cores": 12.3}
        rows = [
            replace(row, figures=largest | shares | others, missing="", notes=("x", "y"))
            for row in rows_of(Found(), scale)
        ]
        table = as_text(rows, judges=True).split("\n\n")[0]
        assert max(map(len, table.splitlines())) <= 120

    def test_a_part_is_headed_by_its_configuration_once(self):
        rows = [Row("a", "x"), Row("b", "x"), Row("a", "y")]
        heads = [line for line in as_text(rows, judges=True).splitlines() if line.startswith("-- ")]
        assert [head.split()[1] for head in heads] == ["x", "y"]

    @pytest.mark.parametrize(
        ("row", "met"),
        [
            (Row("a", "x", {"of_bare": 0.95}, at_least=0.95), True),
            (Row("a", "x", {"of_bare": 0.94}, at_least=0.95), False),
            (Row("a", "x", {"device_busy": 0.8}, busy_at_most=0.8), True),
            (Row("a", "x", {"device_busy": 0.9}, busy_at_most=0.8), False),
            (Row("a", "x", {"device_busy": None}, busy_at_most=0.8), False),
            (Row("a", "x", at_least=0.95, missing="no time"), False),
            (Row("a", "x", {"of_bare": 0.1}), None),
        ],
    )
    def test_a_target_is_met_by_what_was_measured_alone(self, row: Row, met: bool | None):
        assert row.met is met
        word = {True: " yes ", False: " NO ", None: " - "}[met]
        assert word in as_text([row], judges=True) + " "

    def test_a_rehearsal_judges_nothing(self):
        text = as_text([Row("a", "x", {"of_bare": 0.1}, at_least=0.95)], judges=False)
        assert " NO " not in text
        assert ">=0.95" in text

    @SCALES
    def test_has_a_row_for_everything_even_if_nothing_was_measured(self, scale: Scale):
        rows = rows_of(Found(), scale)
        assert all(row.missing for row in rows)
        cases = sum(len(cases_of(each)) for each in VARIANTS)
        assert len(rows) == 1 + 3 * len(searched(scale)) + cases
        assert sum(" missing " in line for line in as_text(rows, judges=True).splitlines()) == len(rows)


def test_missing_packages_are_named_as_they_are_installed():
    (line,) = missing_packages({"json": "there", "no_such_module_here": "its-package"})
    assert line.startswith("its-package: ")
