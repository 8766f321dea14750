"""Traces of a real server arrive at a collector, and a collector that is away is nobody's trouble."""

from __future__ import annotations

import itertools
import signal
import socket
from collections.abc import Iterator
from dataclasses import dataclass

import grpc
import pytest
from tests.integration.support import PATIENCE_S, error_of, occupy, sample, wait_until, x_request

from tensorferry.testing.gate import Gate, write_gated
from tensorferry.testing.models import write_mlp, write_raising
from tensorferry.testing.process import Limits, ServerProcess
from tensorferry.wire import open_inference_pb2 as pb
from tensorferry.wire import open_inference_pb2_grpc as pb_grpc

pytest.importorskip("opentelemetry.sdk", reason="the extra otlp isn't installed")

from tests.integration.collector import Collector, collecting, values_of

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
SPAN_ID = "b7ad6b7169203331"
CONTEXT = (("traceparent", f"00-{TRACE_ID}-{SPAN_ID}-01"), ("tracestate", "vendor=1"))
NOT_SAMPLED = (("traceparent", f"00-{TRACE_ID}-{SPAN_ID}-00"),)

_ids = itertools.count()


def new_id() -> str:
    """A request id that no other test uses."""
    return f"request-{next(_ids)}"


@dataclass
class Traced:
    """A server that traces what its callers sample, and the collector that it sends to."""

    process: ServerProcess
    collector: Collector
    gate: Gate
    stub: pb_grpc.GRPCInferenceServiceStub


@pytest.fixture(scope="module")
def traced(transport: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Traced]:
    directory = tmp_path_factory.mktemp(f"traced-{transport}")
    gate = write_gated(directory / "models")
    write_raising(directory / "models")
    write_mlp(directory / "models")
    with collecting() as collector:
        flags = ["--transport", transport, "--trace-endpoint", collector.endpoint, "--trace-rate", "0"]
        with (
            ServerProcess(
                directory / "models", directory / "log", flags=flags, limits=Limits(60.0, 60.0)
            ) as process,
            grpc.insecure_channel(process.grpc_address) as channel,
        ):
            yield Traced(process, collector, gate, pb_grpc.GRPCInferenceServiceStub(channel))


def test_the_callers_trace_goes_on_and_its_parts_sum_up(traced):
    request_id = new_id()
    traced.stub.ModelInfer(x_request("gated", 1.0, 2.0, request_id=request_id), metadata=CONTEXT)
    (server,) = traced.collector.of_request(request_id)
    assert server.trace_id.hex() == TRACE_ID
    assert server.parent_span_id.hex() == SPAN_ID
    assert server.trace_state == "vendor=1"
    assert server.name == "inference.GRPCInferenceService/ModelInfer"
    attributes = values_of(server.attributes)
    assert attributes["tensorferry.model"] == "gated"
    assert attributes["tensorferry.rows"] == 2
    assert attributes["rpc.grpc.status_code"] == 0
    wait_until(lambda: len(traced.collector.children(server)) == 4, "its parts arrive")
    children = traced.collector.children(server)
    parts = [children[name] for name in ("receive", "queue", "batch", "reply")]
    assert parts[0].start_time_unix_nano == server.start_time_unix_nano
    assert parts[-1].end_time_unix_nano == server.end_time_unix_nano
    for before, after in itertools.pairwise(parts):
        assert before.end_time_unix_nano == after.start_time_unix_nano
    (run,) = traced.collector.children(children["batch"]).values()
    assert run.name == "run"
    assert run.end_time_unix_nano <= children["batch"].end_time_unix_nano
    assert traced.collector.paths == {"/v1/traces"}
    assert traced.collector.resources[0]["service.name"] == "tensorferry"
    assert traced.collector.resources[0]["process.pid"] == traced.process.pid


