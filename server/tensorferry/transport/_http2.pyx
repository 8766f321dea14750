# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False
"""HTTP/2 and gRPC framing for one connection, on nghttp2.

nghttp2 does frames, HPACK and HTTP/2's state; this file does gRPC on top: paths to methods, message
framing, timeouts, status. It knows no sockets (``http2.py`` has them) and no models.

Rules for this file:

1. Everything runs on the loop thread.
2. nghttp2 is never entered again from one of its callbacks, except by its ``submit`` functions, which
   it allows. So callbacks only note what happened; ``_dispatch`` acts after ``mem_recv`` returned.
3. A ``Stream`` is owned by its session's ``_streams`` from the request's headers until
   ``on_stream_close``; nghttp2 holds borrowed pointers to it for exactly that long. A handler may
   hold it longer: every method of a stream that is closed does nothing.
4. ``_unsent`` counts reply bytes from ``reply`` to the output buffer; ``_receiving`` the bytes of messages
   that are partly here or wait for their handler. Both return to 0 when the streams are gone.
5. A callback that raises returns -902 (NGHTTP2_ERR_CALLBACK_FAILURE), which ends nghttp2's run at once; the exception
   goes on from ``mem_recv`` or ``mem_send``, and the connection is aborted: its state can't be trusted.

One tick: ``buffer_updated`` (one ``mem_recv``, then all calls of that read) marks the session dirty when
anything is to be sent; the hub flushes all dirty sessions in one callback, one write for each.
"""

from cpython.bytearray cimport (
    PyByteArray_AS_STRING, PyByteArray_FromStringAndSize, PyByteArray_GET_SIZE, PyByteArray_Resize)
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from libc.stdint cimport int32_t, uint8_t, uint32_t
from libc.string cimport memcmp, memcpy

import time
import zlib
from collections import deque

from tensorferry.transport._nghttp2 cimport *

cdef object _monotonic = time.monotonic
cdef bytes TOO_MUCH = b"the messages on this connection exceed max_connection_receive_bytes"

cdef enum:
    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2
    ENHANCE_YOUR_CALM = 11

    FLAG_NONE = 0
    FLAG_END_STREAM = 1
    FLAG_ACK = 1

    DATA = 0
    HEADERS = 1
    PRIORITY = 2
    RST_STREAM = 3
    SETTINGS = 4
    PING = 6
    WINDOW_UPDATE = 8
    CONTINUATION = 9

    NV_NONE = 0
    NV_STATIC = 2 | 4  # neither name nor value needs copying

    DATA_EOF = 1
    DATA_NO_END_STREAM = 2
    DATA_NO_COPY = 4

    ERR_WOULDBLOCK = -504
    ERR_DEFERRED = -508
    ERR_FRAME_SIZE_ERROR = -522
    ERR_BAD_CLIENT_MAGIC = -903
    ERR_FLOODED = -904
    ERR_TOO_MANY_CONTINUATIONS = -905

    SETTINGS_MAX_CONCURRENT_STREAMS = 3
    SETTINGS_INITIAL_WINDOW_SIZE = 4
    SETTINGS_MAX_HEADER_LIST_SIZE = 6
    SETTINGS_NO_RFC7540_PRIORITIES = 9

    HCAT_REQUEST = 0

    STATUS_OK = 0
    STATUS_UNKNOWN = 2
    STATUS_DEADLINE_EXCEEDED = 4
    STATUS_RESOURCE_EXHAUSTED = 8
    STATUS_UNIMPLEMENTED = 12
    STATUS_INTERNAL = 13

    # What one flush puts into the socket's hands before it asks whether the peer keeps up.
    FLUSH_BYTES = 1 << 20
    # What a stream may have waiting for its handler before its flow-control credit is withheld.
    INBOX_BYTES = 1 << 20
    # What a message in an inbox costs beside its bytes, so that empty ones are bounded too: each is
    # 5 bytes on the wire and an object and its place here.
    MESSAGE_BYTES = 64
    WINDOW_BYTES = 1 << 20
    CONNECTION_WINDOW_BYTES = 16 << 20
    RECEIVE_BUFFER_BYTES = 256 << 10
    # A status message goes into one header block, and callers bound those (grpcio: 8 KiB).
    DETAILS_BYTES = 4 << 10
    # A call is refused for headers beyond max_header_list_bytes, a connection for this many times it.
    HEADER_LISTS = 4
    # W3C Trace Context: what a traceparent has at least, and what a tracestate need not exceed.
    TRACEPARENT_BYTES = 55
    TRACESTATE_BYTES = 512

cdef double NEVER = float("inf")

# Message encodings, as bits of what a peer accepts.
cdef enum:
    IDENTITY = 0
    GZIP = 1
    DEFLATE = 2
    UNKNOWN_ENCODING = 4

ENCODINGS = {"identity": IDENTITY, "gzip": GZIP, "deflate": DEFLATE}
ACCEPTED = b"identity,gzip,deflate"


def nghttp2_version_text():
    """Return nghttp2's version, as it runs."""
    return nghttp2_version(0).version_str.decode()


cdef inline nghttp2_nv _nv(const char *name, size_t namelen, const char *value, size_t valuelen, uint8_t flags) noexcept:
    cdef nghttp2_nv nv
    nv.name = <uint8_t *> name
    nv.namelen = namelen
    nv.value = <uint8_t *> value
    nv.valuelen = valuelen
    nv.flags = flags
    return nv


