"""System shared memory with the unmodified tritonclient: the server is real, and so are the objects."""

from __future__ import annotations

import itertools
import os
import signal
import sys
import threading
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from tests.integration.support import PATIENCE_S, wait_until
from tests.integration.test_processes import children, is_ready
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from tensorferry.service.shared_requests import INLINE_BYTES
from tensorferry.testing.gate import Gate, write_gated
from tensorferry.testing.models import write_identity, write_raising, write_two_inputs
from tensorferry.testing.process import ServerProcess
from tensorferry.wire import open_inference_pb2 as pb
from tensorferry.wire import open_inference_pb2_grpc as pb_grpc

# tritonclient asks setuptools' pkg_resources, which newer ones don't have, where its library is.
_resources = types.ModuleType("pkg_resources")
_resources.resource_filename = lambda package, name: str(resources.files(package) / name)  # type: ignore[attr-defined]
sys.modules.setdefault("pkg_resources", _resources)
import tritonclient.utils.shared_memory as shm  # noqa: E402

Launch = Callable[..., ServerProcess]

#: So many connections all go to one of two processes once in 2^23 times.
CONNECTIONS = 24
OWN_CONNECTION = [("grpc.use_local_subchannel_pool", 1)]
CACHED = "dynamic_batching { } response_cache { enable: true }"
#: Elements of a row that is copied on the loop thread, and of one that isn't.
SMALL, LARGE = 75_264, INLINE_BYTES // 4 + 1
#: How often the object is made shorter and longer while requests run.
TRUNCATIONS = 400

_numbers = itertools.count()


@dataclass
class Object:
    """A shared memory object of the test's own, made by tritonclient."""

    byte_size: int
    key: str = field(default_factory=lambda: f"/tensorferry-test-{os.getpid()}-{next(_numbers)}")

    def __post_init__(self) -> None:
        self.handle = shm.create_shared_memory_region(self.key[1:], self.key, self.byte_size)

    @property
    def path(self) -> Path:
        """Where the kernel shows it."""
        return Path("/dev/shm") / self.key[1:]

    def put(self, array: np.ndarray, offset: int = 0) -> None:
        """Write an array."""
        shm.set_shared_memory_region(self.handle, [array], offset=offset)

    def get(self, like: np.ndarray, offset: int = 0) -> np.ndarray:
        """Read an array of the same datatype and shape as another one."""
        return shm.get_contents_as_numpy(self.handle, like.dtype, like.shape, offset=offset).copy()

    def close(self) -> None:
        """Unlink it, unless that has been done."""
        if not self.path.exists():
            self.path.write_bytes(b"")
        shm.destroy_shared_memory_region(self.handle)


@dataclass
class Served:
    """A server with shared memory on, and a client of it."""

    process: ServerProcess
    client: triton.InferenceServerClient
    gate: Gate

    def register(self, *objects: Object) -> None:
        """Register objects whole, by their keys' names."""
        for each in objects:
            self.client.register_system_shared_memory(each.key[1:], each.key, each.byte_size)

    def regions(self) -> set[str]:
        """The names of all regions."""
        return set(self.client.get_system_shared_memory_status().regions)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Gate]:
    """A repository of models that return what they get."""
    root = tmp_path_factory.mktemp("models")
    write_two_inputs(root)
    write_raising(root, "cached", CACHED)
    write_identity(root, "rows", dims=(-1,), max_batch_size=8)
    return root, write_gated(root)


@pytest.fixture(scope="module", params=[1, 2], ids=["one process", "two processes"])
def server(
    request: pytest.FixtureRequest,
    transport: str,
    models: tuple[Path, Gate],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Served]:
    """The module's server, on each transport and with one process and two."""
    flags = ["--transport", transport, "--processes", str(request.param), "--shared-memory", "on"]
    log = tmp_path_factory.mktemp("server") / "log"
    with (
        ServerProcess(models[0], log, flags=flags) as process,
        triton.InferenceServerClient(process.grpc_address) as client,
    ):
        yield Served(process, client, models[1])
        process.require_alive()