def test_requests_that_shared_a_batch_are_linked(traced):
    ids = [new_id() for _ in range(3)]
    first = occupy(traced.gate, traced.stub, "gated")
    calls = []
    for number, request_id in enumerate(ids):
        context = (("traceparent", f"00-{number + 1:032x}-{SPAN_ID}-01"),)
        calls.append(
            traced.stub.ModelInfer.future(x_request("gated", 1.0, request_id=request_id), metadata=context)
        )
    address = traced.process.http_address
    wait_until(lambda: sample(address, "nv_inference_pending_request_count", "gated") == 3, "all wait")
    traced.gate.open()
    for call in [first, *calls]:
        call.result(PATIENCE_S)
    servers = [traced.collector.of_request(request_id)[0] for request_id in ids]
    batches = traced.collector.wait_for("batch", lambda span: len(span.links) == 3)
    (batch,) = batches
    assert {link.span_id for link in batch.links} == {span.span_id for span in servers}
    assert values_of(batch.attributes)["tensorferry.batch.requests"] == 3
    owners = [span for span in servers if span.span_id == batch.parent_span_id]
    others = [span for span in servers if span.span_id != batch.parent_span_id]
    assert len(owners) == 1
    assert [[link.span_id for link in span.links] for span in others] == [[batch.span_id]] * 2


def test_a_refused_call_is_traced_with_its_status(traced):
    request_id = new_id()
    call = traced.stub.ModelInfer
    error = error_of(lambda: call(x_request("nobody", 1.0, request_id=request_id), metadata=CONTEXT))
    assert error.code() is grpc.StatusCode.NOT_FOUND
    (server,) = traced.collector.of_request(request_id)
    assert values_of(server.attributes)["rpc.grpc.status_code"] == 5
    assert values_of(server.attributes)["tensorferry.model"] == "nobody"
    assert server.status.message == error.details()
    assert server.status.code == 2


def test_messages_of_a_stream_have_the_streams_context(traced):
    request_id = new_id()
    requests = [x_request("gated", 1.0, request_id=request_id)] * 3
    answers = list(traced.stub.ModelStreamInfer(iter(requests), metadata=CONTEXT))
    assert len(answers) == 3
    servers = traced.collector.of_request(request_id, 3, "ModelStreamInfer")
    assert {(span.trace_id.hex(), span.parent_span_id.hex()) for span in servers} == {(TRACE_ID, SPAN_ID)}


@pytest.mark.parametrize("where", ["waits", "runs"])
@pytest.mark.parametrize("method", ["ModelInfer", "ModelStreamInfer"])
def test_a_caller_that_goes_away_ends_its_trace_once(traced, method, where):
    request_id = new_id()
    message = x_request("gated", 1.0, request_id=request_id)
    gate, stub = traced.gate, traced.stub
    held = occupy(gate, stub, "gated") if where == "waits" else None
    gate.close()
    entered = gate.entered
    if method == "ModelInfer":
        call = stub.ModelInfer.future(message, metadata=CONTEXT)
    else:
        call = stub.ModelStreamInfer(iter([message]), metadata=CONTEXT)
    if held is None:
        wait_until(lambda: gate.entered > entered, "it runs")
    else:
        pending = "nv_inference_pending_request_count"
        wait_until(lambda: sample(traced.process.http_address, pending, "gated") == 1, "it waits")
    call.cancel()
    (server,) = traced.collector.of_request(request_id, 1, method)
    assert values_of(server.attributes)["rpc.grpc.status_code"] == grpc.StatusCode.CANCELLED.value[0]
    gate.open()
    if held is not None:
        held.result(PATIENCE_S)
    last = new_id()
    stub.ModelInfer(x_request("gated", 1.0, request_id=last), metadata=CONTEXT)
    traced.collector.of_request(last)
    assert len(traced.collector.of_request(request_id, 1, method)) == 1


def test_who_is_traced_is_the_callers_decision(traced):
    ids = [new_id() for _ in range(3)]
    contexts = [
        NOT_SAMPLED,
        (),
        (("traceparent", "garbage"), ("tracestate", "x" * 4096)),
    ]
    for request_id, context in zip(ids, contexts, strict=True):
        traced.stub.ModelInfer(x_request("gated", 1.0, request_id=request_id), metadata=context)
    last = new_id()
    traced.stub.ModelInfer(x_request("gated", 1.0, request_id=last), metadata=CONTEXT)
    traced.collector.of_request(last)
    seen = {
        values_of(span.attributes)["tensorferry.request_id"] for span in traced.collector.named("ModelInfer")
    }
    assert not seen & set(ids)