cdef class Hub:
    """What all sessions of a transport share: the method table, the limits, and the flush.

    ``unary`` maps a path (bytes) to a callback handler; ``rpcs`` maps a path to whatever
    ``start_rpc(stream, value)`` wants to see when such a call begins. Limits are in bytes, streams,
    or events (a burst, and a rate per second).
    """

    cdef dict _unary
    cdef dict _rpcs
    cdef object _start_rpc
    cdef object _call_soon
    cdef object _log_error
    cdef list _dirty
    cdef bint _scheduled
    cdef bytearray _receive_buffer
    cdef object _receive_view
    cdef int _compression
    cdef nghttp2_session_callbacks *_callbacks
    cdef nghttp2_option *_option
    cdef readonly object limits
    cdef bint _is_tracing
    cdef Py_ssize_t _max_message
    cdef Py_ssize_t _max_receiving
    cdef Py_ssize_t _max_unsent
    cdef Py_ssize_t _max_header_list
    cdef uint32_t _max_streams
    cdef double _control_burst
    cdef double _control_rate
    cdef double _reset_burst
    cdef double _reset_rate
    cdef double _ping_interval

    def __cinit__(self, dict unary, dict rpcs, *, start_rpc, call_soon, log_error, limits):
        self._unary = unary
        self._rpcs = rpcs
        self._start_rpc = start_rpc
        self._call_soon = call_soon
        self._log_error = log_error
        self._dirty = []
        self._scheduled = False
        self._receive_buffer = bytearray(RECEIVE_BUFFER_BYTES)
        self._receive_view = memoryview(self._receive_buffer)
        self.limits = limits
        self._is_tracing = bool(limits.trace_endpoint)
        self._compression = ENCODINGS[limits.response_compression]
        self._max_message = limits.max_message_bytes
        self._max_receiving = limits.max_connection_receive_bytes
        self._max_unsent = limits.max_connection_send_bytes
        self._max_header_list = limits.max_header_list_bytes
        self._max_streams = limits.max_concurrent_streams
        self._control_burst = limits.max_control_frames_burst
        self._control_rate = limits.max_control_frames_per_s
        self._reset_burst = limits.max_resets_burst
        self._reset_rate = limits.max_resets_per_s
        self._ping_interval = limits.min_ping_interval_s
        if nghttp2_session_callbacks_new(&self._callbacks) or nghttp2_option_new(&self._option):
            raise MemoryError
        nghttp2_session_callbacks_set_on_begin_headers_callback(self._callbacks, _on_begin_headers)
        nghttp2_session_callbacks_set_on_header_callback(self._callbacks, _on_header)
        nghttp2_session_callbacks_set_on_begin_frame_callback(self._callbacks, _on_begin_frame)
        nghttp2_session_callbacks_set_on_frame_recv_callback(self._callbacks, _on_frame_recv)
        nghttp2_session_callbacks_set_on_frame_send_callback(self._callbacks, _on_frame_send)
        nghttp2_session_callbacks_set_on_frame_not_send_callback(self._callbacks, _on_frame_not_send)
        nghttp2_session_callbacks_set_on_data_chunk_recv_callback(self._callbacks, _on_data_chunk_recv)
        nghttp2_session_callbacks_set_on_stream_close_callback(self._callbacks, _on_stream_close)
        nghttp2_session_callbacks_set_send_data_callback(self._callbacks, _send_data)
        nghttp2_option_set_no_auto_window_update(self._option, 1)
        nghttp2_option_set_no_closed_streams(self._option, 1)
        # A value with a space at an end: RFC 9113 allows to refuse the call, and grpcio takes it.
        nghttp2_option_set_no_rfc9113_leading_and_trailing_ws_validation(self._option, 1)
        # Its own bound on unsent acknowledgements must not come before ours, which says why it ends.
        nghttp2_option_set_max_outbound_ack(self._option, <size_t> limits.max_control_frames_burst + 1000)

    def __dealloc__(self):
        # Sessions have copied both.
        if self._callbacks != NULL:
            nghttp2_session_callbacks_del(self._callbacks)
        if self._option != NULL:
            nghttp2_option_del(self._option)

    cdef inline void _mark(self, Session session):
        self._dirty.append(session)
        if not self._scheduled:
            self._scheduled = True
            self._call_soon(self._flush_all)

    def _flush_all(self):
        cdef Session session
        self._scheduled = False
        dirty = self._dirty
        self._dirty = []
        for session in dirty:
            session._dirty = False
            try:
                session.flush()
            except Exception as error:  # one connection's failure is not the others'
                self._log_error(error)
                session.abort()


