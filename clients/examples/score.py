"""Score within a budget, with or without a server: ``python clients/examples/score.py [target]``."""

import asyncio
import sys

import numpy as np

from tensorferry_client import Decision, FraudScorer, Thresholds


async def main(target: str) -> None:
    """Score five transactions and print who decided what."""
    transactions = np.random.default_rng(0).normal(size=(5, 30)).astype(np.float32)
    scorer = FraudScorer(
        target, budget_ms=10.0, thresholds=Thresholds(review=0.5, decline=0.9), fallback=Decision.REVIEW
    )
    async with scorer:
        for transaction in transactions:
            scored = await scorer.score(transaction)
            why = f" ({scored.reason})" if scored.reason else ""
            print(f"{scored.decision.value:8} by {scored.source}{why} in {scored.elapsed_ms:.2f} ms")
    print(scorer.statistics())


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:2] or ["127.0.0.1:8001"]))
