"""ModelStatistics as tritonclient and Triton's perf_analyzer read it: consistent, and of all processes."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest
from tests.integration.support import wait_until
from tritonclient import grpc as triton
from tritonclient.utils import InferenceServerException

from tensorferry.testing.models import write_mlp, write_raising
from tensorferry.testing.process import ServerProcess

#: What success is made of.
PARTS = ("queue", "compute_input", "compute_infer", "compute_output", "cache_hit")

CACHED = "response_cache { enable: true }\n"


@contextmanager
def serving(root: Path, *flags: str) -> Iterator[tuple[ServerProcess, list[triton.InferenceServerClient]]]:
    """Serve with several clients, each with a connection of its own."""
    write_mlp(root)
    write_mlp(root, "cached", options=CACHED)
    write_raising(root)
    with ExitStack() as stack:
        process = stack.enter_context(ServerProcess(root, root.parent / "server.log", flags=flags))
        own = [("grpc.use_local_subchannel_pool", 1)]
        clients = [triton.InferenceServerClient(process.grpc_address, channel_args=own) for _ in range(8)]
        for client in clients:
            stack.callback(client.close)
        yield process, clients


def features(rows: int, value: float = 0.0) -> list[triton.InferInput]:
    tensor = triton.InferInput("features", [rows, 30], "FP32")
    tensor.set_data_from_numpy(np.full((rows, 30), value, np.float32))
    return [tensor]


def number(duration: Mapping[str, str], what: str) -> int:
    return int(duration.get(what, 0))


def statistics(client: triton.InferenceServerClient, name: str = "mlp") -> dict:
    (line,) = client.get_inference_statistics(name, as_json=True)["model_stats"]
    return line


def assert_consistent(line: dict) -> None:
    stats = line["inference_stats"]
    assert number(stats["success"], "ns") == sum(number(stats[part], "ns") for part in PARTS)
    sizes = line.get("batch_stats", [])
    counts = {int(size["batch_size"]): number(size["compute_infer"], "count") for size in sizes}
    assert number(line, "execution_count") == sum(counts.values())
    assert number(line, "inference_count") == sum(rows * count for rows, count in counts.items())
    hits = number(stats["cache_hit"], "count")
    assert number(stats["success"], "count") == number(stats["compute_infer"], "count") + hits


@pytest.mark.parametrize("processes", [1, 2])
def test_counts_are_of_all_processes_and_add_up(tmp_path, processes):
    with serving(tmp_path / "models", "--processes", str(processes)) as (_, clients):
        for client in clients:
            client.infer("mlp", features(3))
            client.infer("cached", features(1))
        told = [statistics(client) for client in clients]
        assert all(line == told[0] for line in told)
        assert number(told[0], "inference_count") == 3 * len(clients)
        assert number(told[0]["inference_stats"]["success"], "count") == len(clients)
        assert_consistent(told[0])
        cached = statistics(clients[0], "cached")
        assert_consistent(cached)
        stats = cached["inference_stats"]
        assert number(stats["success"], "count") == len(clients)
        misses = number(stats["cache_miss"], "count")
        assert misses + number(stats["cache_hit"], "count") == len(clients)
        assert misses <= processes


def test_what_fails_is_counted_as_that(tmp_path):
    with serving(tmp_path / "models") as (_, (client, *_)):
        tensor = triton.InferInput("x", [1, 1], "FP32")
        tensor.set_data_from_numpy(np.full((1, 1), -1.0, np.float32))
        with pytest.raises(InferenceServerException):
            client.infer("raising", [tensor])
        line = statistics(client, "raising")
        assert number(line["inference_stats"]["fail"], "count") == 1
        assert number(line["inference_stats"]["success"], "count") == 0
        assert number(line, "execution_count") == 0
        assert_consistent(line)


def processes_of(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
    return [int(child) for child in children.split()]


def test_a_process_that_dies_takes_no_counts_along_that_were_told(tmp_path):
    with serving(tmp_path / "models", "--processes", "2") as (process, clients):
        for client in clients:
            client.infer("mlp", features(1))
        assert number(statistics(clients[0]), "inference_count") == len(clients)
        victim = processes_of(process.pid)[0]
        os.kill(victim, signal.SIGKILL)
        wait_until(
            lambda: victim not in processes_of(process.pid) and len(processes_of(process.pid)) == 2,
            "a new process",
        )
        fresh = triton.InferenceServerClient(process.grpc_address)

        def told() -> int:
            try:
                return number(statistics(fresh), "inference_count")
            except InferenceServerException:  # a connection that the one which died had
                return 0

        wait_until(lambda: told() == len(clients), "the counts from before")
        fresh.close()


def test_a_model_that_was_unloaded_starts_anew(tmp_path):
    flags = ("--model-control-mode", "explicit", "--load-model", "*")
    with serving(tmp_path / "models", *flags) as (_, (client, *_)):
        client.infer("mlp", features(1))
        assert number(statistics(client), "inference_count") == 1
        client.unload_model("mlp")
        client.load_model("mlp")
        assert number(statistics(client), "inference_count") == 0