cdef class Stream:
    """One call. A handler's view of it is ``service.methods.UnaryCall``, and more for RPC tasks.

    ``deadline`` is an instant of ``time.monotonic()``. ``metadata`` is a list of (name, value) pairs
    of bytes for RPC tasks, None for unary callbacks; these get ``traceparent`` and ``tracestate`` alone,
    where the server traces: bytes, empty if they can't be right. For RPC tasks ``rpc`` gets ``on_message(bytes)``,
    ``on_half_close()`` and ``on_cancel()``; for unary callbacks ``on_cancel`` is called instead.
    """

    cdef Session _session
    cdef readonly int32_t id
    cdef object _handler
    cdef bint _is_rpc
    cdef public double deadline
    cdef public object on_cancel
    cdef public object rpc
    cdef readonly list metadata
    cdef readonly bytes path
    cdef readonly bytes traceparent
    cdef readonly bytes tracestate

    # receiving
    cdef bint _has_method
    cdef bint _has_content_type
    cdef bint _is_grpc
    cdef bint _is_post
    cdef bint _bad_timeout
    cdef int _encoding
    cdef readonly int accepts
    cdef Py_ssize_t _header_bytes
    cdef uint8_t _prefix[5]
    cdef int _prefix_length
    cdef bint _compressed
    cdef bytes _partial
    cdef Py_ssize_t _filled
    cdef Py_ssize_t _expected
    cdef int _messages
    cdef bytes _body
    cdef bint _remote_done
    cdef Py_ssize_t _inbox
    cdef Py_ssize_t _withheld

    # sending
    cdef bint _headers_sent
    cdef bint _submitted
    cdef bint _finished
    cdef bint _closed
    cdef bytes _out
    cdef uint8_t _out_flag
    cdef Py_ssize_t _offset
    cdef object _queue
    cdef Py_ssize_t _queued
    cdef int _status
    cdef bytes _details
    cdef list _trailing

    def __cinit__(self):
        self.deadline = NEVER
        self._encoding = IDENTITY

    @property
    def is_closed(self):
        """Whether nothing that is sent would reach the peer any more."""
        return self._closed

    @property
    def is_finished(self):
        """Whether the outcome has been given."""
        return self._finished

    @property
    def queued_bytes(self):
        """Reply bytes that wait in this stream."""
        return self._queued if not self._closed else 0

    @property
    def peer(self):
        """The caller's address, as grpcio writes it."""
        return self._session.peer

    # -- the handler's side: unary ------------------------------------------------------------

    def reply(self, bytes message not None):
        """Answer with one message and status OK."""
        cdef nghttp2_nv headers[3]
        cdef nghttp2_data_provider provider
        cdef size_t count = 2
        if self._finished or self._closed:
            return
        if self.deadline != NEVER and <double> _monotonic() > self.deadline:
            self._fail(STATUS_DEADLINE_EXCEEDED, b"the deadline came before the answer")
            return
        if PyBytes_GET_SIZE(message) > self._session._hub._max_message:
            self._fail(STATUS_RESOURCE_EXHAUSTED, b"the reply is larger than max_message_bytes")
            return
        self._out_flag = 0
        headers[0] = _nv(b":status", 7, b"200", 3, NV_STATIC)
        headers[1] = _nv(b"content-type", 12, b"application/grpc", 16, NV_STATIC)
        if self._session._hub._compression & self.accepts:
            message = self._compress(message)
            headers[2] = self._encoding_header()
            count = 3
        self._out = message
        self._offset = 0
        self._status = STATUS_OK
        self._finished = True
        self._headers_sent = True
        self._submitted = True
        self._session._unsent += PyBytes_GET_SIZE(message) + 5
        provider.source.ptr = <void *> self
        provider.read_callback = _read_data
        nghttp2_submit_response(self._session._ptr, self.id, headers, count, &provider)
        self._session._touch()

    def fail(self, code, str details):
        """End the call with a ``grpc.StatusCode`` (or its number) and a text."""
        if self._finished or self._closed:
            return
        number = code if isinstance(code, int) else code.value[0]
        self._fail(number, _percent_encoded(details))

    cdef void _fail(self, int status, bytes details):
        """End the call with an error, unless it has ended; ``details`` is percent-encoded."""
        self._end(status, details, None)

    cdef void _end(self, int status, bytes details, list trailing):
        if self._finished or self._closed:
            return
        self._finished = True
        if not self._headers_sent:
            self._headers_sent = True
            self._submit_trailers_only(status, details, trailing)
            return
        self._status = status
        self._details = details
        self._trailing = trailing
        if self._out is None and not self._queue:
            # Not by way of the DATA that waits: it would need flow-control credit, trailers don't.
            _submit_trailers(self._session._ptr, self)
            self._session._touch()
        else:
            self._resume()

    cdef void _submit_trailers_only(self, int status, bytes details, list trailing):
        fields = [(b":status", b"200"), (b"content-type", b"application/grpc"), (b"grpc-status", b"%d" % status)]
        if details:
            fields.append((b"grpc-message", details))
        if status == STATUS_UNIMPLEMENTED:
            fields.append((b"grpc-accept-encoding", ACCEPTED))
        if trailing:
            fields += trailing
        self._submit_response(fields)

    cdef void _refuse_http(self, bytes status, bytes content):
        """Answer something that isn't gRPC, as HTTP."""
        self._finished = True
        self._headers_sent = True
        self._submit_response([(b":status", status), (b"content-type", b"text/plain"), (b"grpc-status", b"13"),
                               (b"grpc-message", content)])

    cdef void _submit_response(self, list fields):
        cdef nghttp2_nv *headers = _filled(fields)
        nghttp2_submit_response(self._session._ptr, self.id, headers, len(fields), NULL)
        PyMem_Free(headers)
        self._session._touch()

    # -- the handler's side: RPC tasks ----------------------------------------------------------

    def send_headers(self, list metadata):
        """Send the initial metadata: (name, value) pairs of bytes. Only once, before any message."""
        cdef nghttp2_nv *headers
        if self._headers_sent or self._closed:
            return
        fields = [(b":status", b"200"), (b"content-type", b"application/grpc"), (b"grpc-accept-encoding", ACCEPTED)]
        if self._session._hub._compression & self.accepts:
            fields.append((b"grpc-encoding", b"gzip" if self._session._hub._compression == GZIP else b"deflate"))
        fields += metadata
        headers = _filled(fields)
        self._headers_sent = True
        nghttp2_submit_headers(self._session._ptr, FLAG_NONE, self.id, NULL, headers, len(fields), NULL)
        PyMem_Free(headers)
        self._session._touch()

    def send_message(self, bytes message not None):
        """Queue one message of a streaming reply. Returns the bytes that wait to be sent."""
        if self._finished or self._closed:
            return 0
        if PyBytes_GET_SIZE(message) > self._session._hub._max_message:
            self._fail(STATUS_RESOURCE_EXHAUSTED, b"a reply is larger than max_message_bytes")
            return 0
        if not self._headers_sent:
            self.send_headers([])
        if self._queue is None:
            self._queue = deque()
        flag = 0
        if self._session._hub._compression & self.accepts:
            message = self._compress(message)
            flag = 1
        self._queue.append((message, flag))
        self._queued += PyBytes_GET_SIZE(message) + 5
        self._session._unsent += PyBytes_GET_SIZE(message) + 5
        self._resume()
        return self._queued

    def finish(self, int status, str details, list trailing):
        """End the reply with a status and trailing metadata."""
        self._end(status, _percent_encoded(details), trailing)

    def taken(self, Py_ssize_t size):
        """Say that the handler has taken a message of ``size`` bytes from its inbox: credit the sender."""
        if self._closed:
            return
        size += MESSAGE_BYTES
        self._inbox -= size
        self._session._receiving -= size
        if self._withheld and self._inbox < INBOX_BYTES:
            nghttp2_session_consume_stream(self._session._ptr, self.id, self._withheld)
            self._withheld = 0
            self._session._touch()

    cdef void _resume(self):
        cdef nghttp2_data_provider provider
        if self._submitted:
            nghttp2_session_resume_data(self._session._ptr, self.id)
        else:
            self._submitted = True
            provider.source.ptr = <void *> self
            provider.read_callback = _read_data
            nghttp2_submit_data(self._session._ptr, FLAG_END_STREAM, self.id, &provider)
        self._session._touch()

    cdef bytes _compress(self, bytes message):
        self._out_flag = 1
        compressor = zlib.compressobj(6, zlib.DEFLATED, 31 if self._session._hub._compression == GZIP else 15)
        return compressor.compress(message) + compressor.flush()

    cdef nghttp2_nv _encoding_header(self) noexcept:
        if self._session._hub._compression == GZIP:
            return _nv(b"grpc-encoding", 13, b"gzip", 4, NV_STATIC)
        return _nv(b"grpc-encoding", 13, b"deflate", 7, NV_STATIC)

    # -- the wire's side ------------------------------------------------------------------------

    cdef void _header(self, const uint8_t *name, size_t namelen, const uint8_t *value, size_t valuelen):
        cdef Hub hub = self._session._hub
        self._header_bytes += namelen + valuelen + 32
        if self._header_bytes > hub._max_header_list:
            if self._header_bytes > HEADER_LISTS * hub._max_header_list:
                self._session._misused()
            return
        if namelen == 5 and memcmp(name, b":path", 5) == 0:
            self._route((<const char *> value)[:valuelen])
        elif namelen == 7 and memcmp(name, b":method", 7) == 0:
            self._is_post = valuelen == 4 and memcmp(value, b"POST", 4) == 0
        elif namelen == 12 and memcmp(name, b"content-type", 12) == 0:
            self._is_grpc = valuelen >= 16 and memcmp(value, b"application/grpc", 16) == 0 and (
                valuelen == 16 or value[16] == c"+" or value[16] == c";")
        elif namelen == 12 and memcmp(name, b"grpc-timeout", 12) == 0:
            self._parse_timeout(value, valuelen)
        elif namelen == 13 and memcmp(name, b"grpc-encoding", 13) == 0:
            self._encoding = ENCODINGS.get((<const char *> value)[:valuelen].decode("latin-1"), UNKNOWN_ENCODING)
        elif namelen == 20 and memcmp(name, b"grpc-accept-encoding", 20) == 0:
            if hub._compression:
                self._parse_accepted((<const char *> value)[:valuelen])
        elif self.metadata is not None:
            if name[0] != c":":
                self.metadata.append(((<const char *> name)[:namelen], (<const char *> value)[:valuelen]))
        elif hub._is_tracing:
            if namelen == 11 and memcmp(name, b"traceparent", 11) == 0:
                self._trace_parent(value, valuelen)
            elif namelen == 10 and memcmp(name, b"tracestate", 10) == 0:
                self._trace_state(value, valuelen)

    cdef void _trace_parent(self, const uint8_t *value, size_t length):
        """Keep the caller's trace context. Two of them contradict each other: neither counts."""
        if self.traceparent is not None or length < TRACEPARENT_BYTES or length > TRACESTATE_BYTES:
            self.traceparent = b""
        else:
            self.traceparent = (<const char *> value)[:length]

    cdef void _trace_state(self, const uint8_t *value, size_t length):
        """Keep what goes with the context; it may come in several fields, which make one list."""
        if self.tracestate is None:
            self.tracestate = (<const char *> value)[:length] if length <= TRACESTATE_BYTES else b""
        elif PyBytes_GET_SIZE(self.tracestate) and PyBytes_GET_SIZE(self.tracestate) + 1 + <Py_ssize_t> length <= TRACESTATE_BYTES:
            self.tracestate += b"," + (<const char *> value)[:length]
        else:
            self.tracestate = b""

    cdef void _route(self, bytes path):
        cdef Hub hub = self._session._hub
        self.path = path
        handler = hub._unary.get(path)
        if handler is None:
            handler = hub._rpcs.get(path)
            self._is_rpc = handler is not None
            self.metadata = []
        self._handler = handler

    cdef void _parse_timeout(self, const uint8_t *value, size_t length):
        """``grpc-timeout``: one to eight digits and a unit."""
        cdef double seconds = 0
        cdef size_t index
        if length < 2 or length > 9:
            self._bad_timeout = True
            return
        for index in range(length - 1):
            if value[index] < c"0" or value[index] > c"9":
                self._bad_timeout = True
                return
            seconds = seconds * 10 + (value[index] - c"0")
        unit = value[length - 1]
        if unit == c"n":
            seconds *= 1e-9
        elif unit == c"u":
            seconds *= 1e-6
        elif unit == c"m":
            seconds *= 1e-3
        elif unit == c"M":
            seconds *= 60
        elif unit == c"H":
            seconds *= 3600
        elif unit != c"S":
            self._bad_timeout = True
            return
        self.deadline = self._session._now + seconds

    cdef void _parse_accepted(self, bytes value):
        for name in value.split(b","):
            self.accepts |= ENCODINGS.get(name.strip().decode("latin-1"), 0)

    cdef void _headers_done(self, bint end_stream):
        """The request's headers are complete: refuse, start an RPC, or wait for the message."""
        if self._header_bytes > self._session._hub._max_header_list:
            self._fail(STATUS_RESOURCE_EXHAUSTED, b"the request's headers are larger than max_header_list_bytes")
        elif not self._is_post:
            self._refuse_http(b"405", b"gRPC calls are POST")
        elif not self._is_grpc:
            self._refuse_http(b"415", b"the content-type must be application/grpc")
        elif self._handler is None:
            self._fail(STATUS_UNIMPLEMENTED, b"no such method: " + _percent_encoded(self.path.decode("latin-1")))
        elif self._bad_timeout:
            self._fail(STATUS_INTERNAL, b"malformed grpc-timeout")
        elif self._encoding == UNKNOWN_ENCODING:
            self._fail(STATUS_UNIMPLEMENTED, b"unknown grpc-encoding; accepted are identity, gzip and deflate")
        elif self._is_rpc:
            self._session._events.append((START, self, self._handler))

    cdef void _data(self, const uint8_t *data, size_t length):
        """Assemble messages. One copy: from the socket's buffer into the message's bytes."""
        cdef size_t part
        cdef Hub hub = self._session._hub
        while length:
            if self._prefix_length < 5:
                part = min(<size_t> (5 - self._prefix_length), length)
                memcpy(&self._prefix[self._prefix_length], data, part)
                self._prefix_length += <int> part
                data += part
                length -= part
                if self._prefix_length < 5 or not self._begin_message():
                    return
                if length >= <size_t> self._expected:
                    part = self._expected
                    if not self._message(PyBytes_FromStringAndSize(<const char *> data, part)):
                        return
                    data += part
                    length -= part
                    continue
                if self._session._receiving + self._expected > hub._max_receiving:
                    self._give_up(STATUS_RESOURCE_EXHAUSTED, TOO_MUCH)
                    return
                self._partial = PyBytes_FromStringAndSize(NULL, self._expected)
                self._session._receiving += self._expected
            part = min(<size_t> (self._expected - self._filled), length)
            memcpy(PyBytes_AS_STRING(self._partial) + self._filled, data, part)
            self._filled += part
            data += part
            length -= part
            if self._filled == self._expected:
                self._session._receiving -= self._expected
                message = self._partial
                self._partial = None
                if not self._message(message):
                    return

    cdef bint _begin_message(self):
        # As unsigned 32 bits into 64: a length of 2 GiB and more must not come out negative.
        self._expected = (
            (<uint32_t> self._prefix[1] << 24) | (<uint32_t> self._prefix[2] << 16)
            | (<uint32_t> self._prefix[3] << 8) | <uint32_t> self._prefix[4])
        self._filled = 0
        self._compressed = self._prefix[0] == 1
        if self._prefix[0] > 1 or (self._compressed and self._encoding == IDENTITY):
            self._give_up(STATUS_INTERNAL, b"a message's compressed flag doesn't fit grpc-encoding")
        elif self._expected > self._session._hub._max_message:
            self._give_up(STATUS_RESOURCE_EXHAUSTED, b"a message of %d bytes; max_message_bytes is %d" % (
                self._expected, self._session._hub._max_message))
        else:
            return True
        return False

    cdef bint _message(self, bytes message) except? False:
        """A message is complete. Returns False if it ended the call."""
        cdef Session session = self._session
        cdef Py_ssize_t size
        self._prefix_length = 0
        if self._compressed:
            try:
                message = _decompressed(message, self._encoding, self._session._hub._max_message)
            except OverflowError:
                self._give_up(STATUS_RESOURCE_EXHAUSTED, b"a message is larger than max_message_bytes when decompressed")
                return False
            except zlib.error:
                self._give_up(STATUS_INTERNAL, b"a message doesn't decompress")
                return False
        if self._is_rpc:
            # Counted until the handler takes it: decompressed, a window may hold a thousand times its size.
            size = PyBytes_GET_SIZE(message) + MESSAGE_BYTES
            if session._receiving + size > session._hub._max_receiving:
                self._give_up(STATUS_RESOURCE_EXHAUSTED, TOO_MUCH)
                return False
            self._inbox += size
            session._receiving += size
            session._events.append((MESSAGE, self, message))
            return True
        self._messages += 1
        if self._messages > 1:
            self._give_up(STATUS_UNIMPLEMENTED, b"a unary call takes one message, and more came")
            return False
        self._body = message
        return True

    cdef void _half_close(self):
        """The peer has sent everything."""
        self._remote_done = True
        if self._finished:
            return
        if self._prefix_length:
            self._give_up(STATUS_INTERNAL, b"the request ended within a message")
        elif self._is_rpc:
            self._session._events.append((HALF_CLOSE, self, None))
        elif self._messages == 0:
            self._give_up(STATUS_UNIMPLEMENTED, b"a unary call takes one message, and none came")
        else:
            self._session._calls.append(self)

    cdef void _give_up(self, int status, bytes details):
        """End the call from the wire's side: what the peer sent can't be served."""
        if self._finished:
            return
        if self._partial is not None:
            self._session._receiving -= self._expected
            self._partial = None
        self._body = None
        if self._is_rpc:
            self._session._events.append((CANCEL, self, None))
        self._fail(status, details)

    cdef void _on_closed(self):
        """nghttp2 has forgotten the stream."""
        if self._closed:
            return
        self._closed = True
        self._body = None
        if self._partial is not None:
            self._session._receiving -= self._expected
            self._partial = None
        if self._out is not None:
            self._session._unsent -= PyBytes_GET_SIZE(self._out) + 5 - self._offset
            self._out = None
        if self._queue is not None:
            for message, _ in self._queue:
                self._session._unsent -= PyBytes_GET_SIZE(message) + 5
            self._queue = None
        self._session._receiving -= self._inbox
        self._inbox = 0
        if not self._finished or self._is_rpc:
            self._session._events.append((CANCEL, self, None))
        else:
            self.on_cancel = None  # it may lead back here: no cycle for the garbage collector