def test_a_long_state_is_left_out_and_the_call_traced(traced):
    request_id = new_id()
    context = (CONTEXT[0], ("tracestate", "v=" + "x" * 4096))
    traced.stub.ModelInfer(x_request("gated", 1.0, request_id=request_id), metadata=context)
    (server,) = traced.collector.of_request(request_id)
    assert (server.trace_id.hex(), server.trace_state) == (TRACE_ID, "")


def test_settings_change_through_the_unmodified_client(traced):
    tritonclient = pytest.importorskip("tritonclient.grpc")
    with tritonclient.InferenceServerClient(traced.process.grpc_address) as client:
        before = client.get_trace_settings(as_json=True)["settings"]
        assert before["trace_level"]["value"] == ["TIMESTAMPS"]
        assert before["trace_mode"]["value"] == ["opentelemetry"]
        client.update_trace_settings("gated", {"trace_rate": "1"})
        request_id = new_id()
        traced.stub.ModelInfer(x_request("gated", 1.0, request_id=request_id))
        traced.collector.of_request(request_id)
        assert client.get_trace_settings("gated", as_json=True)["settings"]["trace_rate"]["value"] == ["1"]
        assert client.get_trace_settings(as_json=True)["settings"]["trace_rate"]["value"] == ["0"]
        client.update_trace_settings("gated", {"trace_rate": None})
        assert client.get_trace_settings("gated", as_json=True)["settings"]["trace_rate"]["value"] == ["0"]
        with pytest.raises(tritonclient.InferenceServerException, match="tensors never leave"):
            client.update_trace_settings("gated", {"trace_level": ["TENSORS"]})


# -- servers of their own ------------------------------------------------------------------------


def stop(process: ServerProcess) -> None:
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 0, process.log()[-2000:]


def calls_through(process: ServerProcess, count: int) -> None:
    with grpc.insecure_channel(process.grpc_address) as channel:
        stub = pb_grpc.GRPCInferenceServiceStub(channel)
        request = pb.ModelInferRequest(model_name="mlp", id="r")
        request.inputs.add(name="features", datatype="FP32", shape=[1, 30])
        request.raw_input_contents.append(bytes(120))
        for _ in range(count):
            assert stub.ModelInfer(request, timeout=PATIENCE_S).id == "r"


def test_without_a_callers_decision_one_in_so_many_is_traced(launch, tmp_path):
    write_mlp(tmp_path / "models")
    with collecting() as collector:
        flags = ("--trace-endpoint", collector.endpoint, "--trace-rate", "1", "--trace-max-per-s", "1e9")
        process = launch(tmp_path / "models", *flags)
        process.wait_ready()
        calls_through(process, 20)
        stop(process)
    assert len(collector.named("ModelInfer")) == 20, "what is left is sent when the server stops"
    assert len({span.trace_id for span in collector.named("ModelInfer")}) == 20


@pytest.mark.parametrize("how", ["refuses", "says nothing"])
def test_a_collector_that_is_away_is_nobodys_trouble(launch, tmp_path, how):
    write_mlp(tmp_path / "models")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        if how == "refuses":
            silent.close()
        flags = ("--trace-rate", "1", "--trace-max-per-s", "1e9")
        process = launch(tmp_path / "models", "--trace-endpoint", f"http://127.0.0.1:{port}", *flags)
        process.wait_ready()
        calls_through(process, 1500)  # more spans than the queue holds
        stop(process)
        assert process.log().count("traces not delivered") <= 1
        assert "opentelemetry" not in process.log()


@pytest.mark.parametrize("endpoint", ["localhost:4318", "http://"])
def test_an_endpoint_that_is_none_keeps_the_server_from_starting(launch, tmp_path, endpoint):
    write_mlp(tmp_path / "models")
    process = launch(tmp_path / "models", "--trace-endpoint", endpoint)
    assert process.wait() == 2
    assert "--trace-endpoint" in process.log()
