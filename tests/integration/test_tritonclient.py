"""The unmodified tritonclient package: the client that most callers have."""

from __future__ import annotations

import asyncio
import queue

import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tests.integration.conftest import MAX_WAITING, Served
from tests.integration.support import PATIENCE_S, column, occupy, y_of
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from tensorferry import __version__
from tensorferry.service.inference import EXTENSIONS
from tensorferry.testing.gate import Gate
from tensorferry.wire import open_inference_pb2_grpc as pb_grpc


def triton_input(name: str, array: np.ndarray) -> triton.InferInput:
    given = triton.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
    given.set_data_from_numpy(array)
    return given


@pytest.fixture
def client(server: Served):
    with triton.InferenceServerClient(server.grpc) as opened:
        yield opened


def test_infer_answers_every_output(client: triton.InferenceServerClient):
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    offset = np.array([[10], [20]], dtype=np.int64)
    result = client.infer("two_inputs", [triton_input("values", values), triton_input("offset", offset)])
    np.testing.assert_array_equal(result.as_numpy("sum"), values + offset)
    np.testing.assert_array_equal(result.as_numpy("negated"), -offset)


def test_infer_answers_the_requested_outputs_alone_in_their_order(client: triton.InferenceServerClient):
    inputs = [
        triton_input("values", np.zeros((1, 3), np.float32)),
        triton_input("offset", np.ones((1, 1), np.int64)),
    ]
    one = client.infer("two_inputs", inputs, outputs=[triton.InferRequestedOutput("negated")])
    assert [output.name for output in one.get_response().outputs] == ["negated"]
    assert one.as_numpy("negated").tolist() == [[-1]]
    assert one.as_numpy("sum") is None
    both = [triton.InferRequestedOutput("negated"), triton.InferRequestedOutput("sum")]
    two = client.infer("two_inputs", inputs, outputs=both)
    assert [output.name for output in two.get_response().outputs] == ["negated", "sum"]
    assert two.as_numpy("sum").tolist() == [[1.0, 1.0, 1.0]]


def test_the_request_id_model_and_version_come_back(client: triton.InferenceServerClient):
    response = client.infer(
        "mlp", [triton_input("features", np.zeros((1, 30), np.float32))], request_id="r-7"
    )
    message = response.get_response()
    assert (message.id, message.model_name, message.model_version) == ("r-7", "mlp", "1")


def test_a_version_is_chosen_by_number_and_the_highest_without_one(client: triton.InferenceServerClient):
    def y(version: str) -> list:
        return client.infer("versioned", [triton_input("x", column(4.0))], version).as_numpy("y").tolist()

    assert y("1") == [[4.0]]
    assert y("3") == [[8.0]]
    assert y("") == [[8.0]]


def test_a_model_without_configuration_has_the_names_of_its_signature(client: triton.InferenceServerClient):
    values = np.arange(4, dtype=np.int16).reshape(1, 4)
    result = client.infer("unconfigured", [triton_input("INPUT__0", values)])
    np.testing.assert_array_equal(result.as_numpy("OUTPUT__0"), values)


def test_a_client_timeout_ends_a_call_that_takes_longer(client: triton.InferenceServerClient, gate: Gate):
    gate.close()
    with pytest.raises(InferenceServerException) as caught:
        client.infer("gated", [triton_input("x", column(1.0))], client_timeout=0.2)
    assert caught.value.status() == "StatusCode.DEADLINE_EXCEEDED"
    gate.open()
    assert client.infer("gated", [triton_input("x", column(1.0))]).as_numpy("y").tolist() == [[2.0]]


def test_the_timeout_parameter_ends_a_request_that_waits_longer(
    client: triton.InferenceServerClient, stub: pb_grpc.GRPCInferenceServiceStub, gate: Gate
):
    running = occupy(gate, stub, "gated")
    with pytest.raises(InferenceServerException) as caught:
        client.infer("gated", [triton_input("x", column(1.0))], timeout=50_000)
    assert caught.value.status() == "StatusCode.DEADLINE_EXCEEDED"
    assert "was not run" in caught.value.message()
    gate.open()
    assert y_of(running.result(PATIENCE_S)) == [200.0]


