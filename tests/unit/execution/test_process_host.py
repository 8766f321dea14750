"""Models in processes of their own. The children are real: what matters here is how they end."""

from __future__ import annotations

import gc
import os
import re
import select
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import structlog

from tensorferry.errors import ModelFailed, ModelLoadError
from tensorferry.execution.backends.process_host import ProcessModel, open_in_process
from tensorferry.execution.backends.process_memory import OutputRegions, Region
from tensorferry.execution.backends.process_wire import (
    Malformed,
    check_outputs,
    completed,
    decode,
    decode_order,
    described,
    encode,
    encode_order,
)
from tensorferry.execution.backends.python import load_here, open_model
from tensorferry.execution.warmup import warm_up
from tensorferry.model import BatchInput, ModelSpec, TensorSpec
from tensorferry.repository.parameters import PARAMETERS
from tensorferry.tensors import DATATYPES, array_of

DOUBLING = """
class Model:
    def run(self, inputs):
        x = inputs["x"]
        x *= 2
        return {"y": x}
"""

#: What a row of a negative number does; a positive one is doubled.
FAILING = """
import os, signal, sys, threading

class Model:
    def run(self, inputs):
        x = inputs["x"]
        wish = x.min()
        if wish == -1:
            raise KeyError("minus one")
        if wish == -2:
            print("last words")
            sys.exit(3)
        if wish == -3:
            os.abort()
        if wish == -4:
            os.kill(os.getpid(), signal.SIGKILL)
        if wish == -5:
            threading.Event().wait()
        return {"y": x * 2}
"""


def spec_of(
    path: Path, dims: tuple[int, ...] = (1,), datatype: str = "FP32", out: str = "FP32", **more
) -> ModelSpec:
    more.setdefault("max_batch_size", 64)
    return ModelSpec(
        "m",
        1,
        path,
        inputs=(TensorSpec("x", DATATYPES[datatype], dims),),
        outputs=(TensorSpec("y", DATATYPES[out], dims),),
        **more,
    )


def rows(*values: float) -> BatchInput:
    return BatchInput("x", "FP32", (len(values), 1), [struct.pack("<f", value) for value in values])


def wide(value: float, width: int) -> BatchInput:
    return BatchInput("x", "FP32", (1, width), [np.full(width, value, np.float32).tobytes()])


def answer(model: ProcessModel, *values: float) -> list[float]:
    return array_of(model.run([rows(*values)]).outputs[0]).ravel().tolist()


def failure(model: ProcessModel, *values: float) -> str:
    with pytest.raises(ModelFailed) as caught:
        model.run([rows(*values)])
    return str(caught.value)


def wait_gone(pid: int) -> None:
    """Return once the process is over, reaped or not."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    assert poller.poll(30_000), f"process {pid} is still there"
    os.close(fd)


@pytest.fixture
def opened(tmp_path):
    """Write ``model.py`` and open it; closed in the end."""
    models = []

    def open_text(text: str, dims: tuple[int, ...] = (1,), **more) -> ProcessModel:
        path = tmp_path / "model.py"
        path.write_text(text)
        model = open_model(spec_of(path, dims, **more), "cpu")
        model.attach(1)
        models.append(model)
        return model

    yield open_text
    for model in models:
        model.close()


@pytest.fixture
def refused(tmp_path):
    """Write ``model.py`` and return why it doesn't load."""

    def refusal(text: str, **more) -> str:
        path = tmp_path / "model.py"
        path.write_text(text)
        with pytest.raises(ModelLoadError) as caught:
            open_model(spec_of(path, **more), "cpu")
        return str(caught.value)

    return refusal


def test_a_batch_of_several_requests_is_joined_and_answered_in_order(opened: Callable[..., ProcessModel]):
    model = opened(DOUBLING)
    assert answer(model, 1.0, 2.0, 3.0) == [2.0, 4.0, 6.0]
    assert answer(model, 5.0) == [10.0]
    assert model.spec.execution == "thread", "the loop can't wait for a process"
    assert set(warm_up(model).run_s) == {1, 2, 4, 8, 16, 32, 64}


