"""Lines go to a real descriptor: one that is read, one that isn't, a full disk, a closed one."""

from __future__ import annotations

import os
import threading

import pytest
from tests.unit.support import PATIENCE_S

from tensorferry.logs.writer import Writer


@pytest.fixture
def pipe():
    reading, writing = os.pipe()
    ends = [reading, writing]
    yield ends
    for end in ends:
        os.close(end)


def read_lines(fd, count):
    data = b""
    while data.count(b"\n") < count:
        data += os.read(fd, 65536)
    return data.decode().splitlines()


def test_lines_are_written_in_their_order(tmp_path):
    path = tmp_path / "log"
    with path.open("wb") as file:
        writer = Writer(file.fileno())
        for number in range(5000):
            writer.write(f"line {number}")
        assert writer.flush(PATIENCE_S)
    assert path.read_text().splitlines() == [f"line {number}" for number in range(5000)]
    assert writer.dropped == 0


def test_nobody_waits_for_a_pipe_that_is_not_read(pipe):
    writer = Writer(pipe[1], max_lines=1000, max_bytes=2**20)
    for number in range(10_000):
        writer.write(f"{number} " + "x" * 100)
    assert not writer.flush(0.0)
    assert writer.dropped > 0
    # What was taken comes out, in order, once somebody reads; then new lines are taken again.
    lines = read_lines(pipe[0], 10_000 - writer.dropped)
    numbers = [int(line.split()[0]) for line in lines]
    assert numbers == sorted(numbers)
    assert numbers[0] == 0
    assert len(numbers) == 10_000 - writer.dropped
    assert writer.flush(PATIENCE_S)
    writer.write("after")
    assert read_lines(pipe[0], 1) == ["after"]


def test_errors_have_a_place_in_the_queue_when_others_have_none(pipe):
    writer = Writer(pipe[1], max_lines=100)
    for number in range(5000):
        writer.write(f"{number} " + "x" * 1000)
    dropped = writer.dropped
    writer.write("model not loaded", is_urgent=True)
    assert writer.dropped == dropped
    lines = read_lines(pipe[0], 5001 - dropped)
    assert lines[-1] == "model not loaded"


def test_the_queue_is_bounded_in_bytes(pipe):
    writer = Writer(pipe[1], max_bytes=10_000)
    writer.write("x" * 20_000)
    assert writer.dropped == 1
    for _ in range(1000):
        writer.write("x" * 1000, is_urgent=True)
    assert writer._bytes <= 10_000


def test_a_full_disk_costs_the_lines_and_nothing_else():
    with open("/dev/full", "wb") as full:
        writer = Writer(full.fileno())
        for _ in range(100):
            writer.write("x")
        assert writer.flush(PATIENCE_S)
    assert writer.dropped == 100
    assert not writer.is_well


def test_a_closed_descriptor_costs_the_lines_and_nothing_else(pipe):
    writing = pipe.pop()
    os.close(writing)
    writer = Writer(writing)
    writer.write("x")
    assert writer.flush(PATIENCE_S)
    assert writer.dropped == 1


def test_a_pipe_whose_reader_has_gone_costs_the_lines_and_nothing_else(pipe):
    os.close(pipe.pop(0))
    writer = Writer(pipe[0])
    writer.write("x")
    assert writer.flush(PATIENCE_S)
    assert writer.dropped == 1


def test_without_standard_error_all_is_dropped():
    writer = Writer(None)
    writer.write("x")
    assert writer.flush(PATIENCE_S)
    assert writer.dropped == 1


def test_a_descriptor_that_does_not_block_is_waited_for(pipe):
    os.set_blocking(pipe[1], False)
    writer = Writer(pipe[1])
    for number in range(2000):
        writer.write(f"{number} " + "x" * 200)
    lines = read_lines(pipe[0], 2000)
    assert [int(line.split()[0]) for line in lines] == list(range(2000))
    assert writer.dropped == 0


def test_short_lines_go_out_in_pieces_that_do_not_mix_with_others(pipe):
    writer = Writer(pipe[1])
    sizes = []
    for number in range(3000):
        writer.write(f"{number:0100}")
    while sum(sizes) < 3000 * 101:
        piece = os.read(pipe[0], 4096)
        assert piece.endswith(b"\n") or len(piece) == 4096
        sizes.append(len(piece))
    assert sum(sizes) == 3000 * 101


def test_nothing_that_a_line_holds_can_raise(tmp_path):
    path = tmp_path / "log"
    with path.open("wb") as file:
        writer = Writer(file.fileno())
        writer.write("\udcff lone \ud800")
        assert writer.flush(PATIENCE_S)
    assert path.read_bytes() == b"\\udcff lone \\ud800\n"


def test_what_is_idle_is_asked_when_poked():
    asked = threading.Event()
    first = threading.Event()

    def idle():
        (asked if first.is_set() else first).set()

    writer = Writer(None, idle)
    writer.write("x")
    assert first.wait(PATIENCE_S)
    assert writer.flush(PATIENCE_S)
    writer.poke()
    assert asked.wait(PATIENCE_S)


def test_a_writer_that_was_never_used_has_nothing_to_flush():
    before = threading.active_count()
    assert Writer(None).flush(0.0)
    assert threading.active_count() == before