cdef enum:
    START = 0
    MESSAGE = 1
    HALF_CLOSE = 2
    CANCEL = 3


cdef class Session:
    """One connection's HTTP/2 state; the protocol that asyncio calls (``get_buffer`` and so on)."""

    cdef Hub _hub
    cdef nghttp2_session *_ptr
    cdef dict _streams
    cdef list _calls
    cdef list _events
    cdef bint _dirty
    cdef bint _lost
    cdef bint _paused
    cdef bint _reading_paused
    cdef bint _closing
    cdef bint _misusing
    cdef bint _ended
    cdef bint _backlog
    cdef bint _full
    cdef double _now
    cdef Py_ssize_t _unsent
    cdef Py_ssize_t _receiving
    cdef bytearray _out
    cdef Py_ssize_t _out_length
    cdef double _control_tokens
    cdef double _control_at
    cdef double _reset_tokens
    cdef double _reset_at
    cdef double _ping_at
    cdef int _ping_strikes
    cdef bint _awaits_pong
    cdef readonly object transport
    cdef readonly str peer
    cdef readonly double opened_at
    cdef readonly double heard_at
    cdef readonly double busy_at
    cdef readonly double ended_at
    cdef readonly bint has_settings
    cdef public double closes_at

    def __init__(self, Hub hub):
        cdef nghttp2_settings_entry settings[4]
        self._hub = hub
        self._streams = {}
        self._calls = []
        self._events = []
        self.peer = "unknown"
        self._control_tokens = hub._control_burst
        self._reset_tokens = hub._reset_burst
        self._now = _monotonic()
        self.opened_at = self.heard_at = self.busy_at = self._control_at = self._reset_at = self._now
        self.closes_at = self.ended_at = NEVER
        if nghttp2_session_server_new2(&self._ptr, hub._callbacks, <void *> self, hub._option):
            raise MemoryError
        settings[0].settings_id = SETTINGS_MAX_CONCURRENT_STREAMS
        settings[0].value = hub._max_streams
        settings[1].settings_id = SETTINGS_INITIAL_WINDOW_SIZE
        settings[1].value = WINDOW_BYTES
        settings[2].settings_id = SETTINGS_MAX_HEADER_LIST_SIZE
        settings[2].value = <uint32_t> hub._max_header_list
        settings[3].settings_id = SETTINGS_NO_RFC7540_PRIORITIES
        settings[3].value = 1
        nghttp2_submit_settings(self._ptr, FLAG_NONE, settings, 4)
        nghttp2_session_set_local_window_size(self._ptr, FLAG_NONE, 0, CONNECTION_WINDOW_BYTES)

    def __dealloc__(self):
        if self._ptr != NULL:
            nghttp2_session_del(self._ptr)

    # -- asyncio's side -------------------------------------------------------------------------

    def connection_made(self, transport):
        """asyncio: the connection is there."""
        self.transport = transport
        address = transport.get_extra_info("peername")
        if isinstance(address, tuple):
            self.peer = f"ipv6:%5B{address[0]}%5D:{address[1]}" if ":" in address[0] else f"ipv4:{address[0]}:{address[1]}"
        else:
            self.peer = "unix:"
        self._touch()

    def connection_lost(self, error):
        """asyncio: the connection is gone; every call on it is cancelled."""
        self._lost = True
        self._cancel_all()
        self.transport = None

    def get_buffer(self, hint):
        """asyncio: where to read into. One buffer serves all: it is read and parsed at once."""
        return self._hub._receive_view

    def buffer_updated(self, Py_ssize_t length):
        """asyncio: so many bytes were read."""
        cdef ssize_t taken
        if self._lost or self._closing or self._ended:
            return
        self._now = self.heard_at = _monotonic()
        try:
            taken = nghttp2_session_mem_recv(
                self._ptr, <const uint8_t *> PyByteArray_AS_STRING(self._hub._receive_buffer), length)
        except Exception as error:
            self._hub._log_error(error)
            self.abort()
            return
        if taken == ERR_BAD_CLIENT_MAGIC:
            nghttp2_session_terminate_session(self._ptr, PROTOCOL_ERROR)
            self._close_soon()
        elif taken == ERR_FLOODED or taken == ERR_TOO_MANY_CONTINUATIONS:
            self._misused()
        elif taken < 0:
            self.abort()
            return
        self._dispatch()
        self._touch()

    def eof_received(self):
        """asyncio: the peer has closed its side. What is under way can't be answered reliably; close."""
        return False

    def pause_writing(self):
        """asyncio: the socket is full."""
        self._paused = True

    def resume_writing(self):
        """asyncio: the socket takes more."""
        self._paused = False
        self.heard_at = _monotonic()  # who takes bytes is there, even if nothing is read from it
        self._touch()

    # -- the transport's side ---------------------------------------------------------------------

    @property
    def stream_count(self):
        """Calls in progress."""
        return len(self._streams)

    @property
    def unsent_bytes(self):
        """Reply bytes that the peer hasn't taken yet."""
        return self._unsent

    @property
    def receiving_bytes(self):
        """Bytes set aside for messages that are partly here."""
        return self._receiving

    def shutdown_notice(self):
        """Say that the connection will close soon; calls that are under way to us are still taken."""
        if not self._lost and not self._closing:
            nghttp2_submit_shutdown_notice(self._ptr)
            self._touch()

    def goaway(self):
        """Take no further call; close when those that were taken have been answered."""
        if self._lost or self._closing or self._ended:
            return
        nghttp2_submit_goaway(
            self._ptr, FLAG_NONE, nghttp2_session_get_last_proc_stream_id(self._ptr), NO_ERROR, NULL, 0)
        self._closing = not self._streams
        self._touch()

    def ping(self):
        """Ask whether the peer is there. Returns False if it hasn't answered the last time."""
        if self._awaits_pong or self._lost or self._closing:
            return False
        self._awaits_pong = True
        nghttp2_submit_ping(self._ptr, FLAG_NONE, NULL)
        self._touch()
        return True

    def abort(self):
        """Close now, whatever is under way."""
        self._ended = True
        if self.transport is not None:
            self.transport.abort()

    def flush(self):
        """Send what there is to send, in one write unless it is more than the socket takes."""
        cdef const uint8_t *data
        cdef ssize_t length
        cdef bint wants_write
        if self._lost or self._ended or self.transport is None:
            return
        if self._backlog:
            self._backlog = self.transport.get_write_buffer_size() > FLUSH_BYTES
        while not self._paused and not self._backlog:
            # Room for all of it, so that it needn't grow; and not zeroed, as bytearray(n) would be.
            self._out = PyByteArray_FromStringAndSize(NULL, min(self._unsent + 1024, FLUSH_BYTES + 32768))
            self._out_length = 0
            self._full = False
            while self._out_length < FLUSH_BYTES:
                length = nghttp2_session_mem_send(self._ptr, &data)
                if length <= 0:
                    break
                self._append(data, length)
            if length < 0:
                self.abort()
                return
            if self._out_length:
                PyByteArray_Resize(self._out, self._out_length)
                self.transport.write(self._out)
            self._out = None
            if length <= 0 and not self._full:
                break
            # uvloop asks for a pause only at the end of the tick, when it may be far too late.
            self._backlog = self.transport.get_write_buffer_size() > FLUSH_BYTES
        if self._backlog and not self._paused:
            self._touch()
        if self._events or self._calls:
            self._dispatch()
        wants_write = nghttp2_session_want_write(self._ptr)
        if self._closing or not (wants_write or nghttp2_session_want_read(self._ptr)):
            if self._misusing or not wants_write:
                self._end()
            elif self.ended_at == NEVER:
                self.ended_at = _monotonic()  # its last frames wait for the socket; not for ever
        else:
            self._regulate_reading()

    cdef void _end(self):
        """Close when the socket has taken all.

        A peer that does no wrong closes first: were we to, what it still sends (credit for the last
        reply, say) would be answered by a reset, and some peers then drop replies that they have yet
        to read. ``http2.py`` aborts the connection if that takes too long after ``ended_at``.
        """
        self._closing = True
        self.ended_at = _monotonic()
        if self._misusing and self._paused:
            self.abort()  # it reads nothing, so nothing can be said to it
            return
        self._ended = True
        self._cancel_all()
        if self._misusing or not self.transport.can_write_eof():
            self.transport.close()
            return
        if self._reading_paused:
            self._reading_paused = False
            self.transport.resume_reading()
        self.transport.write_eof()

    cdef void _regulate_reading(self):
        """A peer that doesn't read its replies isn't read from either, until it reads again.

        Only while its socket is full: a peer that reads, but gives no flow-control credit for what
        is unsent, would never be heard giving it. ``_dispatch`` holds back that peer's calls.
        """
        if self._reading_paused:
            if not self._paused or self._unsent < self._hub._max_unsent // 2:
                self._reading_paused = False
                self.transport.resume_reading()
        elif self._paused and self._unsent > self._hub._max_unsent:
            self._reading_paused = True
            self.transport.pause_reading()

    cdef void _cancel_all(self):
        """The connection's calls are over. nghttp2, which still points to them, isn't entered again."""
        cdef Stream stream
        for stream in list(self._streams.values()):
            stream._on_closed()
        self._streams.clear()
        self._dispatch()

    cdef inline void _touch(self):
        if not self._dirty and not self._lost:
            self._dirty = True
            self._hub._mark(self)

    cdef void _append(self, const uint8_t *data, size_t length):
        cdef Py_ssize_t needed = self._out_length + <Py_ssize_t> length
        if needed > PyByteArray_GET_SIZE(self._out):
            PyByteArray_Resize(self._out, max(needed, 2 * PyByteArray_GET_SIZE(self._out)))
        memcpy(PyByteArray_AS_STRING(self._out) + self._out_length, data, length)
        self._out_length = needed

    cdef void _close_soon(self):
        self._closing = True
        self._touch()

    cdef void _misused(self):
        """The peer floods: GOAWAY ENHANCE_YOUR_CALM, then close."""
        if not self._closing:
            self._misusing = True
            nghttp2_session_terminate_session(self._ptr, ENHANCE_YOUR_CALM)
            self._close_soon()

    cdef void _count_control(self):
        self._control_tokens = min(
            self._hub._control_burst, self._control_tokens + (self._now - self._control_at) * self._hub._control_rate) - 1
        self._control_at = self._now
        if self._control_tokens < 0:
            self._misused()

    cdef void _count_reset(self):
        self._reset_tokens = min(
            self._hub._reset_burst, self._reset_tokens + (self._now - self._reset_at) * self._hub._reset_rate) - 1
        self._reset_at = self._now
        if self._reset_tokens < 0:
            self._misused()

    cdef void _count_ping(self):
        """Pings without anything in between are keepalives; oftener than allowed, they are misuse.

        As in grpcio, two too early are forgiven, and anything that we send forgives all: clients
        also ping to measure the bandwidth of what they get.
        """
        if self._now - self._ping_at < self._hub._ping_interval:
            self._ping_strikes += 1
            if self._ping_strikes > 2:
                self._misused()
        self._ping_at = self._now

    cdef void _dispatch(self):
        """Act on what the callbacks noted. Unary calls wait while too many reply bytes are unsent."""
        cdef Stream stream
        cdef list calls, events
        cdef bint fresh = True
        while self._events or (self._calls and (fresh or self._unsent <= self._hub._max_unsent)):
            fresh = False
            calls = self._calls
            events = self._events
            self._calls = []
            self._events = []
            for stream in calls:
                if stream._finished or stream._closed:
                    continue
                if self._unsent > self._hub._max_unsent:
                    self._hold_back(stream)
                    continue
                body = stream._body
                stream._body = None
                if stream._inbox:
                    self._receiving -= stream._inbox
                    stream._inbox = 0
                try:
                    stream._handler(stream, body)
                except Exception as error:
                    self._hub._log_error(error)
                    stream._fail(STATUS_UNKNOWN, b"the handler raised; see the log")
            for event, stream, payload in events:
                try:
                    self._deliver(event, stream, payload)
                except Exception as error:
                    self._hub._log_error(error)
                    stream._fail(STATUS_UNKNOWN, b"the handler raised; see the log")

    cdef void _hold_back(self, Stream stream):
        """Keep a complete unary request for later; it counts as received until then."""
        if not stream._inbox:
            stream._inbox = PyBytes_GET_SIZE(stream._body)
            self._receiving += stream._inbox
        if self._receiving > self._hub._max_receiving:
            stream._body = None
            stream._fail(STATUS_RESOURCE_EXHAUSTED, TOO_MUCH)
        else:
            self._calls.append(stream)

    cdef _deliver(self, int event, Stream stream, payload):
        if event == CANCEL:
            callback = stream.on_cancel
            stream.on_cancel = None
            rpc = stream.rpc
            stream.rpc = None  # it leads back to the stream: no cycle for the garbage collector
            if rpc is not None:
                rpc.on_cancel()
            elif callback is not None:
                callback()
        elif event == START:
            if not stream._closed:
                stream.rpc = self._hub._start_rpc(stream, payload)
        elif stream.rpc is not None:
            if event == MESSAGE:
                stream.rpc.on_message(payload)
            else:
                stream.rpc.on_half_close()