def test_an_answer_stays_as_it_was_while_later_batches_run(opened: Callable[..., ProcessModel]):
    width = 100_000  # too large to be copied out
    model = opened(DOUBLING, dims=(width,))
    answers = [model.run([wide(value, width)]).outputs[0] for value in range(12)]
    for value, output in enumerate(answers):
        assert (array_of(output) == 2.0 * value).all()


def test_a_region_is_written_to_again_once_the_last_view_of_it_is_dropped():
    regions = OutputRegions()
    size = 1_000_000
    first = regions.take(size)
    piece = first[10:20]
    del first
    used = set()
    for _ in range(8):
        used.add(regions.current)
        regions.take(size)
    assert 0 not in used, "a view of it is held"
    del piece
    for _ in range(8):
        used.add(regions.current)
        regions.take(size)
    assert 0 in used
    regions.close()


def test_a_region_cannot_be_shrunk_under_its_reader():
    region = Region()
    region.reserve(100_000)
    with pytest.raises(PermissionError):
        os.ftruncate(region.fd, 0)
    region.close()


def test_what_the_model_raises_comes_with_its_name_and_its_traceback(opened: Callable[..., ProcessModel]):
    model = opened(FAILING)
    pid = model.pid
    with pytest.raises(Exception, match="minus one") as caught:
        model.run([rows(-1.0)])
    assert type(caught.value).__name__ == "KeyError"
    assert "model.py" in str(caught.value)
    assert "line 9" in str(caught.value)
    assert answer(model, 3.0) == [6.0]
    assert model.pid == pid


@pytest.mark.parametrize(
    ("wish", "how"),
    [
        (-2.0, "ended with status 3"),
        (-3.0, "was killed by SIGABRT"),
        (-4.0, "was killed by SIGKILL"),
    ],
)
def test_a_process_that_dies_fails_its_batch_and_is_started_again(
    opened: Callable[..., ProcessModel], wish: float, how: str
):
    model = opened(FAILING)
    message = failure(model, wish)
    assert how in message
    assert "error id" in message
    assert answer(model, 3.0) == [6.0]


def test_a_process_that_keeps_dying_is_not_waited_for(opened: Callable[..., ProcessModel]):
    model = opened(FAILING)
    messages = [failure(model, -4.0) for _ in range(4)]
    pauses = [re.findall(r"started again in (\S+) s", message) for message in messages]
    assert pauses == [["0.1"], ["0.2"], ["0.4"], ["0.8"]]
    assert re.search(r"its process died and is tried again in 0\.\d s", failure(model, 3.0))


def test_a_batch_does_not_fail_as_the_process_died_before_it(opened: Callable[..., ProcessModel]):
    model = opened(DOUBLING)
    assert model.pid is not None
    os.kill(model.pid, 9)
    wait_gone(model.pid)
    assert answer(model, 3.0) == [6.0]


def test_a_run_that_takes_too_long_is_given_up(opened: Callable[..., ProcessModel]):
    model = opened(FAILING, run_timeout_ms=300.0)
    assert answer(model, 1.0) == [2.0]
    assert "longer than run_timeout_ms, 300 ms" in failure(model, -5.0)
    assert answer(model, 1.0) == [2.0]


def test_of_a_flood_of_lines_a_part_is_logged_and_the_rest_counted(opened: Callable[..., ProcessModel]):
    with structlog.testing.capture_logs() as logs:
        model = opened(
            "class Model:\n"
            "    def run(self, inputs):\n"
            "        for number in range(20_000): print('line', number)\n"
            "        return {'y': inputs['x']}\n"
        )
        assert answer(model, 1.0) == [1.0]
        model.close()
    printed = [entry["line"] for entry in logs if entry["event"] == "model printed"]
    left_out = sum(entry["lines_left_out"] for entry in logs if entry["event"] == "model prints too much")
    assert printed[:3] == ["line 0", "line 1", "line 2"]
    assert len(printed) < 2_000
    assert len(printed) + left_out == 20_000


