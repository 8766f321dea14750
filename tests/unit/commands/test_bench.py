"""The arguments of ``tensorferry bench``: what they mean, and what is said of wrong ones."""

from __future__ import annotations

import pytest

from tensorferry.cli import main
from tensorferry.commands import bench


def parsed(*arguments: str):
    import argparse

    parser = argparse.ArgumentParser()
    bench.add_flags(parser, "localhost:8001")
    return bench.plan_of(parser.parse_args(["mlp", *arguments]))


def test_the_default_is_a_closed_loop():
    plan = parsed()
    assert (plan.is_open, plan.levels, plan.seconds, plan.is_sweep) == (False, (16.0,), 10.0, False)


def test_a_rate_is_an_open_loop():
    plan = parsed("--rate", "250.5")
    assert (plan.is_open, plan.levels) == (True, (250.5,))


def test_sweeps_have_two_levels():
    assert parsed("--sweep-concurrency", "1:64", "--objective-ms", "5").levels == (1.0, 64.0)
    plan = parsed("--sweep-rate", "100:1e4", "--objective-ms", "5", "--percentile", "99.9")
    assert (plan.is_open, plan.is_sweep, plan.limits.percentile) == (True, True, 99.9)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--rate", "0"], "must be more than 0"),
        (["--rate", "nan"], "must be more than 0"),
        (["--rate", "fast"], "isn't a number"),
        (["--concurrency", "1.5"], "isn't a whole number"),
        (["--rate", "1", "--concurrency", "1"], "not allowed with"),
        (["--sweep-rate", "100"], "isn't LOW:HIGH"),
        (["--sweep-rate", "100:50"], "must be less"),
        (["--percentile", "101"], "at most 100"),
        (["--shape", "x"], "isn't NAME:DIMS"),
        (["--shape", "x:1,-1"], "isn't NAME:DIMS"),
        (["--arrivals", "bursty"], "invalid choice"),
    ],
)
def test_wrong_arguments_are_named(arguments, said, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["bench", "mlp", *arguments])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--sweep-concurrency", "1:64"], "--objective-ms"),
        (["--sweep-concurrency", "1.5:64", "--objective-ms", "1"], "whole numbers"),
        (["--server", "localhost"], "isn't HOST:PORT"),
        (["--server", "https://localhost:8001"], "no TLS"),
        (["--server", "unix:/tmp/socket"], "isn't HOST:PORT"),
        (["--server", "127.0.0.1:1"], "no server can be reached at 127.0.0.1:1"),
        (["--json", "/missing/directory/a.json"], "make it first"),
    ],
)
def test_calls_that_make_no_sense_exit_with_2_and_say_why(arguments, said, capsys):
    assert main(["bench", "mlp", *arguments]) == 2
    assert said in capsys.readouterr().err
