"""The live page: over HTTP, and as a browser shows it. The browser's tests need Debian's Chromium."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import numpy as np
import pytest
from aiohttp import web
from tests.integration import gpus
from tests.integration.conftest import Served
from tests.integration.support import PATIENCE_S, fetch, request_of, wait_until
from tools.chromium import Browser, missing

from tensorferry.clock import LoopClock
from tensorferry.monitoring.families import Families, Family
from tensorferry.monitoring.feed import Feed, FeedLimits
from tensorferry.monitoring.page import LivePage, page_html
from tensorferry.testing.models import write_identity
from tensorferry.testing.process import ServerProcess

HOSTILE = "<img src=x onerror=\"document.title='taken'\">"

needs_browser = pytest.mark.skipif(bool(missing()), reason=missing())


def events(address: str) -> Iterator[tuple[str, object]]:
    """Read (name, data) of the server's events until the caller has enough."""
    connection = http.client.HTTPConnection(address, timeout=PATIENCE_S)
    connection.request("GET", "/live/events")
    response = connection.getresponse()
    assert response.status == 200
    assert response.headers["Content-Type"] == "text/event-stream"
    assert response.headers["Cache-Control"] == "no-store"
    assert response.headers["X-Accel-Buffering"] == "no"
    name, data = "message", []
    with contextlib.closing(connection):
        for line in response:
            field, _, value = line.decode().rstrip("\n").partition(": ")
            if field == "event":
                name = value
            elif field == "data":
                data.append(value)
            elif not field and data:
                yield name, json.loads("\n".join(data))
                name, data = "message", []


# -- over HTTP --------------------------------------------------------------------------------------


def test_the_page_is_one_response_that_asks_for_nothing_else(server: Served):
    status, body, kind = fetch(server.http, "/")
    assert status == 200
    assert kind == "text/html; charset=utf-8"
    assert len(body) < 150_000
    text = re.sub(r"<(script|style)>.*?</\1>", "", body.decode(), flags=re.DOTALL)
    assert re.findall(r'(?:src|href)="([^"]*)"', text) == ["data:,", "/metrics", "/healthz/ready"]
    assert "@import" not in body.decode()
    assert "url(" not in body.decode()


def test_the_page_permits_only_what_is_in_it(server: Served):
    connection = http.client.HTTPConnection(server.http, timeout=PATIENCE_S)
    with contextlib.closing(connection):
        connection.request("GET", "/")
        headers = connection.getresponse().headers
    policy = dict(part.split(" ", 1) for part in headers["Content-Security-Policy"].split("; "))
    assert policy["default-src"] == policy["base-uri"] == policy["frame-ancestors"] == "'none'"
    assert policy["connect-src"] == "'self'"
    assert "unsafe" not in headers["Content-Security-Policy"]
    assert re.fullmatch(r"'sha256-[\w+/]+='", policy["script-src"])
    assert re.fullmatch(r"'sha256-[\w+/]+='", policy["style-src"])
    assert headers["X-Content-Type-Options"] == "nosniff"


def test_the_library_comes_with_its_licence():
    static = Path(__file__).parents[2] / "server/tensorferry/monitoring/static"
    assert "(v1.6.32)" in (static / "uPlot.iife.min.js").read_text(encoding="utf-8")
    assert "MIT License" in (static / "uPlot.LICENSE").read_text(encoding="utf-8")
    assert "{{" not in page_html()


def test_events_begin_with_the_history_and_go_on_with_what_happens(server: Served, stub):
    stream = events(server.http)
    name, history = next(stream)
    assert name == "history"
    assert isinstance(history, list)
    request = request_of("identity_int32", {"x": np.zeros((3, 2), np.int32)})
    stub.ModelInfer(request)
    for name, frame in stream:
        assert name == "message"
        (model,) = (each for each in frame["models"] if each["model"] == "identity_int32")
        if model["rows_per_s"]:
            break
    assert model["p99_ms"] > 0
    assert sum(model["batch_rows"]["counts"]) >= 1
    assert model["ready"] is True
    assert frame["server"]["ready"] is True
    again, history = next(events(server.http))
    assert again == "history"
    assert frame in history


@pytest.fixture
def serve_page(run):
    """Run ``use(feed, port)`` with a page over a source of one's own on a port of its own."""

    def serve(source, use, limits: FeedLimits, **page_options):
        async def main():
            clock = LoopClock()
            feed = Feed(source, clock, limits=limits)
            page = LivePage(feed, **page_options)
            application = web.Application()
            for path, handler in page.routes().items():
                application.router.add_get(path, handler)
            runner = web.AppRunner(application, access_log=None)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            feed.start()
            try:
                await use(feed, runner.addresses[0][1])
            finally:
                await page.stop()
                await feed.stop()
                await runner.cleanup()
                clock.close()

        return run(main())

    return serve