@pytest.mark.parametrize("compression", ["gzip", "deflate"])
def test_a_compressed_request_is_answered(client: triton.InferenceServerClient, compression: str):
    result = client.infer(
        "raising", [triton_input("x", column(*range(16)))], compression_algorithm=compression
    )
    assert result.as_numpy("y").ravel().tolist() == [2.0 * value for value in range(16)]


def test_async_infer_calls_back_with_each_answer(client: triton.InferenceServerClient):
    answers: queue.Queue = queue.Queue()
    for number in range(20):
        client.async_infer(
            "raising",
            [triton_input("x", column(number))],
            callback=lambda result, error: answers.put((result, error)),
            request_id=str(number),
        )
    seen = {}
    for _ in range(20):
        result, error = answers.get(timeout=PATIENCE_S)
        assert error is None
        seen[int(result.get_response().id)] = result.as_numpy("y").item()
    assert seen == {number: 2.0 * number for number in range(20)}


def test_is_live_and_ready(client: triton.InferenceServerClient):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("mlp")
    assert client.is_model_ready("versioned", "3")
    assert not client.is_model_ready("versioned", "2")
    assert not client.is_model_ready("absent")


def test_server_metadata_lists_the_extensions(client: triton.InferenceServerClient):
    metadata = client.get_server_metadata()
    assert metadata.name == "tensorferry"
    assert metadata.version == __version__
    assert list(metadata.extensions) == list(EXTENSIONS)


def test_model_metadata_describes_the_tensors_and_versions(client: triton.InferenceServerClient):
    metadata = client.get_model_metadata("two_inputs", as_json=True)
    assert metadata["platform"] == "pytorch_libtorch"
    assert metadata["versions"] == ["1"]
    assert metadata["inputs"] == [
        {"name": "offset", "datatype": "INT64", "shape": ["-1", "1"]},
        {"name": "values", "datatype": "FP32", "shape": ["-1", "3"]},
    ]
    assert [output["name"] for output in metadata["outputs"]] == ["sum", "negated"]
    assert list(client.get_model_metadata("versioned").versions) == ["1", "3"]
    assert list(client.get_model_metadata("plain").inputs[0].shape) == [2, 3]


def test_model_config_is_served_with_defaults_filled_in(client: triton.InferenceServerClient):
    config = client.get_model_config("bounded").config
    assert config.name == "bounded"
    assert config.max_batch_size == 4
    assert config.dynamic_batching.default_queue_policy.max_queue_size == MAX_WAITING
    assert config.instance_group[0].count == 1
    assert config.version_policy.latest.num_versions == 1


def test_statistics_count_requests_rows_and_batches(client: triton.InferenceServerClient):
    def statistics():
        (stats,) = client.get_inference_statistics("identity_fp64").model_stats
        return stats

    before = statistics()
    for rows in (1, 2, 5):
        client.infer("identity_fp64", [triton_input("x", np.zeros((rows, 2)))])
    after = statistics()
    assert after.inference_count - before.inference_count == 8
    assert after.execution_count - before.execution_count == 3
    assert after.inference_stats.success.count - before.inference_stats.success.count == 3
    assert after.inference_stats.success.ns > before.inference_stats.success.ns
    assert after.inference_stats.compute_infer.ns > before.inference_stats.compute_infer.ns
    assert {1, 2, 5} <= {batch.batch_size for batch in after.batch_stats}
    assert after.last_inference > 1_600_000_000_000


def test_statistics_without_a_name_are_of_every_version(client: triton.InferenceServerClient):
    names = {(stats.name, stats.version) for stats in client.get_inference_statistics().model_stats}
    assert {("mlp", "1"), ("versioned", "1"), ("versioned", "3")} <= names


