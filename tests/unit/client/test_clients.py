"""Both clients against a real server: every test of a call runs once blocking and once in asyncio."""

import asyncio
import gc
import math
import shutil
import subprocess
import weakref
from contextlib import asynccontextmanager

import grpc
import numpy as np
import pytest
from tests.unit.client.support import (
    PATIENCE_S,
    ScriptedServer,
    echo,
    failing,
    failing_first,
    run,
    serving,
    target_of_nobody,
)

from tensorferry.wire import open_inference_pb2 as pb
from tensorferry_client import (
    AsyncClient,
    Cancelled,
    Client,
    ClientError,
    ClientOptions,
    DeadlineExceeded,
    InvalidRequest,
    NotFound,
    Overloaded,
    RetryPolicy,
    ServerError,
    TlsOptions,
    Unavailable,
    Unsupported,
    bfloat16_of,
)
from tensorferry_client._codec import DATATYPES

ROW = {"x": np.arange(3, dtype=np.float32)}


class BlockingDriver:
    """Makes the blocking client's calls in a thread, so that the test's loop serves meanwhile."""

    def __init__(self, options, pauses):
        self._client = Client(options, sleep=pauses.append, random=lambda: 1.0)

    def __getattr__(self, name):
        def call(*args, **kwargs):
            return asyncio.to_thread(getattr(self._client, name), *args, **kwargs)

        return call


@asynccontextmanager
async def blocking(options, pauses):
    driver = BlockingDriver(options, pauses)
    try:
        yield driver
    finally:
        await driver.close()


@asynccontextmanager
async def asynchronous(options, pauses):
    async def pause(seconds):
        pauses.append(seconds)

    async with AsyncClient(options, sleep=pause, random=lambda: 1.0) as client:
        yield client


@pytest.fixture(params=[blocking, asynchronous])
def connect(request):
    """Open a client; the second argument collects the pauses that it would have slept."""

    def opened(options, pauses=None):
        if isinstance(options, str):
            options = ClientOptions(target=options, default_timeout_s=PATIENCE_S)
        return request.param(options, [] if pauses is None else pauses)

    return opened


NUMPY_DATATYPES = sorted(name for name, dtype in DATATYPES.items() if dtype is not None)


def test_every_datatype_of_numpy_round_trips(connect):
    arrays = {name: np.arange(8).reshape(2, 4).astype(DATATYPES[name]) for name in NUMPY_DATATYPES}

    async def scenario():
        async with serving(ScriptedServer()) as target, connect(target) as client:
            return await client.infer("m", arrays)

    outputs = run(scenario()).outputs
    assert list(outputs) == NUMPY_DATATYPES
    for name, array in arrays.items():
        assert outputs[name].dtype == array.dtype
        assert np.array_equal(outputs[name], array)


def test_bfloat16_and_bytes_round_trip(connect):
    inputs = {
        "bf16": bfloat16_of(np.array([0.5, -np.inf], np.float32)),
        "bytes": np.array([b"a\x00", b""], np.object_),
    }

    async def scenario():
        async with serving(ScriptedServer()) as target, connect(target) as client:
            return await client.infer("m", inputs)

    outputs = run(scenario()).outputs
    assert outputs["bf16"].tolist() == [0.5, -math.inf]
    assert outputs["bytes"].tolist() == [b"a\x00", b""]


def test_a_result_says_what_answered(connect):
    async def scenario():
        async with serving(ScriptedServer()) as target, connect(target) as client:
            return await client.infer("m", ROW, version="4", request_id="r-1", parameters={"priority": 2})

    result = run(scenario())
    assert (result.model, result.version, result.id) == ("m", "4", "r-1")
    assert result.parameters == {"priority": 2}


def test_a_label_and_a_split_key_travel_as_parameters(connect):
    service = ScriptedServer()

    async def scenario():
        async with serving(service) as target, connect(target) as client:
            await client.infer("m", ROW, label="canary", split_key="card-7", parameters={"priority": 2})
            await client.infer("m", ROW)

    run(scenario())
    named, plain = service.requests
    assert named.parameters["label"].string_param == "canary"
    assert named.parameters["split_key"].string_param == "card-7"
    assert named.parameters["priority"].int64_param == 2
    assert not plain.parameters


