from __future__ import annotations

import asyncio
import json

from structlog.testing import capture_logs
from tests.unit.support import run

from tensorferry.monitoring.families import Families, Family
from tensorferry.monitoring.feed import Feed, FeedLimits
from tensorferry.testing.clock import VirtualClock

NAME = "nv_inference_request_success"


class Counting:
    """A source whose one counter grows by 1 each time that it is asked; told to, it raises or hangs."""

    def __init__(self) -> None:
        self.asked = 0
        self.error: Exception | None = None
        self.hangs = False

    async def families(self) -> Families:
        self.asked += 1
        if self.error is not None:
            raise self.error
        if self.hangs:
            await asyncio.Event().wait()
        return {
            NAME: Family(NAME, "", "counter", ("model", "version"), values={("m", "1"): float(self.asked)})
        }


class Stage:
    """A feed on virtual time."""

    def __init__(self, **limits) -> None:
        self.clock = VirtualClock()
        self.source = Counting()
        self.feed = Feed(self.source, self.clock, limits=FeedLimits(**limits))

    async def settle(self) -> None:
        """Let everything happen that needs no time."""
        for _ in range(30):
            await asyncio.sleep(0)

    async def pass_s(self, seconds: int) -> None:
        for _ in range(seconds):
            self.clock.advance(1.0)
            await self.settle()

    async def __aenter__(self) -> Stage:
        self.feed.start()
        await self.settle()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.feed.stop()


def on_stage(use, **limits):
    async def main():
        async with Stage(**limits) as stage:
            await use(stage)

    run(main())


def rates(frames: list[bytes]) -> list[float]:
    return [json.loads(frame)["models"][0]["requests_per_s"] for frame in frames]


def test_a_watched_feed_samples_each_second_and_an_unwatched_one_seldom():
    async def use(stage: Stage):
        await stage.pass_s(20)
        assert stage.source.asked == 1 + 4
        viewer = stage.feed.watch()
        before = stage.source.asked
        await stage.pass_s(10)
        assert stage.source.asked == before + 10
        stage.feed.leave(viewer)
        before = stage.source.asked
        await stage.pass_s(20)
        assert stage.source.asked - before in (4, 5)

    on_stage(use)


def test_a_first_viewer_need_not_wait_for_the_next_seldom_sample():
    async def use(stage: Stage):
        await stage.pass_s(6)  # sampled at 0 and 5
        stage.feed.watch()
        await stage.settle()
        assert stage.source.asked == 3

    on_stage(use)


def test_frames_say_the_interval_that_they_are_of():
    async def use(stage: Stage):
        await stage.pass_s(5)
        stage.feed.watch()
        await stage.pass_s(1)
        intervals = [json.loads(frame)["interval_s"] for frame in stage.feed.history()]
        assert intervals == [5.0, 1.0]
        assert rates(stage.feed.history()) == [0.2, 1.0]

    on_stage(use)


def test_a_sample_that_came_late_is_not_followed_at_once():
    async def use(stage: Stage):
        stage.feed.watch()
        await stage.pass_s(1)
        stage.clock.sleep(3.9)  # the loop was busy: the sample of second 2 is made now
        stage.clock.advance(0.0)
        await stage.settle()
        await stage.pass_s(2)
        intervals = [json.loads(frame)["interval_s"] for frame in stage.feed.history()]
        assert intervals[:2] == [1.0, 3.9]
        assert min(intervals) >= 0.5

    on_stage(use)


def test_all_viewers_get_the_same_bytes():
    async def use(stage: Stage):
        viewers = [stage.feed.watch() for _ in range(3)]
        await stage.pass_s(2)
        frames = [await viewer.next() for viewer in viewers]
        assert frames[0] is frames[1] is frames[2]

    on_stage(use)


def test_a_late_viewer_finds_the_last_minutes():
    async def use(stage: Stage):
        stage.feed.watch()
        await stage.pass_s(400)
        history = stage.feed.history()
        assert len(history) == 301  # both ends of five minutes
        late = stage.feed.watch()
        await stage.pass_s(1)
        assert await late.next() == stage.feed.history()[-1]
        assert stage.feed.history()[-2] == history[-1]

    on_stage(use)


