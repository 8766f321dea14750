"""Keep many requests in flight, which batching lives on: ``python clients/examples/infer_async.py [target]``.

First as single calls, then over one stream. The server has a model ``fraud`` that takes float32 (rows, 30).
"""

import asyncio
import sys
from collections.abc import AsyncIterator

import numpy as np

from tensorferry_client import AsyncClient, ClientError, InferResult


async def main(target: str) -> None:
    """Send 100 rows one by one, all at once, and then 100 more over a stream."""
    rows = np.random.default_rng(0).normal(size=(100, 1, 30)).astype(np.float32)
    async with AsyncClient(target) as client:
        name = (await client.model_metadata("fraud")).inputs[0].name
        results = await asyncio.gather(*(client.infer("fraud", {name: row}) for row in rows))
        print(f"{len(results)} calls answered")

        async def source() -> AsyncIterator[dict[str, np.ndarray]]:
            for row in rows:
                yield {name: row}

        async with client.stream("fraud", max_outstanding=32) as stream:
            answers = [answer async for answer in stream.results(source())]
        print(f"{sum(isinstance(answer, InferResult) for answer in answers)} requests of a stream answered")


if __name__ == "__main__":
    try:
        asyncio.run(main(*sys.argv[1:2] or ["127.0.0.1:8001"]))
    except ClientError as error:
        sys.exit(f"{type(error).__name__}: {error}")