def test_a_label_that_is_said_in_two_ways_is_refused_before_it_is_sent(connect):
    service = ScriptedServer()

    async def scenario():
        async with serving(service) as target, connect(target) as client:
            await client.infer("m", ROW, label="canary", parameters={"label": "stable"})

    with pytest.raises(InvalidRequest, match="label is 'canary', and 'stable' in the parameters"):
        run(scenario())
    assert service.requests == []


def test_questions_about_server_and_models_are_answered(connect):
    async def scenario():
        async with serving(ScriptedServer()) as target, connect(target) as client:
            assert await client.server_live()
            assert await client.server_ready()
            assert await client.model_ready("there")
            assert not await client.model_ready("elsewhere", "2")
            assert list((await client.server_metadata()).extensions) == ["statistics"]
            assert [tensor.name for tensor in (await client.model_metadata("m")).inputs] == ["INPUT__0"]
            assert (await client.model_config("m")).max_batch_size == 64
            assert [model.inference_count for model in await client.statistics()] == [7]
            index = await client.repository_index()
            assert [(model.name, model.state) for model in index] == [
                ("there", "READY"),
                ("broken", "UNAVAILABLE"),
            ]
            assert [model.name for model in await client.repository_index(ready_only=True)] == ["there"]

    run(scenario())


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, InvalidRequest),
        (grpc.StatusCode.NOT_FOUND, NotFound),
        (grpc.StatusCode.UNIMPLEMENTED, Unsupported),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, Overloaded),
        (grpc.StatusCode.UNAVAILABLE, Unavailable),
        (grpc.StatusCode.DEADLINE_EXCEEDED, DeadlineExceeded),
        (grpc.StatusCode.CANCELLED, Cancelled),
        (grpc.StatusCode.INTERNAL, ServerError),
    ],
)
def test_a_status_becomes_its_error_with_the_servers_message(connect, code, kind):
    async def scenario():
        async with serving(ScriptedServer(failing(code, "because"))) as target, connect(target) as client:
            await client.infer("m", ROW)

    with pytest.raises(kind, match="because") as caught:
        run(scenario())
    assert type(caught.value) is kind
    assert caught.value.code is code


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED])
def test_a_refusal_is_retried_after_growing_pauses(connect, code):
    pauses = []
    service = ScriptedServer(failing_first(2, code))

    async def scenario():
        async with serving(service) as target:
            options = ClientOptions(target=target, retry=RetryPolicy(3, initial_backoff_s=0.1))
            async with connect(options, pauses) as client:
                await client.infer("m", ROW)

    run(scenario())
    assert len(service.requests) == 3
    assert pauses == [0.1, 0.2]


def test_the_last_attempts_error_reaches_the_caller(connect):
    pauses = []
    service = ScriptedServer(failing_first(3, grpc.StatusCode.UNAVAILABLE))

    async def scenario():
        async with serving(service) as target, connect(target, pauses) as client:
            await client.infer("m", ROW)

    with pytest.raises(Unavailable, match="0 more"):
        run(scenario())
    assert len(service.requests) == 3
    assert len(pauses) == 2


@pytest.mark.parametrize(
    "code",
    [
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.INTERNAL,
    ],
)
def test_an_error_that_a_retry_could_not_mend_is_not_retried(connect, code):
    pauses = []
    service = ScriptedServer(failing(code))

    async def scenario():
        async with serving(service) as target, connect(target, pauses) as client:
            await client.infer("m", ROW)

    with pytest.raises(ClientError):
        run(scenario())
    assert len(service.requests) == 1
    assert pauses == []


def test_a_server_that_is_gone_is_unavailable(connect):
    pauses = []

    async def scenario():
        async with connect(await target_of_nobody(), pauses) as client:
            await client.server_live()

    with pytest.raises(Unavailable):
        run(scenario())
    assert len(pauses) == 2