class Fixed:
    """A source of as many versions of one model as told, which answer more each time."""

    def __init__(self, model: str, versions: int = 1) -> None:
        self._keys = [(model, str(number)) for number in range(1, versions + 1)]
        self._count = 0.0

    async def families(self) -> Families:
        counts = Family("nv_inference_request_success", "", "counter", ("model", "version"))
        self._count += 5.0
        counts.values.update(dict.fromkeys(self._keys, self._count))
        labels = Family("tensorferry_model_label", "", "gauge", ("model", "version", "label"))
        labels.values.update({(*key, HOSTILE): 1.0 for key in self._keys})
        return {each.name: each for each in (counts, labels)}


class OnGpu(Fixed):
    """The same of a model on a GPU, where it runs more batches each time."""

    async def families(self) -> Families:
        return await super().families() | gpus.families_of("m", "1", batches=int(self._count))


async def until(condition) -> None:
    while not condition():  # noqa: ASYNC110 - what it waits for has no event
        await asyncio.sleep(0)


QUICK = FeedLimits(watched_s=0.005, unwatched_s=0.005, viewers=2)


def test_a_viewer_that_never_reads_is_let_go_and_the_others_get_all(serve_page):
    async def use(feed: Feed, port: int):
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**16)
        connection = writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        reader._transport.pause_reading()
        writer.write(b"GET /live/events HTTP/1.1\r\nHost: here\r\n\r\n")
        await until(lambda: feed.viewers == 1)
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"http://127.0.0.1:{port}/live/events") as good,
        ):
            assert feed.viewers == 2
            while feed.viewers == 2:
                assert await good.content.readline()
            assert feed.viewers == 1
            assert await good.content.readline()
        await until(lambda: feed.viewers == 0)
        writer.close()

    serve_page(Fixed("m", 20), use, QUICK, write_s=0.05)


def test_one_viewer_too_many_hears_why(serve_page):
    async def use(feed: Feed, port: int):
        url = f"http://127.0.0.1:{port}/live/events"
        async with aiohttp.ClientSession() as session, session.get(url), session.get(url):
            async with session.get(url) as refused:
                assert refused.status == 503
                assert "2 viewers watch this server" in await refused.text()
            assert feed.viewers == 2

    serve_page(Fixed("m"), use, QUICK)


# -- in a browser -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as opened:
        opened.screen(1280, 900)
        yield opened


def text_of(browser: Browser, selector: str) -> str:
    return browser.run(f"return document.querySelector({selector!r})?.innerText ?? ''")


def is_live(browser: Browser) -> bool:
    return text_of(browser, "#connection") == "live"


def wait_for_models(browser: Browser) -> None:
    wait_until(lambda: "/1" in text_of(browser, "#models tbody"), "the page shows a model")


@needs_browser
def test_the_page_shows_what_a_server_does(server: Served, stub, browser: Browser):
    browser.console()
    browser.open(f"http://{server.http}/#identity_uint8%2F1")
    wait_for_models(browser)
    request = request_of("identity_uint8", {"x": np.zeros((2, 2), np.uint8)})

    def shows_the_calls() -> bool:
        stub.ModelInfer(request)
        row = browser.run("return document.querySelector('tr.chosen')?.cells[1].innerText")
        return bool(row and re.search("[1-9]", row))

    wait_until(shows_the_calls, "the row of the model shows requests")
    assert text_of(browser, "#detail-title").startswith("identity_uint8/1")
    assert "requests" in text_of(browser, "#charts figure .legend")
    assert browser.run("return document.querySelectorAll('#charts canvas').length") == 9
    assert text_of(browser, "#findings li") != ""
    assert is_live(browser)
    assert browser.console() == []


@needs_browser
def test_the_page_asks_nobody_but_its_server(server: Served, browser: Browser):
    browser.open(f"http://{server.http}/")
    wait_for_models(browser)
    asked = browser.run("return performance.getEntriesByType('resource').map((each) => each.name)")
    assert {url for url in asked if not url.startswith("data:")} <= {f"http://{server.http}/live/events"}


@needs_browser
def test_the_page_fits_a_phone(server: Served, browser: Browser):
    try:
        browser.screen(375, 812, is_phone=True)
        browser.open(f"http://{server.http}/")
        wait_for_models(browser)
        wait_until(
            lambda: browser.run("return document.querySelectorAll('#charts canvas').length") == 9, "charts"
        )
        assert browser.run("return [document.documentElement.scrollWidth, innerWidth]") == [375, 375]
    finally:
        browser.screen(1280, 900)


@needs_browser
@pytest.mark.parametrize("is_dark", [True, False])
def test_the_page_is_as_dark_as_the_reader_wishes(server: Served, browser: Browser, is_dark: bool):
    try:
        browser.screen(1280, 900, is_dark=is_dark)
        browser.open(f"http://{server.http}/")
        colours = browser.run(
            "const s = getComputedStyle(document.body); return [s.backgroundColor, s.color]"
        )
        ground, ink = (sum(map(int, re.findall(r"\d+", colour)[:3])) / 3 for colour in colours)
        assert (ground < 50 and ink > 200) if is_dark else (ground > 230 and ink < 60)
    finally:
        browser.screen(1280, 900)


