"""Many requests over one call."""

import asyncio
from contextlib import asynccontextmanager

import grpc
import numpy as np
import pytest
from tests.unit.client.support import ScriptedServer, echo, run, serving

from tensorferry.wire import open_inference_pb2 as pb
from tensorferry_client import AsyncClient, Cancelled, ClientError, InvalidRequest, ServerError, Unavailable


def number(value):
    return {"x": np.array([value], np.int32)}


def number_of(result):
    return result if isinstance(result, ClientError) else int(result.outputs["x"][0])


async def answered(request):
    return pb.ModelStreamInferResponse(infer_response=await echo(request, None))


async def echo_stream(requests, context):
    async for request in requests:
        yield await answered(request)


async def odd_ones_fail(requests, context):
    async for request in requests:
        if request.raw_input_contents[0][0] % 2:
            yield pb.ModelStreamInferResponse(error_message="odd")
        else:
            yield await answered(request)


def streaming(behaviour):
    service = ScriptedServer()
    service.stream = behaviour
    return serving(service)


@asynccontextmanager
async def opened(behaviour, **settings):
    """A stream to a server that behaves so."""
    async with (
        streaming(behaviour) as target,
        AsyncClient(target) as client,
        client.stream("m", **settings) as stream,
    ):
        yield stream


async def numbers(count):
    for value in range(count):
        yield number(value)


def test_requests_of_many_tasks_get_each_its_own_answer():
    async def scenario():
        async with opened(echo_stream, max_outstanding=4) as stream:
            calls = (stream.infer(number(value), request_id=f"r{value}") for value in range(20))
            return await asyncio.gather(*calls)

    results = run(scenario())
    assert [number_of(result) for result in results] == list(range(20))
    assert [result.id for result in results] == [f"r{value}" for value in range(20)]


def test_results_come_in_the_order_of_the_source():
    async def scenario():
        async with opened(echo_stream, max_outstanding=3) as stream:
            return [number_of(result) async for result in stream.results(numbers(20))]

    assert run(scenario()) == list(range(20))


def test_a_slow_source_does_not_hold_back_answers():
    async def scenario():
        async with streaming(echo_stream) as target, AsyncClient(target) as client:
            first_came = asyncio.Event()

            async def source():
                yield number(1)
                await first_came.wait()
                yield number(2)

            seen = []
            async with client.stream("m") as stream:
                async for result in stream.results(source()):
                    seen.append(number_of(result))
                    first_came.set()
            return seen

    assert run(scenario()) == [1, 2]


def test_a_failed_request_raises_and_the_stream_goes_on():
    async def scenario():
        async with opened(odd_ones_fail) as stream:
            with pytest.raises(ServerError, match="odd") as caught:
                await stream.infer(number(1))
            assert caught.value.code is grpc.StatusCode.UNKNOWN
            return number_of(await stream.infer(number(2)))

    assert run(scenario()) == 2


def test_among_results_an_error_stands_in_its_place():
    async def scenario():
        async with opened(odd_ones_fail) as stream:
            return [number_of(result) async for result in stream.results(numbers(4))]

    results = run(scenario())
    assert [results[0], results[2]] == [0, 2]
    assert [type(results[1]), type(results[3])] == [ServerError, ServerError]


def test_a_request_that_cannot_be_encoded_is_an_error_in_its_place():
    async def source():
        yield number(1)
        yield {"x": np.array([1j])}
        yield number(3)

    async def scenario():
        async with opened(echo_stream) as stream:
            return [number_of(result) async for result in stream.results(source())]

    first, second, third = run(scenario())
    assert (first, third) == (1, 3)
    assert isinstance(second, InvalidRequest)


def test_what_the_source_raises_comes_out_after_the_answers():
    seen = []

    async def source():
        yield number(1)
        raise LookupError("the source is broken")

    async def scenario():
        async with opened(echo_stream) as stream:
            seen.extend([number_of(result) async for result in stream.results(source())])

    with pytest.raises(LookupError):
        run(scenario())


def test_leaving_results_early_leaves_the_stream_usable():
    async def scenario():
        async with opened(echo_stream, max_outstanding=2) as stream:
            results = stream.results(numbers(100))
            first = number_of(await anext(results))
            await results.aclose()
            return first, number_of(await stream.infer(number(7)))

    assert run(scenario()) == (0, 7)