def test_closing_frees_the_model_and_ends_its_process(opened: Callable[..., ProcessModel], tmp_path: Path):
    said = tmp_path / "said"
    model = opened(DOUBLING + f"    def close(self):\n        open({str(said)!r}, 'w').close()\n")
    pid = model.pid
    assert pid is not None
    model.close()
    assert said.exists()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_model_that_is_dropped_leaves_no_process(tmp_path: Path):
    (tmp_path / "model.py").write_text(DOUBLING)
    pid = open_model(spec_of(tmp_path / "model.py"), "cpu").pid
    gc.collect()
    assert pid is not None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_child_that_talks_nonsense_is_killed(opened: Callable[..., ProcessModel]):
    model = opened(
        "import socket, sys\n"
        "class Model:\n"
        "    def run(self, inputs):\n"
        "        socket.socket(fileno=int(sys.argv[3])).send(b'\\x80nonsense')\n"
    )
    assert "it sent what isn't JSON" in failure(model, 1.0)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import no_such_module\n", "ModuleNotFoundError: No module named 'no_such_module' (model.py:1)"),
        ("class Model:\n    def run(self\n", "model.py:2: '(' was never closed"),
        ("class Other:\n    pass\n", "must hold a class Model with a method run"),
        ("class TritonPythonModel:\n    def execute(self, requests): ...\n", "name the class Model"),
        (
            "class Model:\n"
            "    def run(self, inputs): ...\n"
            "    def load(self, directory, device):\n"
            "        raise OSError('no weights')\n",
            "OSError: no weights (model.py:4)",
        ),
        ("import os\nprint('so it ends', flush=True)\nos._exit(7)\n", "ended with status 7 while it loaded"),
        ("import os\nprint('so it ends', flush=True)\nos._exit(7)\n", "so it ends"),
    ],
)
def test_a_model_that_does_not_load_says_why(refused: Callable[..., str], text: str, said: str):
    assert said in refused(text)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"from_signature": True}, "write a config.pbtxt"),
        ({"datatype": "BF16"}, "'x' is BF16"),
        ({"out": "BYTES"}, "'y' is BYTES"),
        ({"execution": "inline"}, "set its execution to thread"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(
    refused: Callable[..., str], more: dict[str, object], said: str
):
    assert said in refused(DOUBLING, **more)


def test_numeric_libraries_are_told_their_threads(opened: Callable[..., ProcessModel]):
    text = (
        "import os\n"
        "class Model:\n"
        "    def run(self, inputs):\n"
        "        return {'y': inputs['x'] * 0 + float(os.environ['OMP_NUM_THREADS'])}\n"
    )
    assert answer(opened(text, intra_op_threads=3), 1.0) == [3.0]


def test_the_opener_itself_may_be_missing(tmp_path: Path):
    with pytest.raises(ModelLoadError, match="no_such_module"):
        open_in_process("no_such_module:opener", spec_of(tmp_path / "model.py"), "cpu")


def test_a_model_imports_its_neighbours_and_finds_its_files(
    opened: Callable[..., ProcessModel], tmp_path: Path
):
    (tmp_path / "factors.py").write_text("FACTOR = 3\n")
    (tmp_path / "offset.txt").write_text("10")
    model = opened(
        "import factors\n"
        "class Scaler:\n"
        "    def load(self, directory, device):\n"
        "        self.offset = float((directory / 'offset.txt').read_text())\n"
        "    def run(self, inputs):\n"
        "        return {'y': inputs['x'] * factors.FACTOR + self.offset}\n"
    )
    assert answer(model, 1.0) == [13.0]
    assert not list(tmp_path.glob("__pycache__"))


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        ("inputs['x']", "returned a ndarray, and must return a dict"),
        ("{'z': inputs['x']}", "returned the outputs ['z'], and its configuration names ['y']"),
        ("{'y': inputs['x'].tolist()}", "is a list, and must be a numpy array"),
        ("{'y': inputs['x'].astype('float64')}", "is float64 (FP64), and its configuration says FP32"),
        ("{'y': inputs['x'][1:]}", "has shape [1, 1], expected [2, 1] for a batch of 2 rows"),
        ("{'y': inputs['x'].reshape(-1)}", "has shape [2], expected [2, 1]"),
    ],
)
def test_outputs_that_are_not_as_configured_are_refused(tmp_path: Path, returned: str, said: str):
    path = tmp_path / "model.py"
    path.write_text(f"class Model:\n    def run(self, inputs):\n        return {returned}\n")
    model = load_here(spec_of(path), "cpu")
    with pytest.raises(ModelFailed) as caught:
        model.run([rows(1.0, 2.0)])
    assert said in str(caught.value)


