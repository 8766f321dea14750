"""An OTLP/HTTP collector, as a server's exporter sees one: it takes spans, and keeps them."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from tests.integration.support import wait_until


def values_of(attributes: list[KeyValue]) -> dict[str, object]:
    """Attributes as a dictionary."""
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in attributes}


@dataclass
class Collector:
    """What has arrived: spans, and the attributes of the resource that each export named."""

    endpoint: str
    spans: list[Span] = field(default_factory=list)
    resources: list[dict[str, object]] = field(default_factory=list)
    paths: set[str] = field(default_factory=set)

    def take(self, path: str, body: bytes) -> None:
        """Take one export."""
        self.paths.add(path)
        for resource_spans in ExportTraceServiceRequest.FromString(body).resource_spans:
            self.resources.append(values_of(list(resource_spans.resource.attributes)))
            for scope_spans in resource_spans.scope_spans:
                self.spans += scope_spans.spans

    def named(self, name: str) -> list[Span]:
        """The spans that have arrived of a name, which may leave the service out."""
        return [span for span in list(self.spans) if span.name.rpartition("/")[2] == name]

    def wait_for(self, name: str, wanted: Callable[[Span], bool], count: int = 1) -> list[Span]:
        """Wait until so many spans have arrived of a name that are as wanted; return them."""
        found: list[Span] = []

        def are_there() -> bool:
            found[:] = [span for span in self.named(name) if wanted(span)]
            return len(found) >= count

        wait_until(are_there, f"{count} spans {name} arrive")
        return found

    def of_request(self, request_id: str, count: int = 1, method: str = "ModelInfer") -> list[Span]:
        """Wait for the server spans of a request id."""
        return self.wait_for(
            method, lambda span: values_of(span.attributes).get("tensorferry.request_id") == request_id, count
        )

    def children(self, parent: Span) -> dict[str, Span]:
        """The spans below another, by name; those of an export that one of them has arrived with."""
        return {span.name: span for span in list(self.spans) if span.parent_span_id == parent.span_id}


@contextmanager
def collecting() -> Iterator[Collector]:
    """Run a collector on a free port around a block."""
    collector = Collector("")

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            collector.take(self.path, body)
            answer = ExportTraceServiceResponse().SerializeToString()
            self.send_response(200)
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        collector.endpoint = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield collector
        finally:
            server.shutdown()
            thread.join()
