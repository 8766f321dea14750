"""The model on mosec: HTTP/1 with a raw body of 30 FP32, batched up to 64. Run by mosec's environment.

``python mosec_server.py MODEL BATCH --port PORT``; mosec reads the flags itself.
"""

from __future__ import annotations

import os
import sys

# mosec reads sys.argv when it is imported, in this process and in its workers (which are spawned):
# our own two words are taken out of it, and handed on.
if len(sys.argv) > 2 and not sys.argv[1].startswith("-"):
    os.environ["BENCH_MODEL"], os.environ["BENCH_BATCH"] = sys.argv[1:3]
    del sys.argv[1:3]

import numpy as np
import torch
from mosec import Server, Worker

MAX_ROWS = int(os.environ["BENCH_BATCH"])


class Fraud(Worker):
    def __init__(self) -> None:
        super().__init__()
        torch.set_num_threads(1)
        self._model = torch.jit.load(os.environ["BENCH_MODEL"])
        with torch.inference_mode():
            for rows in (1, 2, 4, 8, 16, 32, 64) * 5:
                self._model(torch.zeros(rows, 30))

    def deserialize(self, data: bytes) -> np.ndarray:
        return np.frombuffer(data, np.float32)

    def serialize(self, data: bytes) -> bytes:
        return data

    def forward(self, data: list[np.ndarray]) -> list[bytes]:
        with torch.inference_mode():
            scores = self._model(torch.from_numpy(np.stack(data))).numpy()
        return [score.tobytes() for score in scores]


if __name__ == "__main__":
    server = Server()
    # 1 ms is the least that mosec waits for company.
    server.append_worker(Fraud, num=1, max_batch_size=MAX_ROWS, max_wait_time=1)
    server.run()