def test_the_deadline_travels_with_the_call(connect):
    remaining = []

    async def note(request, context):
        remaining.append(context.time_remaining())
        return await echo(request, context)

    async def scenario():
        async with serving(ScriptedServer(note)) as target, connect(ClientOptions(target=target)) as client:
            await client.infer("m", ROW, timeout_s=500.0)
            await client.infer("m", ROW)
            await client.infer("m", ROW, timeout_s=math.inf)

    run(scenario())
    assert 100.0 < remaining[0] <= 501.0  # gRPC rounds a timeout up a little
    assert 0.0 < remaining[1] <= 10.1  # the default
    assert remaining[2] is None or remaining[2] > 1e6


def test_metadata_is_asked_for_and_sent_with_every_attempt(connect):
    seen = []
    parents = iter(["00-1", "00-2", "00-3"])

    async def note(request, context):
        seen.append(dict(context.invocation_metadata())["traceparent"])
        return await (failing_first(1, grpc.StatusCode.UNAVAILABLE) if len(seen) == 1 else echo)(
            request, context
        )

    async def scenario():
        async with serving(ScriptedServer(note)) as target:
            options = ClientOptions(
                target=target,
                retry=RetryPolicy(3, initial_backoff_s=0.1),
                metadata=lambda: [("traceparent", next(parents))],
            )
            async with connect(options) as client:
                await client.infer("m", ROW)
                await client.infer("m", ROW)

    run(scenario())
    assert seen == ["00-1", "00-2", "00-3"]


def test_a_call_that_outlasts_its_deadline_is_given_up(connect):
    async def scenario():
        never = asyncio.Event()

        async def hang(request, context):
            await never.wait()

        async with serving(ScriptedServer(hang)) as target, connect(target) as client:
            await client.infer("m", ROW, timeout_s=0.05)

    with pytest.raises(DeadlineExceeded):
        run(scenario())


def test_a_call_without_time_left_is_not_sent(connect):
    service = ScriptedServer()

    async def scenario():
        async with serving(service) as target, connect(target) as client:
            await client.infer("m", ROW, timeout_s=0.0)

    with pytest.raises(DeadlineExceeded):
        run(scenario())
    assert service.requests == []


def test_a_bad_input_is_refused_before_it_is_sent(connect):
    service = ScriptedServer()

    async def scenario():
        async with serving(service) as target, connect(target) as client:
            await client.infer("m", {"x": np.array([1j])})

    with pytest.raises(InvalidRequest, match=r"'x'.*complex128"):
        run(scenario())
    assert service.requests == []


def test_a_message_above_the_limit_is_the_callers_error_and_not_retried(connect):
    pauses = []

    async def scenario():
        async with serving(ScriptedServer()) as target:
            options = ClientOptions(target=target, max_message_bytes=1000)
            async with connect(options, pauses) as client:
                await client.infer("m", {"x": np.zeros(1000)})

    with pytest.raises(InvalidRequest, match="max_message_bytes"):
        run(scenario())
    assert pauses == []


def test_messages_of_many_mebibytes_pass(connect):
    async def unlimited(request, context):
        raw = bytes(16 * 1024 * 1024)
        response = pb.ModelInferResponse(raw_output_contents=[raw])
        response.outputs.add(name="y", datatype="UINT8", shape=[len(raw)])
        return response

    async def scenario():
        async with serving(ScriptedServer(unlimited)) as target, connect(target) as client:
            return await client.infer("m", ROW)

    assert run(scenario()).outputs["y"].nbytes == 16 * 1024 * 1024


def test_waiting_for_a_server_says_whether_there_is_one(connect):
    async def scenario():
        async with serving(ScriptedServer()) as target, connect(target) as client:
            there = await client.wait_until_connected(10.0)
        async with connect(await target_of_nobody()) as client:
            return there, await client.wait_until_connected(0.05)

    assert run(scenario()) == (True, False)