# -- nghttp2's callbacks: note what happened ----------------------------------------------------

cdef int _on_begin_headers(nghttp2_session *ptr, const nghttp2_frame *frame, void *user) except -902:
    cdef Session session = <Session> user
    cdef Stream stream
    if frame.hd.type != HEADERS or frame.headers.cat != HCAT_REQUEST:
        return 0
    stream = Stream.__new__(Stream)
    stream._session = session
    stream.id = frame.hd.stream_id
    session._streams[stream.id] = stream
    nghttp2_session_set_stream_user_data(ptr, stream.id, <void *> stream)
    return 0


cdef int _on_begin_frame(nghttp2_session *ptr, const nghttp2_frame_hd *head, void *user) except -902:
    if head.type == CONTINUATION or head.type == PRIORITY:
        # Empty continuations bring no field that ``_header`` could count; priorities we ignore.
        (<Session> user)._count_control()
    return 0


cdef int _on_header(
    nghttp2_session *ptr, const nghttp2_frame *frame, const uint8_t *name, size_t namelen,
    const uint8_t *value, size_t valuelen, uint8_t flags, void *user
) except -902:
    cdef void *found
    if frame.hd.type != HEADERS or frame.headers.cat != HCAT_REQUEST:
        return 0  # a request's trailers say nothing to us
    found = nghttp2_session_get_stream_user_data(ptr, frame.hd.stream_id)
    if found != NULL:
        (<Stream> found)._header(name, namelen, value, valuelen)
    return 0


