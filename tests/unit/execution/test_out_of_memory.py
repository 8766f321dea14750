from __future__ import annotations

import gc
import weakref

import pytest
import torch
from tests.unit.execution.launching_support import RUN, LaunchingPuppet
from tests.unit.support import model_spec, tensor_spec

from tensorferry.device import DeviceRun
from tensorferry.errors import ModelFailed, ModelLoadError, OutOfDeviceMemory
from tensorferry.execution.out_of_memory import refusing_out_of_memory
from tensorferry.execution.warmup import warm_up
from tensorferry.model import RunResult
from tensorferry.testing.puppet import echo

SPEC = model_spec([tensor_spec("x", "UINT8", (1,))], max_batch_size=4, devices=("cuda:0", "cuda:0"))
FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nSee the documentation")


def refusal(error: Exception, device="cuda:0") -> str:
    with pytest.raises(ModelLoadError) as caught, refusing_out_of_memory(SPEC, device):
        raise error
    return str(caught.value)


def test_full_device_is_a_load_error_that_says_what_to_lower():
    message = refusal(FULL)
    assert message.startswith(
        "model 'm' version 1: cuda:0 has no room for 2 copies of m/1/model.pt and a run"
    )
    assert "(CUDA out of memory. Tried to allocate 2.00 GiB.)" in message
    assert "max_batch_size" in message
    assert "ENABLE_WEIGHT_SHARING" in message


def test_full_device_is_found_behind_the_error_that_it_led_to():
    outer = ModelLoadError("raises on a batch of 4 rows")
    outer.__cause__ = FULL
    assert "Tried to allocate" in refusal(outer)
    assert "not even a row" in refusal(OutOfDeviceMemory("not even a row"))


@pytest.mark.parametrize("error", [ModelLoadError("no such file"), RuntimeError("CUDA error"), MemoryError()])
def test_other_errors_are_left_as_they_are(error):
    with pytest.raises(type(error)) as caught, refusing_out_of_memory(SPEC, "cuda:0"):
        raise error
    assert caught.value is error


def test_nothing_changes_on_the_cpu():
    with pytest.raises(torch.OutOfMemoryError) as caught, refusing_out_of_memory(SPEC, "cpu"):
        raise FULL
    assert caught.value is FULL


def test_what_was_loaded_until_then_is_freed_though_the_error_lives_on():
    class Weights:
        pass

    freed = []

    def load():
        weights = Weights()
        weakref.finalize(weights, freed.append, True)
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with pytest.raises(ModelLoadError) as caught, refusing_out_of_memory(SPEC, "cuda:0"):
        load()
    gc.collect()
    assert freed == [True]
    assert caught.value.__cause__ is not None


class Small(LaunchingPuppet):
    """A device with room for two rows at once."""

    def __init__(self, behaviour) -> None:
        super().__init__(SPEC)
        self._behaviour = behaviour

    def run(self, inputs) -> RunResult:
        if inputs[0].shape[0] > 2:
            return self._behaviour(inputs)
        return super().run(inputs)


def raising(error):
    def behave(inputs):
        raise error

    return behave


def in_pieces(inputs) -> RunResult:
    run = DeviceRun(RUN.copy_in_ns, RUN.run_ns, RUN.copy_out_ns, row_limit=2, out_of_memory=True)
    return RunResult(echo(inputs), 1, 2, 3, run)


@pytest.mark.parametrize("behaviour", [raising(FULL), in_pieces, raising(OutOfDeviceMemory("full"))])
def test_model_whose_largest_batch_has_no_room_is_refused_at_warm_up(behaviour):
    with pytest.raises(ModelLoadError, match="cuda:0 has no room for 2 copies") as caught:
        warm_up(Small(behaviour))
    assert "max_batch_size" in str(caught.value)


def test_graphs_that_there_is_no_room_for_refuse_the_model_too():
    with pytest.raises(ModelLoadError, match="cuda:0 has no room"):
        warm_up(LaunchingPuppet(SPEC, prepare_error=FULL))


def test_other_failures_of_warm_up_say_what_they_said():
    with pytest.raises(ModelLoadError, match="wrong shape"):
        warm_up(Small(raising(ModelFailed("wrong shape"))))


def test_model_on_a_gpu_is_prepared_after_its_warm_up():
    model = LaunchingPuppet(SPEC)
    assert list(warm_up(model).run_s) == [1, 2, 4]
    assert model.story == ["run", "prepare", "run"], "it is timed anew with its graphs"