def test_a_closed_client_says_so(connect):
    async def scenario():
        async with serving(ScriptedServer()) as target, connect(target) as client:
            await client.close()
            await client.close()
            await client.server_live()

    with pytest.raises(RuntimeError, match="closed"):
        run(scenario())


def test_closing_ends_the_calls_on_their_way(connect):
    async def scenario():
        arrived, never = asyncio.Event(), asyncio.Event()

        async def hang(request, context):
            arrived.set()
            await never.wait()

        async with serving(ScriptedServer(hang)) as target, connect(target) as client:
            call = asyncio.create_task(client.infer("m", ROW))
            await arrived.wait()
            await client.close()
            await call

    with pytest.raises(Cancelled):
        run(scenario())


def test_cancelling_the_task_cancels_the_call_on_the_server():
    async def scenario():
        arrived, gone, never = asyncio.Event(), asyncio.Event(), asyncio.Event()

        async def hang(request, context):
            arrived.set()
            try:
                await never.wait()
            finally:
                gone.set()

        async with serving(ScriptedServer(hang)) as target, AsyncClient(target) as client:
            call = asyncio.create_task(client.infer("m", ROW))
            await arrived.wait()
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            await gone.wait()

    run(scenario())


def test_the_connection_is_kept_without_any_call():
    async def scenario():
        async with serving(ScriptedServer()) as target:
            client = AsyncClient(target)
            assert not client.is_connected
            keeper = asyncio.create_task(client.keep_connected())
            while not client.is_connected:  # noqa: ASYNC110 - gRPC offers no event for it but the one under test
                await asyncio.sleep(0)
            await client.close()
            await keeper
            assert not client.is_connected

    run(scenario())


def test_an_asynchronous_client_is_made_on_a_running_loop():
    with pytest.raises(RuntimeError, match="loop"):
        AsyncClient("host:1")


def test_an_error_is_freed_without_the_garbage_collector():
    """A cycle would keep the call, and with it the channel, long after ``close``."""

    async def scenario():
        async with (
            serving(ScriptedServer(failing(grpc.StatusCode.INTERNAL))) as target,
            AsyncClient(target) as client,
        ):
            try:
                await client.infer("m", ROW)
            except ServerError as error:
                return weakref.ref(error)

    gc.disable()
    try:
        assert run(scenario())() is None
    finally:
        gc.enable()


def test_repr_says_whom_and_whether_open():
    with Client("host:1") as client:
        assert repr(client) == "<Client of host:1, open>"
    assert repr(client) == "<Client of host:1, closed>"


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to make a certificate")
def test_mutual_tls(connect, tmp_path):
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    request = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 -subj /CN=scores"
    name = ["-addext", "subjectAltName=DNS:scores.test"]
    command = ["openssl", *request.split(), *name, "-keyout", key, "-out", certificate]
    subprocess.run(command, check=True, capture_output=True)
    pair = (key.read_bytes(), certificate.read_bytes())
    credentials = grpc.ssl_server_credentials([pair], certificate.read_bytes(), require_client_auth=True)

    async def scenario():
        async with serving(ScriptedServer(), credentials) as target:
            tls = TlsOptions(certificate, certificate, key, server_name="scores.test")
            async with connect(ClientOptions(target=target, tls=tls)) as client:
                assert await client.server_live()
            async with connect(ClientOptions(target=target, tls=TlsOptions(certificate))) as client:
                await client.server_live()

    with pytest.raises(Unavailable):  # the second client shows no certificate
        run(scenario())


def test_tritonclient_works_in_the_same_process():
    triton = pytest.importorskip("tritonclient.grpc.aio")

    async def scenario():
        async with serving(ScriptedServer()) as target, AsyncClient(target) as ours:
            ours_result = await ours.infer("m", ROW)
            async with triton.InferenceServerClient(target) as theirs:
                tensor = triton.InferInput("x", [3], "FP32")
                tensor.set_data_from_numpy(ROW["x"])
                return ours_result, await theirs.infer("m", [tensor])

    ours_result, theirs_result = run(scenario())
    assert np.array_equal(ours_result.outputs["x"], theirs_result.as_numpy("x"))