cdef int _on_frame_recv(nghttp2_session *ptr, const nghttp2_frame *frame, void *user) except -902:
    cdef Session session = <Session> user
    cdef uint8_t kind = frame.hd.type
    cdef void *found
    if kind == DATA or kind == HEADERS:
        found = nghttp2_session_get_stream_user_data(ptr, frame.hd.stream_id)
        if found == NULL:
            return 0
        if kind == HEADERS and frame.headers.cat == HCAT_REQUEST:
            session.busy_at = session._now
            (<Stream> found)._headers_done(frame.hd.flags & FLAG_END_STREAM)
        elif kind == DATA and frame.hd.length == 0 and not (frame.hd.flags & FLAG_END_STREAM):
            session._count_control()
        if frame.hd.flags & FLAG_END_STREAM:
            (<Stream> found)._half_close()
    elif kind == SETTINGS:
        session.has_settings = True
        if not (frame.hd.flags & FLAG_ACK):
            session._count_control()
    elif kind == PING:
        if frame.hd.flags & FLAG_ACK:
            session._awaits_pong = False
        else:
            session._count_control()
            session._count_ping()
    elif kind == RST_STREAM:
        session._count_reset()
    return 0


cdef int _on_data_chunk_recv(
    nghttp2_session *ptr, uint8_t flags, int32_t stream_id, const uint8_t *data, size_t length, void *user
) except -902:
    cdef void *found = nghttp2_session_get_stream_user_data(ptr, stream_id)
    cdef Stream stream
    if found == NULL:
        nghttp2_session_consume(ptr, stream_id, length)
        return 0
    stream = <Stream> found
    if not stream._finished and stream._handler is not None:
        stream._data(data, length)
    nghttp2_session_consume_connection(ptr, length)
    if stream._inbox < INBOX_BYTES:
        nghttp2_session_consume_stream(ptr, stream_id, length)
    else:
        stream._withheld += length
    return 0


