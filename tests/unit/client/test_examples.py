"""The examples run as they stand."""

import asyncio
import sys
from pathlib import Path

import numpy as np
import pytest
from tests.unit.client.support import ScriptedServer, run, serving

from tensorferry.wire import open_inference_pb2 as pb

EXAMPLES = Path(__file__).parents[3] / "clients" / "examples"


async def half(request, context):
    """A score of 0.5 for each row."""
    shape = [request.inputs[0].shape[0], 1]
    raw = np.full(shape, 0.5, np.float32).tobytes()
    response = pb.ModelInferResponse(
        model_name=request.model_name, model_version="1", id=request.id, raw_output_contents=[raw]
    )
    response.outputs.add(name="OUTPUT__0", datatype="FP32", shape=shape)
    return response


async def half_stream(requests, context):
    async for request in requests:
        yield pb.ModelStreamInferResponse(infer_response=await half(request, context))


async def output_of(example, target):
    process = await asyncio.create_subprocess_exec(
        sys.executable, EXAMPLES / example, target, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    return process.returncode, output.decode()


@pytest.mark.parametrize(
    ("example", "expected"),
    [
        ("infer.py", "OUTPUT__0 = [[0.5], [0.5]]"),
        ("infer_async.py", "100 requests of a stream answered"),
        ("score.py", "ScorerStatistics"),
    ],
)
def test_an_example_does_what_it_says(example, expected):
    async def scenario():
        service = ScriptedServer(half)
        service.stream = half_stream
        async with serving(service) as target:
            return await output_of(example, target)

    returncode, output = run(scenario())
    assert returncode == 0
    assert expected in output


def test_every_example_is_run_here():
    assert {path.name for path in EXAMPLES.glob("*.py")} == {"infer.py", "infer_async.py", "score.py"}