def test_no_more_than_the_bound_are_outstanding():
    async def scenario():
        received = []
        full, release = asyncio.Event(), asyncio.Event()

        async def read_on_without_answering(requests, context):
            async def read():
                async for request in requests:
                    received.append(request)
                    if len(received) == 4:
                        full.set()
                    await answers.put(request)
                await answers.put(None)

            answers = asyncio.Queue()
            reader = asyncio.create_task(read())
            await release.wait()
            while (request := await answers.get()) is not None:
                yield await answered(request)
            await reader

        async with (
            streaming(read_on_without_answering) as target,
            AsyncClient(target) as client,
            client.stream("m", max_outstanding=4) as stream,
        ):
            calls = [asyncio.create_task(stream.infer(number(value))) for value in range(12)]
            await full.wait()
            for _ in range(20):  # what had been written by now would come before these on the connection
                await client.server_live()
            outstanding = len(received)
            release.set()
            return outstanding, [number_of(result) for result in await asyncio.gather(*calls)]

    assert run(scenario()) == (4, list(range(12)))


def test_cancelling_one_who_waits_does_not_disturb_the_others():
    async def scenario():
        arrived, go_on = asyncio.Event(), asyncio.Event()

        async def behaviour(requests, context):
            async for request in requests:
                arrived.set()
                await go_on.wait()
                yield await answered(request)

        async with opened(behaviour) as stream:
            first = asyncio.create_task(stream.infer(number(1)))
            second = asyncio.create_task(stream.infer(number(2)))
            await arrived.wait()
            first.cancel()
            go_on.set()
            with pytest.raises(asyncio.CancelledError):
                await first
            return number_of(await second)

    assert run(scenario()) == 2


def test_a_broken_stream_fails_what_is_outstanding_and_what_comes_later():
    async def break_off(requests, context):
        async for _ in requests:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "draining")
        yield pb.ModelStreamInferResponse()

    async def scenario():
        async with opened(break_off, max_outstanding=2) as stream:
            calls = (stream.infer(number(value)) for value in range(5))
            early = await asyncio.gather(*calls, return_exceptions=True)
            with pytest.raises(Unavailable, match="draining"):
                await stream.infer(number(9))
            return early

    assert [type(error) for error in run(scenario())] == [Unavailable] * 5


def test_a_server_that_ends_the_stream_early_fails_what_is_outstanding():
    async def stop_after_one(requests, context):
        async for request in requests:
            yield await answered(request)
            return

    async def scenario():
        async with opened(stop_after_one) as stream:
            calls = (stream.infer(number(value)) for value in range(3))
            return await asyncio.gather(*calls, return_exceptions=True)

    first, *others = run(scenario())
    assert number_of(first) == 0
    assert [str(error) for error in others] == ["the server ended the stream"] * 2


def test_answers_out_of_order_break_the_stream():
    async def swap(requests, context):
        held = [await anext(requests), await anext(requests)]
        for request in reversed(held):
            yield await answered(request)

    async def scenario():
        async with opened(lambda requests, context: swap(aiter(requests), context)) as stream:
            calls = (stream.infer(number(value), request_id=f"r{value}") for value in range(2))
            return await asyncio.gather(*calls, return_exceptions=True)

    assert [type(error) for error in run(scenario())] == [ServerError, ServerError]


def test_leaving_the_stream_waits_for_the_answers():
    async def scenario():
        async with opened(echo_stream) as stream:
            calls = [asyncio.create_task(stream.infer(number(value))) for value in range(3)]
            await asyncio.sleep(0)  # the tasks have begun
        return [number_of(call.result()) for call in calls if call.done()]

    assert run(scenario()) == [0, 1, 2]


def test_an_exception_in_the_block_cancels_the_stream():
    async def scenario():
        arrived, never = asyncio.Event(), asyncio.Event()

        async def hang(requests, context):
            async for request in requests:
                arrived.set()
                await never.wait()
                yield await answered(request)

        async with streaming(hang) as target, AsyncClient(target) as client:
            stream = client.stream("m")
            await stream.__aenter__()
            call = asyncio.create_task(stream.infer(number(1)))
            await arrived.wait()
            await stream.__aexit__(LookupError, LookupError(), None)
            with pytest.raises(Cancelled):
                await call
            with pytest.raises(Cancelled):
                await stream.infer(number(2))

    run(scenario())


def test_a_stream_is_opened_first_and_used_once():
    async def scenario():
        async with streaming(echo_stream) as target, AsyncClient(target) as client:
            stream = client.stream("m")
            with pytest.raises(RuntimeError, match="isn't open"):
                await stream.infer(number(1))
            async with stream:
                pass
            with pytest.raises(RuntimeError, match="once"):
                await stream.__aenter__()
            with pytest.raises(ValueError, match="max_outstanding"):
                client.stream("m", max_outstanding=0)

    run(scenario())