@needs_browser
def test_a_row_is_chosen_by_the_keyboard(server: Served, browser: Browser):
    browser.open(f"http://{server.http}/")
    wait_for_models(browser)
    browser.run(
        "const button = document.querySelector('tbody tr:last-child button'); button.focus(); button.click()"
    )
    last = browser.run("return document.querySelector('tbody tr:last-child button').innerText")
    wait_until(lambda: text_of(browser, "#detail-title").startswith(last), "the model's detail")
    assert browser.run("return document.activeElement.innerText") == last
    assert browser.run("return document.querySelectorAll('[aria-pressed=true]').length") == 1


@needs_browser
def test_the_page_says_that_the_server_is_gone_and_finds_it_again(tmp_path: Path, browser: Browser):
    write_identity(tmp_path / "models", "here")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # The later of two flags counts.
    flags = ("--http-port", str(port))
    with ServerProcess(tmp_path / "models", tmp_path / "log", flags=flags) as first:
        browser.open(f"http://{first.http_address}/")
        wait_for_models(browser)
        wait_until(lambda: is_live(browser), "the page is live")
    wait_until(lambda: "No connection to the server" in text_of(browser, "#findings"), "the page misses it")
    assert not is_live(browser)
    assert browser.run("return document.title") == "✕ Tensorferry"
    with ServerProcess(tmp_path / "models", tmp_path / "log", flags=flags):
        wait_until(lambda: is_live(browser), "the page is live again")
    browser.console()  # it complained of the server that was away


@needs_browser
def test_names_are_text_whatever_they_look_like(serve_page, browser: Browser):
    async def use(feed: Feed, port: int):
        await asyncio.to_thread(look, port)

    def look(port: int) -> None:
        browser.console()
        browser.open(f"http://127.0.0.1:{port}/")
        wait_for_models(browser)
        wait_until(lambda: HOSTILE in text_of(browser, "#detail-title"), "the model's name")
        assert HOSTILE in text_of(browser, "#models tbody")
        wait_until(lambda: HOSTILE in text_of(browser, "#charts"), "the labels in a legend")
        assert browser.run("return document.querySelectorAll('img').length") == 0
        assert browser.run("return document.title").endswith("Tensorferry")
        assert browser.console() == []

    serve_page(Fixed(HOSTILE), use, FeedLimits(watched_s=0.1, unwatched_s=0.1))


@needs_browser
@pytest.mark.parametrize("width", [1280, 800, 375])
def test_the_page_tells_how_the_gpus_are_and_what_slows_them(serve_page, browser: Browser, width: int):
    async def use(feed: Feed, port: int):
        await asyncio.to_thread(look, port)

    def look(port: int) -> None:
        browser.console()
        browser.screen(width, 900)
        browser.open(f"http://127.0.0.1:{port}/")
        wait_for_models(browser)
        line = text_of(browser, "#gpus li").split()
        assert " ".join(line) == (
            "cuda:0 NVIDIA H200 busy 91 % memory 60 GiB of 150 GiB power 512 W of 700 W 92 °C slowed by heat"
        )
        assert re.match(
            r"On cuda:0: runs \d+ % of the time, copies in \d+ %, out \d+ % · CUDA graphs for 100 % of the"
            r" batches · \d+ % of the rows are padding · holds 3 GiB$",
            text_of(browser, "#device"),
        )
        findings = text_of(browser, "#findings")
        assert "cuda:0 is slowed by heat" in findings
        assert "room for 48 rows at once" in findings
        for name in ("gpus", "device"):
            assert browser.run(
                f"const it = document.getElementById('{name}'); return it.scrollWidth <= innerWidth"
            ), name
        assert browser.console() == []

    try:
        serve_page(OnGpu("m"), use, FeedLimits(watched_s=0.1, unwatched_s=0.1))
    finally:
        browser.screen(1280, 900)


@needs_browser
def test_without_a_gpu_the_page_says_nothing_of_any(serve_page, browser: Browser):
    async def use(feed: Feed, port: int):
        await asyncio.to_thread(look, port)

    def look(port: int) -> None:
        browser.open(f"http://127.0.0.1:{port}/")
        wait_for_models(browser)
        assert text_of(browser, "#gpus") == text_of(browser, "#device") == ""
        assert browser.run("return document.getElementById('gpus').offsetHeight") == 0

    serve_page(Fixed("m"), use, FeedLimits(watched_s=0.1, unwatched_s=0.1))


@needs_browser
def test_a_viewer_too_many_reads_why(serve_page, browser: Browser):
    async def use(feed: Feed, port: int):
        url = f"http://127.0.0.1:{port}/live/events"
        async with aiohttp.ClientSession() as session, session.get(url), session.get(url):
            await asyncio.to_thread(look, port)

    def look(port: int) -> None:
        browser.open(f"http://127.0.0.1:{port}/")
        wait_until(lambda: "2 viewers watch this server" in text_of(browser, "#findings"), "the reason")
        browser.console()

    serve_page(Fixed("m"), use, FeedLimits(viewers=2))