def test_the_history_is_bounded_in_bytes_too():
    async def use(stage: Stage):
        stage.feed.watch()
        await stage.pass_s(60)
        assert 1 < len(stage.feed.history()) < 20
        assert sum(map(len, stage.feed.history())) <= 8_000

    on_stage(use, history_bytes=8_000)


def test_a_viewer_that_does_not_read_holds_one_frame_the_latest():
    async def use(stage: Stage):
        slow, quick = stage.feed.watch(), stage.feed.watch()
        for _ in range(10):
            await stage.pass_s(1)
            latest = await quick.next()
        assert slow.dropped == 9
        assert quick.dropped == 0
        assert await slow.next() is latest
        waiting = asyncio.ensure_future(slow.next())
        await stage.settle()
        assert not waiting.done()
        await stage.pass_s(1)
        assert waiting.done()

    on_stage(use)


def test_there_are_as_many_viewers_as_may_be():
    async def use(stage: Stage):
        viewers = [stage.feed.watch() for _ in range(2)]
        assert None not in viewers
        assert stage.feed.watch() is None
        stage.feed.leave(viewers[0])
        assert stage.feed.watch() is not None

    on_stage(use, viewers=2)


def test_a_source_that_raises_is_asked_again_and_complained_of_once():
    async def use(stage: Stage):
        viewer = stage.feed.watch()
        stage.source.error = RuntimeError("no answer from process 2")
        with capture_logs() as logs:
            await stage.pass_s(5)
        assert [line["reason"] for line in logs] == ["no answer from process 2"]
        assert stage.source.asked == 6
        stage.source.error = None
        await stage.pass_s(1)
        assert json.loads(await viewer.next())["interval_s"] == 6.0

    on_stage(use)


def test_a_source_that_hangs_is_given_up_and_asked_again():
    async def use(stage: Stage):
        viewer = stage.feed.watch()
        await stage.pass_s(1)
        await viewer.next()
        stage.source.hangs = True
        with capture_logs() as logs:
            await stage.pass_s(5)
            assert logs == []
            await stage.pass_s(2)
        assert [line["reason"] for line in logs] == ["no answer within 5 s"]
        stage.source.hangs = False
        await stage.pass_s(6)
        assert json.loads(await viewer.next())["models"][0]["model"] == "m"

    on_stage(use)


def test_a_source_that_tells_the_same_again_makes_no_frame():
    async def use(stage: Stage):
        same = await stage.source.families()

        async def again() -> Families:
            return same

        stage.source.families = again
        stage.feed.watch()
        await stage.pass_s(3)
        assert len(stage.feed.history()) == 1

    on_stage(use)


def test_stopping_ends_a_sample_that_hangs():
    async def main():
        stage = Stage()
        stage.source.hangs = True
        async with stage:
            assert stage.source.asked == 1

    run(main())


def test_a_frame_of_many_versions_is_whole_and_made_in_several_turns():
    class Many(Counting):
        async def families(self) -> Families:
            self.asked += 1
            values = {(f"m{number:03}", "1"): float(self.asked) for number in range(300)}
            return {NAME: Family(NAME, "", "counter", ("model", "version"), values=values)}

    async def use(stage: Stage):
        stage.feed._source = Many()
        viewer = stage.feed.watch()
        for _ in range(3):
            stage.clock.advance(1.0)
            for _ in range(100):
                await asyncio.sleep(0)
        frame = json.loads(await viewer.next())
        assert [each["model"] for each in frame["models"]] == [f"m{number:03}" for number in range(300)]
        assert set(frame) == {"at", "interval_s", "server", "gpus", "total", "models"}

    on_stage(use)


def test_a_frame_without_versions_is_whole():
    async def use(stage: Stage):
        async def nothing() -> Families:
            stage.source.asked += 1
            return {}

        stage.source.families = nothing
        viewer = stage.feed.watch()
        await stage.pass_s(3)
        assert json.loads(await viewer.next())["models"] == []

    on_stage(use)
