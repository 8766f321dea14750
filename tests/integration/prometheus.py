"""Debian's Prometheus as a child process, and what the shipped rules and dashboard ask it."""

from __future__ import annotations

import json
import re
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from tests.integration.support import PATIENCE_S, wait_until

ROOT = Path(__file__).resolve().parents[2]
RULES = ROOT / "deploy" / "prometheus"
MONITORING = ROOT / "docs" / "monitoring.md"
DASHBOARD = ROOT / "deploy" / "grafana" / "tensorferry.json"

#: What Grafana fills in; the interval holds all that happened, however long ago the load ended.
_FILLED_IN = {
    "$__rate_interval": "1h",
    "$job": "tensorferry",
    "$instance": ".*",
    "$model": ".*",
    "$version": ".*",
}

#: A record's labels, and words of PromQL, are no metrics.
_NOT_NAMES = re.compile(
    r'"[^"]*"|\{[^}]*\}|\[[^\]]*\]|\b(?:by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)'
)
_NAME = re.compile(r"(?<![\w.:])[a-zA-Z_][\w:]*(?!\w|\s*\()")
_WORDS = frozenset({"and", "or", "unless", "offset", "bool"})


class Prometheus:
    """For the length of a ``with`` block: scrapes one server every second, with the shipped configuration."""

    def __init__(self, directory: Path, target: str) -> None:
        config = yaml.safe_load((RULES / "prometheus.yml").read_text(encoding="utf-8"))
        config["global"] = dict.fromkeys(("scrape_interval", "scrape_timeout", "evaluation_interval"), "1s")
        config["rule_files"] = [str(RULES / name) for name in config["rule_files"]]
        (job,) = config["scrape_configs"]
        job["static_configs"] = [{"targets": [target]}]
        directory.mkdir()
        (directory / "prometheus.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None
        self._address = ""

    def __enter__(self) -> Prometheus:
        with (self._directory / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [
                    "prometheus",
                    f"--config.file={self._directory / 'prometheus.yml'}",
                    f"--storage.tsdb.path={self._directory / 'data'}",
                    "--web.listen-address=127.0.0.1:0",
                ],
                stdout=subprocess.DEVNULL,
                stderr=log,
            )
        try:
            wait_until(self._is_ready, "Prometheus is ready")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        self._process.terminate()
        try:
            self._process.wait(PATIENCE_S)
        finally:
            self._process.kill()

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """Evaluate an expression now: labels and value of each sample.

        Raises:
            ValueError: Prometheus says what is wrong with it.
        """
        result = self._get("query", query=expression)
        if result["resultType"] == "scalar":
            return [({}, float(result["result"][1]))]
        return [(sample["metric"], float(sample["value"][1])) for sample in result["result"]]

    def value(self, expression: str) -> float | None:
        """Evaluate an expression that has one sample; None if it has none."""
        found = self.query(expression)
        assert len(found) <= 1, found
        return found[0][1] if found else None

    def rules(self) -> list[dict[str, Any]]:
        """All rules, with their state."""
        return [rule for group in self._get("rules")["groups"] for rule in group["rules"]]

    def _get(self, what: str, **parameters: str) -> Any:
        url = f"http://{self._address}/api/v1/{what}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=PATIENCE_S) as response:
                return json.load(response)["data"]
        except urllib.error.HTTPError as error:
            with error:
                raise ValueError(json.load(error)["error"]) from None

    def _is_ready(self) -> bool:
        assert self._process is not None
        log = (self._directory / "log").read_text(encoding="utf-8")
        assert self._process.poll() is None, log[-2000:]
        if found := re.search(r"address=(127\.0\.0\.1:[1-9]\d*)", log):
            self._address = found[1]
        return "Server is ready to receive web requests" in log and bool(self._address)


def dashboard_queries() -> list[tuple[str, str]]:
    """(panel's title, expression as Grafana would send it) of all panels, and of the annotation."""
    dashboard = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    found = [
        (panel["title"], target["expr"])
        for panel in dashboard["panels"]
        for target in panel.get("targets", ())
    ]
    found += [(each["name"], each["expr"]) for each in dashboard["annotations"]["list"]]
    return [(title, filled_in(expression)) for title, expression in found]


def filled_in(expression: str) -> str:
    """Put in what Grafana would."""
    for word, meaning in _FILLED_IN.items():
        expression = expression.replace(word, meaning)
    assert "$" not in expression, expression
    return expression


def rule_queries() -> Iterator[tuple[str, str]]:
    """(record or alert, expression) of all rules."""
    for name in ("rules.yml", "alerts.yml"):
        for group in yaml.safe_load((RULES / name).read_text(encoding="utf-8"))["groups"]:
            for rule in group["rules"]:
                yield rule.get("record") or rule["alert"], rule["expr"]


def names_in(expression: str) -> set[str]:
    """The metrics that a PromQL expression reads."""
    return set(_NAME.findall(_NOT_NAMES.sub(" ", expression))) - _WORDS