def test_the_repository_index_lists_every_version_as_ready(client: triton.InferenceServerClient):
    index = {(model.name, model.version): model for model in client.get_model_repository_index().models}
    assert {model.state for model in index.values()} == {"READY"}
    assert ("versioned", "1") in index
    assert ("versioned", "3") in index


def test_load_and_unload_are_refused_where_the_server_was_not_told_to_take_them(
    client: triton.InferenceServerClient,
):
    for call in (client.load_model, client.unload_model):
        with pytest.raises(InferenceServerException) as caught:
            call("mlp")
        assert caught.value.status() == "StatusCode.FAILED_PRECONDITION"
        assert "--model-control-mode explicit" in caught.value.message()


def test_an_error_says_what_was_expected_and_what_came(client: triton.InferenceServerClient):
    with pytest.raises(InferenceServerException) as caught:
        client.infer("mlp", [triton_input("features", np.zeros((1, 29), np.float32))])
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
    assert "[1, 29]" in caught.value.message()
    assert "30" in caught.value.message()


def test_a_stream_answers_in_order_and_goes_on_after_an_error(client: triton.InferenceServerClient):
    answers: queue.Queue = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    for number in range(10):
        model = "absent" if number == 4 else "raising"
        client.async_stream_infer(model, [triton_input("x", column(number))], request_id=str(number))
    received = [answers.get(timeout=PATIENCE_S) for _ in range(10)]
    client.stop_stream()
    for number, (result, error) in enumerate(received):
        if number == 4:
            assert result is None
            assert "absent" in str(error)
        else:
            assert error is None
            assert result.get_response().id == str(number)
            assert result.as_numpy("y").item() == 2.0 * number


# -- asyncio ----------------------------------------------------------------------------------------


def test_the_asyncio_client_infers_concurrently(server: Served, run):
    async def scenario():
        async with triton_aio.InferenceServerClient(server.grpc) as client:
            results = await asyncio.gather(
                *(client.infer("raising", [triton_input("x", column(number))]) for number in range(50))
            )
            return [result.as_numpy("y").item() for result in results]

    assert run(scenario()) == [2.0 * number for number in range(50)]


def test_the_asyncio_client_asks_how_things_are(server: Served, run):
    async def scenario():
        async with triton_aio.InferenceServerClient(server.grpc) as client:
            assert await client.is_server_live()
            assert await client.is_server_ready()
            assert await client.is_model_ready("mlp")
            assert (await client.get_server_metadata()).name == "tensorferry"
            assert (await client.get_model_metadata("mlp")).inputs[0].name == "features"
            assert (await client.get_model_config("mlp")).config.max_batch_size == 64
            assert (await client.get_inference_statistics("mlp")).model_stats[0].name == "mlp"
            assert "mlp" in [model.name for model in (await client.get_model_repository_index()).models]

    run(scenario())


def test_the_asyncio_client_gets_the_servers_error(server: Served, run):
    async def scenario():
        async with triton_aio.InferenceServerClient(server.grpc) as client:
            with pytest.raises(InferenceServerException) as caught:
                await client.infer("absent", [triton_input("x", column(1))])
            return caught.value.status()

    assert run(scenario()) == "StatusCode.NOT_FOUND"


def test_the_asyncio_client_streams(server: Served, run):
    async def requests():
        for number in range(10):
            yield {
                "model_name": "raising",
                "inputs": [triton_input("x", column(number))],
                "request_id": str(number),
            }

    async def scenario():
        async with triton_aio.InferenceServerClient(server.grpc) as client:
            received = []
            async for result, error in client.stream_infer(requests()):
                assert error is None
                received.append((result.get_response().id, result.as_numpy("y").item()))
            return received

    assert run(scenario()) == [(str(number), 2.0 * number) for number in range(10)]