cdef int _on_stream_close(nghttp2_session *ptr, int32_t stream_id, uint32_t error, void *user) except -902:
    cdef Session session = <Session> user
    cdef Stream stream = session._streams.pop(stream_id, None)
    if stream is not None:
        stream._on_closed()
        session.busy_at = session._now
    return 0


cdef int _on_frame_send(nghttp2_session *ptr, const nghttp2_frame *frame, void *user) except -902:
    cdef void *found
    cdef uint8_t kind = frame.hd.type
    if kind == RST_STREAM:
        # Calls that the peer makes us reset cost as much as those that it resets.
        if frame.rst_stream.error_code != NO_ERROR:
            (<Session> user)._count_reset()
        return 0
    if kind == DATA or kind == HEADERS or kind == WINDOW_UPDATE:
        (<Session> user)._ping_strikes = 0
    if kind == HEADERS and frame.hd.flags & FLAG_END_STREAM:
        found = nghttp2_session_get_stream_user_data(ptr, frame.hd.stream_id)
        if found != NULL and not (<Stream> found)._remote_done:
            # The outcome is out before the request was: tell the peer to stop sending it.
            nghttp2_submit_rst_stream(ptr, FLAG_NONE, frame.hd.stream_id, NO_ERROR)
    return 0


cdef int _on_frame_not_send(nghttp2_session *ptr, const nghttp2_frame *frame, int error, void *user) except -902:
    """A reply's headers that can't be sent (too large): end the stream, or its caller would wait for ever."""
    if frame.hd.type == HEADERS and error == ERR_FRAME_SIZE_ERROR:
        nghttp2_submit_rst_stream(ptr, FLAG_NONE, frame.hd.stream_id, INTERNAL_ERROR)
    return 0