@pytest.fixture
def made(server: Served) -> Iterator[Callable[[int], Object]]:
    """Make objects, which are unregistered and unlinked in the end."""
    with ExitStack() as stack:

        def make(byte_size: int) -> Object:
            one = Object(byte_size)
            stack.callback(one.close)
            return one

        stack.callback(server.client.unregister_system_shared_memory)
        yield make


def tensor(name: str, like: np.ndarray, source: Object | None = None, offset: int = 0) -> triton.InferInput:
    """An input: in an object, or else in the message."""
    made = triton.InferInput(name, list(like.shape), np_to_triton_dtype(like.dtype))
    if source is None:
        made.set_data_from_numpy(like)
    else:
        made.set_shared_memory(source.key[1:], like.nbytes, offset)
    return made


def wish(name: str, target: Object, byte_size: int, offset: int = 0) -> triton.InferRequestedOutput:
    """An output that is to be in an object."""
    made = triton.InferRequestedOutput(name)
    made.set_shared_memory(target.key[1:], byte_size, offset)
    return made


def rows(width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((1, width), np.float32)


@pytest.mark.parametrize("width", [4, SMALL, LARGE])
def test_tensors_go_and_come_through_shared_memory(server: Served, made, width: int):
    source, target = made(4 * width + 8), made(4 * width)
    server.register(source, target)
    for seed in range(3):
        x = rows(width, seed)
        source.put(x, offset=8)
        result = server.client.infer(
            "rows", [tensor("x", x, source, 8)], outputs=[wish("y", target, x.nbytes)], request_id=str(seed)
        )
        assert result.get_response().id == str(seed)
        described = result.get_output("y")
        assert list(described.shape) == [1, width]
        assert described.parameters["shared_memory_region"].string_param == target.key[1:]
        assert described.parameters["shared_memory_byte_size"].int64_param == x.nbytes
        assert np.array_equal(target.get(x), x)


def test_shared_and_other_tensors_meet_in_one_request(server: Served, made):
    memory = made(64)
    server.register(memory)
    values, offset = np.float32([[1, 2, 3]]), np.int64([[10]])
    memory.put(values, offset=16)
    result = server.client.infer(
        "two_inputs",
        [tensor("offset", offset), tensor("values", values, memory, 16)],
        outputs=[wish("negated", memory, 8), triton.InferRequestedOutput("sum")],
    )
    assert result.as_numpy("sum").tolist() == [[11, 12, 13]]
    assert memory.get(offset).tolist() == [[-10]]


def test_a_stream_takes_shared_memory(server: Served, made):
    source, target = made(4 * LARGE), made(4 * LARGE)
    server.register(source, target)
    x = rows(LARGE)
    source.put(x)
    request = pb.ModelInferRequest(model_name="rows", id="1")
    request.inputs.append(pb_of(tensor("x", x, source)._get_tensor(), pb.ModelInferRequest.InferInputTensor))
    output = wish("y", target, x.nbytes)._get_tensor()
    request.outputs.append(pb_of(output, pb.ModelInferRequest.InferRequestedOutputTensor))
    wrong = pb.ModelInferRequest.FromString(request.SerializeToString())
    wrong.inputs[0].parameters["shared_memory_region"].string_param = "nobody's"
    with grpc.insecure_channel(server.process.grpc_address) as channel:
        stub = pb_grpc.GRPCInferenceServiceStub(channel)
        answers = list(stub.ModelStreamInfer(iter([request, wrong, request]), timeout=PATIENCE_S))
    assert ["nobody's" in answer.error_message for answer in answers] == [False, True, False]
    assert np.array_equal(target.get(x), x)


def pb_of(message, kind):
    """tritonclient's message as ours: they are in different pools."""
    return kind.FromString(message.SerializeToString())


def test_regions_are_told_and_unregistered(server: Served, made):
    first, second = made(100), made(100)
    server.register(first, second)
    status = server.client.get_system_shared_memory_status(first.key[1:]).regions[first.key[1:]]
    assert (status.name, status.key, status.offset, status.byte_size) == (first.key[1:], first.key, 0, 100)
    with pytest.raises(InferenceServerException, match="ALREADY_EXISTS"):
        server.register(first)
    server.client.unregister_system_shared_memory(first.key[1:])
    assert server.regions() == {second.key[1:]}
    server.client.unregister_system_shared_memory()
    assert server.regions() == set()
    with pytest.raises(InferenceServerException, match="NOT_FOUND"):
        server.client.get_system_shared_memory_status(first.key[1:])
    with pytest.raises(InferenceServerException, match=r"NOT_FOUND.*--ipc=host"):
        server.client.register_system_shared_memory("r", "/tensorferry-test-absent", 1)
    with pytest.raises(InferenceServerException, match=r"UNIMPLEMENTED.*system shared memory"):
        server.client.register_cuda_shared_memory("r", b"QUFB", 0, 64)
    assert not server.client.get_cuda_shared_memory_status().regions


def test_the_extension_is_announced(server: Served):
    extensions = server.client.get_server_metadata().extensions
    assert "system_shared_memory" in extensions
    assert "cuda_shared_memory" not in extensions


@contextmanager
def connections(process: ServerProcess) -> Iterator[Sequence[triton.InferenceServerClient]]:
    """Connections enough to reach every process."""
    with ExitStack() as stack:
        yield [
            stack.enter_context(
                triton.InferenceServerClient(process.grpc_address, channel_args=OWN_CONNECTION)
            )
            for _ in range(CONNECTIONS)
        ]


def test_every_process_knows_a_region_until_it_is_unregistered(server: Served, made):
    source, x = made(16), rows(4)
    source.put(x)
    with connections(server.process) as clients:
        clients[0].register_system_shared_memory(source.key[1:], source.key, 16)
        for client in clients:
            assert np.array_equal(client.infer("rows", [tensor("x", x, source)]).as_numpy("y"), x)
        clients[-1].unregister_system_shared_memory(source.key[1:])
        for client in clients:
            with pytest.raises(InferenceServerException, match="NOT_FOUND"):
                client.infer("rows", [tensor("x", x, source)])


def test_the_response_cache_knows_what_is_in_the_memory(server: Served, made):
    memory = made(8)
    server.register(memory)
    for value in (1.0, 2.0, 1.0, 1.0):
        x = np.float32([[value]])
        memory.put(x)
        server.client.infer("cached", [tensor("x", x, memory)], outputs=[wish("y", memory, 4, 4)])
        assert memory.get(x, 4).tolist() == [[2 * value]]
        assert server.client.infer("cached", [tensor("x", x, memory)]).as_numpy("y").tolist() == [[2 * value]]


def test_a_request_in_flight_ends_well_after_its_region_is_unregistered(server: Served, made):
    memory, x = made(8), np.float32([[3.0]])
    server.register(memory)
    memory.put(x)
    server.gate.close()
    entered = server.gate.entered
    ended: list[object] = []
    try:
        server.client.async_infer(
            "gated",
            [tensor("x", x, memory)],
            lambda result, error: ended.append(error),
            outputs=[wish("y", memory, 4, 4)],
        )
        wait_until(lambda: server.gate.entered > entered, "the model runs")
        server.client.unregister_system_shared_memory(memory.key[1:])
        assert server.regions() == set()
    finally:
        server.gate.open()
    wait_until(lambda: ended, "the request has ended")
    assert ended == [None]
    assert memory.get(x, 4).tolist() == [[6.0]]


class Caller:
    """Calls again and again on a thread, and counts what becomes of it."""

    def __init__(self, server: Served, memory: Object, width: int) -> None:
        self.ok = 0
        self.faults: set[str] = set()
        self._stopping = threading.Event()
        self._server, self._memory, self._x = server, memory, rows(width)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        x, memory = self._x, self._memory
        given, wanted = [tensor("x", x, memory)], [wish("y", memory, x.nbytes, x.nbytes)]
        with triton.InferenceServerClient(self._server.process.grpc_address) as client:
            while not self._stopping.is_set():
                try:
                    client.infer("rows", given, outputs=wanted, client_timeout=PATIENCE_S)
                    self.ok += 1
                except InferenceServerException as error:
                    self.faults.add(str(error.status()))

    def stop(self) -> None:
        """End the calls."""
        self._stopping.set()
        self._thread.join()


def test_an_object_that_is_cut_off_while_it_is_read_and_written_kills_nobody(server: Served, made):
    processes = {server.process.pid, *children(server.process.pid)}
    memories = [made(8 * SMALL), made(8 * LARGE)]
    server.register(*memories)
    callers = [Caller(server, memory, memory.byte_size // 8) for memory in memories for _ in range(2)]
    try:
        for _ in range(TRUNCATIONS):
            for memory in memories:
                os.truncate(memory.path, 0)
                os.truncate(memory.path, memory.byte_size // 2 - 1)
                os.truncate(memory.path, memory.byte_size)
        wait_until(lambda: all(caller.faults for caller in callers) or _cut(memories), "each was cut off")
        for memory in memories:
            os.truncate(memory.path, memory.byte_size)
        counts = [caller.ok for caller in callers]
        wait_until(lambda: all(c.ok > n for c, n in zip(callers, counts, strict=True)), "all is well again")
        for memory in memories:
            os.unlink(memory.path)
        counts = [caller.ok for caller in callers]
        wait_until(lambda: all(c.ok > n for c, n in zip(callers, counts, strict=True)), "unlinked is no harm")
    finally:
        for caller in callers:
            caller.stop()
    assert all(caller.faults == {"StatusCode.INVALID_ARGUMENT"} for caller in callers)
    assert {server.process.pid, *children(server.process.pid)} == processes


def _cut(memories: Sequence[Object]) -> bool:
    """Leave the objects too short, for those who haven't met it yet."""
    for memory in memories:
        os.truncate(memory.path, 1)
    return False


# -- servers of their own -----------------------------------------------------------------------


def test_shared_memory_is_off_unless_it_is_turned_on(launch: Launch, models: tuple[Path, Gate]):
    process = launch(models[0])
    process.wait_ready()
    memory, x = Object(16), rows(4)
    try:
        with triton.InferenceServerClient(process.grpc_address) as client:
            assert "system_shared_memory" not in client.get_server_metadata().extensions
            assert not client.get_system_shared_memory_status().regions
            client.unregister_system_shared_memory()
            with pytest.raises(InferenceServerException, match=r"UNIMPLEMENTED.*--shared-memory on"):
                client.register_system_shared_memory("r", memory.key, 16)
            with pytest.raises(InferenceServerException, match=r"INVALID_ARGUMENT.*--shared-memory on"):
                client.infer("rows", [tensor("x", x, memory)])
            with pytest.raises(InferenceServerException, match=r"INVALID_ARGUMENT.*--shared-memory on"):
                client.infer("rows", [tensor("x", x)], outputs=[wish("y", memory, 16)])
    finally:
        memory.close()


def test_a_process_that_is_started_again_knows_the_regions(launch: Launch, models: tuple[Path, Gate]):
    process = launch(models[0], "--processes", "2", "--shared-memory", "on")
    process.wait_ready()
    memory, gone, x = Object(16), Object(16), rows(4)
    try:
        memory.put(x)
        with triton.InferenceServerClient(process.grpc_address) as client:
            for each in (memory, gone):
                client.register_system_shared_memory(each.key[1:], each.key, 16)
        os.unlink(gone.path)
        before = children(process.pid)
        os.kill(before[0], signal.SIGKILL)
        wait_until(lambda: len(set(children(process.pid)) - set(before)) == 1, "it is started again")
        wait_until(lambda: is_ready(process), "it is ready again")
        with connections(process) as clients:
            for client in clients:
                assert np.array_equal(client.infer("rows", [tensor("x", x, memory)]).as_numpy("y"), x)
        assert f"there is no shared memory object '{gone.key}'" in process.log()
    finally:
        memory.close()
        gone.close()
        for pid in children(process.pid):
            os.kill(pid, signal.SIGKILL)