def test_the_specification_arrives_as_it_was(tmp_path: Path):
    spec = spec_of(tmp_path, padding=None)
    target, device, arrived = decode_order(encode_order("a:b", "cpu", spec))
    assert (target, device, arrived) == ("a:b", "cpu", spec)
    assert arrived.inputs[0].datatype is DATATYPES["FP32"], "datatypes are compared by identity"


def test_loading_may_teach_names_and_datatypes_and_nothing_else(tmp_path: Path):
    bare = replace(spec_of(tmp_path), inputs=(), outputs=(), from_signature=True)
    learned = replace(
        bare, inputs=(TensorSpec("a"),), outputs=(TensorSpec("b", DATATYPES["FP32"], (-1,)),), name="other"
    )
    _, fields = decode(encode("loaded", *described(learned)))
    spec = completed(bare, fields)
    assert (spec.name, spec.inputs, spec.outputs) == ("m", learned.inputs, learned.outputs)


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"{}",
        b"[]",
        b"[7]",
        b"[" * 100_000,
        b'["loaded"]',
        b'["loaded", [], [], []]',
        b'["loaded", [], [["y", "FP31", null]], []]',
        b'["loaded", [], [["y", "FP32", [-2]]], []]',
        b'["loaded", [], [["", "FP32", [1]]], []]',
        b'["loaded", [], [["y", "FP32", [1]]], [["FP32"]]]',
    ],
)
def test_what_a_child_says_of_its_model_is_checked(tmp_path: Path, message: bytes):
    with pytest.raises(Malformed):
        completed(spec_of(tmp_path), decode(message)[1])


@pytest.mark.parametrize(("text", "timeout_ms"), [("250", 250.0), ("0", 0.0), ("0.5", 0.5)])
def test_the_parameter_says_how_long_a_run_may_take(tmp_path: Path, text: str, timeout_ms: float):
    assert PARAMETERS["run_timeout_ms"].parse(spec_of(tmp_path), text).run_timeout_ms == timeout_ms


@pytest.mark.parametrize("text", ["", "-1", "nan", "1 s", "1e9", "0.0001"])
def test_a_timeout_that_is_none_is_refused(tmp_path: Path, text: str):
    with pytest.raises(ValueError, match="milliseconds"):
        PARAMETERS["run_timeout_ms"].parse(spec_of(tmp_path), text)


@pytest.mark.parametrize(
    "tensors",
    [
        None,
        [],
        [["y", "FP32", [1, 1], 0, 4], ["y", "FP32", [1, 1], 0, 4]],
        [["z", "FP32", [1, 1], 0, 4]],
        [["y", "FP32", [1, 1], -4, 4]],
        [["y", "FP32", [1, 1], 0, 400]],
        [["y", "FP32", [1, -1], 0, -4]],
        [["y", "FP32", [1, True], 0, 4]],
        [["y", ["FP32"], [1, 1], 0, 4]],
        [["y", "FP32", [1, 1], 0.0, 4]],
        [["y", "FP32", {"a": 1}, 0, 4]],
    ],
)
def test_a_child_cannot_make_the_server_read_what_is_no_output(tmp_path: Path, tensors: object):
    with pytest.raises(Malformed):
        check_outputs(spec_of(tmp_path), tensors)
    assert check_outputs(spec_of(tmp_path), [["y", "FP32", [1, 1], 64, 4]]) == 68