cdef ssize_t _read_data(
    nghttp2_session *ptr, int32_t stream_id, uint8_t *buffer, size_t length, uint32_t *flags,
    nghttp2_data_source *source, void *user
) except -902:
    """Say how much of the stream's next message goes into this DATA frame; ``_send_data`` copies it."""
    cdef Stream stream = <Stream> source.ptr
    cdef Py_ssize_t left
    flags[0] |= DATA_NO_COPY
    if stream._out is None:
        if stream._queue:
            stream._out, stream._out_flag = stream._queue.popleft()
            stream._offset = 0
        elif stream._finished:
            flags[0] |= DATA_EOF | DATA_NO_END_STREAM
            _submit_trailers(ptr, stream)
            return 0
        else:
            return ERR_DEFERRED
    left = PyBytes_GET_SIZE(stream._out) + 5 - stream._offset
    if left > <Py_ssize_t> length:
        return length
    if stream._finished and not stream._queue:
        flags[0] |= DATA_EOF | DATA_NO_END_STREAM
        _submit_trailers(ptr, stream)
    return left


cdef void _submit_trailers(nghttp2_session *ptr, Stream stream):
    cdef nghttp2_nv ok
    cdef nghttp2_nv *trailers
    if stream._status == STATUS_OK and not stream._trailing and not stream._details:
        ok = _nv(b"grpc-status", 11, b"0", 1, NV_STATIC)
        nghttp2_submit_trailer(ptr, stream.id, &ok, 1)
        return
    fields = [(b"grpc-status", b"%d" % stream._status)]
    if stream._details:
        fields.append((b"grpc-message", stream._details))
    if stream._trailing:
        fields += stream._trailing
    trailers = _filled(fields)
    nghttp2_submit_trailer(ptr, stream.id, trailers, len(fields))
    PyMem_Free(trailers)


cdef int _send_data(
    nghttp2_session *ptr, nghttp2_frame *frame, const uint8_t *head, size_t length, nghttp2_data_source *source,
    void *user
) except -902:
    """Copy a DATA frame into the output: its head, and its part of "flag, length, message"."""
    cdef Session session = <Session> user
    cdef Stream stream = <Stream> source.ptr
    cdef uint8_t prefix[5]
    cdef Py_ssize_t size, part
    cdef Py_ssize_t left = length
    if session._out_length >= FLUSH_BYTES:
        # One ``mem_send`` would go on through every stream's DATA.
        session._full = True
        return ERR_WOULDBLOCK
    session._append(head, 9)
    if not left:
        return 0
    size = PyBytes_GET_SIZE(stream._out)
    if stream._offset < 5:
        prefix[0] = stream._out_flag
        prefix[1] = (size >> 24) & 0xFF
        prefix[2] = (size >> 16) & 0xFF
        prefix[3] = (size >> 8) & 0xFF
        prefix[4] = size & 0xFF
        part = min(5 - stream._offset, left)
        session._append(&prefix[stream._offset], part)
        stream._offset += part
        left -= part
    if left:
        session._append(<const uint8_t *> PyBytes_AS_STRING(stream._out) + stream._offset - 5, left)
        stream._offset += left
    session._unsent -= length
    if stream._queue is not None:
        stream._queued -= length
    if stream._offset == size + 5:
        stream._out = None
    return 0


# -- helpers --------------------------------------------------------------------------------------

cdef nghttp2_nv *_filled(list fields) except NULL:
    """Point an array at ``fields``, which must live until nghttp2 has copied them; PyMem_Free it."""
    cdef Py_ssize_t index = 0
    cdef bytes name, value
    cdef nghttp2_nv *headers = <nghttp2_nv *> PyMem_Malloc(len(fields) * sizeof(nghttp2_nv))
    if headers == NULL:
        raise MemoryError
    try:
        for name, value in fields:
            headers[index] = _nv(
                PyBytes_AS_STRING(name), PyBytes_GET_SIZE(name), PyBytes_AS_STRING(value), PyBytes_GET_SIZE(value), NV_NONE)
            index += 1
    except:
        PyMem_Free(headers)
        raise
    return headers


cdef bytes _percent_encoded(str text):
    """gRPC's encoding of a status message: printable ASCII as it is, but ``%``."""
    if len(text) > DETAILS_BYTES:
        text = text[:DETAILS_BYTES]  # before the work; the exact cut comes below
    raw = text.encode("utf-8", "replace")
    # Under overload most calls end in such a message: of ASCII, and nothing in it to encode.
    if text.isascii() and text.isprintable() and "%" not in text and text == text.strip():
        return raw
    encoded = b"".join([b"%c" % byte if 0x20 <= byte <= 0x7E and byte != 0x25 else b"%%%02X" % byte for byte in raw])
    # HTTP/2 forbids spaces around a value, and peers then drop the field.
    if encoded.startswith(b" "):
        encoded = b"%20" + encoded[1:]
    if encoded.endswith(b" "):
        encoded = encoded[:len(encoded) - 1] + b"%20"
    if len(encoded) <= DETAILS_BYTES:
        return encoded
    cut = encoded[:DETAILS_BYTES]
    escape = cut.rfind(b"%", DETAILS_BYTES - 2)
    return cut if escape < 0 else cut[:escape]


cdef bytes _decompressed(bytes message, int encoding, Py_ssize_t limit):
    """Undo gzip or deflate, but no further than ``limit`` bytes.

    Raises OverflowError past the limit and zlib.error for what isn't the encoding.
    """
    decompressor = zlib.decompressobj(31 if encoding == GZIP else 15)
    plain = decompressor.decompress(message, limit + 1)
    if len(plain) > limit:
        raise OverflowError
    if not decompressor.eof:
        raise zlib.error("truncated")
    return plain
