# cython: language_level=3, boundscheck=False, wraparound=False
"""Take a ModelInferRequest apart without parsing what is the same in every request, and put replies together.

Protobuf's wire format: a message is a run of fields, each a tag (number and wire type) and a value.
``scan`` knows only the numbers of ``id`` (3), of ``raw_input_contents`` (7), and of ``parameters`` (4) where
it holds a ``split_key``; all else is returned as it is, as the key under which ``plans.py`` keeps what
parsing it has taught. A field's meaning doesn't depend on the others around it, so parsing the body
gives the same as parsing the key, plus the id, the split key and the raw contents. Whatever is unusual
makes ``scan`` return None, and protobuf decides.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memcmp, memcpy

cdef extern from "string.h" nogil:
    void *memmem(const void *, size_t, const void *, size_t)


cdef enum:
    LENGTH_DELIMITED = 2
    ID = 3
    PARAMETERS = 4
    RAW_INPUT_CONTENTS = 7
    # (number << 3) | wire type, of ModelInferResponse.raw_output_contents (6) and id (3)
    RAW_OUTPUT_TAG = 0x32
    ID_TAG = 0x1A
    # Below this a copy is cheaper than a view, and doesn't keep the whole message alive.
    VIEW_BYTES = 4096
    MOST_OUTPUTS = 16
    MOST_TAG_BYTES = 5
    # A parameter's entry with the key "split_key": the tag and length of the key, the key, and then
    # the tag of the value; its length; the tag of InferParameter.string_param (3); its length; the text.
    SPLIT_KEY_HEAD_BYTES = 12

cdef const char *SPLIT_KEY_HEAD = b"\x0a\x09split_key\x12"


cdef inline const uint8_t *_varint(const uint8_t *at, const uint8_t *end, uint64_t *value) noexcept:
    """Read a varint; NULL if it isn't one."""
    cdef int shift = 0
    value[0] = 0
    while at < end and shift < 64:
        value[0] |= (<uint64_t> (at[0] & 0x7F)) << shift
        if not at[0] & 0x80:
            return at + 1
        at += 1
        shift += 7
    return NULL


cdef bytes _split_key(const uint8_t *at, const uint8_t *end):
    """Return the text of a parameter's entry if that is a ``split_key`` in its plain form; else None."""
    cdef uint64_t length
    if end - at < SPLIT_KEY_HEAD_BYTES + 3 or memcmp(at, SPLIT_KEY_HEAD, SPLIT_KEY_HEAD_BYTES):
        return None
    at = _varint(at + SPLIT_KEY_HEAD_BYTES, end, &length)
    if at == NULL or length != <uint64_t> (end - at) or length < 2 or at[0] != 0x1A:
        return None
    at = _varint(at + 1, end, &length)
    if at == NULL or length == 0 or length != <uint64_t> (end - at):
        return None
    return PyBytes_FromStringAndSize(<const char *> at, <Py_ssize_t> length)


def scan(bytes body not None):
    """Return (key, id, raw contents, split key), or None for what protobuf had better look at.

    The id and the split key are bytes, empty if there is none. A raw content is bytes, or a view into
    ``body`` if it is large.
    """
    cdef const uint8_t *start = <const uint8_t *> PyBytes_AS_STRING(body)
    cdef const uint8_t *end = start + PyBytes_GET_SIZE(body)
    cdef const uint8_t *at = start
    cdef const uint8_t *field
    cdef const uint8_t *kept = start  # start of the run of bytes that belongs to the key
    cdef uint64_t tag, length
    cdef uint64_t number
    cdef list raws = []
    cdef bytes identity = None
    cdef bytes split_key = None
    cdef bytes key = None
    while at < end:
        field = at
        at = _varint(at, end, &tag)
        # Protobuf takes no tag of more than five bytes, however small its value.
        if at == NULL or tag & 7 != LENGTH_DELIMITED or at - field > MOST_TAG_BYTES:
            return None
        at = _varint(at, end, &length)
        if at == NULL or length > <uint64_t> (end - at):
            return None
        number = tag >> 3
        if number == RAW_INPUT_CONTENTS:
            if length < VIEW_BYTES:
                raws.append(PyBytes_FromStringAndSize(<const char *> at, <Py_ssize_t> length))
            else:
                raws.append(memoryview(body)[at - start:at - start + <Py_ssize_t> length])
        elif number == ID:
            if identity is not None:
                return None
            identity = PyBytes_FromStringAndSize(<const char *> at, <Py_ssize_t> length)
        elif number == PARAMETERS and memmem(at, length, SPLIT_KEY_HEAD + 2, 9) != NULL:
            # One in another form than its plain one, or a second: which of them counts, protobuf knows.
            if split_key is not None:
                return None
            split_key = _split_key(at, at + length)
            if split_key is None:
                return None
        else:
            at += length
            continue
        if field > kept:
            part = PyBytes_FromStringAndSize(<const char *> kept, field - kept)
            key = part if key is None else key + part
        at += length
        kept = at
    if end > kept:
        part = PyBytes_FromStringAndSize(<const char *> kept, end - kept)
        key = part if key is None else key + part
    return (
        b"" if key is None else key,
        b"" if identity is None else identity,
        raws,
        b"" if split_key is None else split_key,
    )


cdef inline uint8_t *_put_varint(uint8_t *at, uint64_t value) noexcept:
    while value > 0x7F:
        at[0] = <uint8_t> (value & 0x7F) | 0x80
        value >>= 7
        at += 1
    at[0] = <uint8_t> value
    return at + 1


cdef inline Py_ssize_t _varint_size(uint64_t value) noexcept:
    cdef Py_ssize_t size = 1
    while value > 0x7F:
        value >>= 7
        size += 1
    return size


def join_response(bytes head not None, bytes identity not None, bytes described not None, outputs not None,
                  Py_ssize_t first_row, Py_ssize_t rows, Py_ssize_t batch_rows):
    """Return a serialised ModelInferResponse.

    ``head`` holds the fields before the id (name and version), ``described`` the outputs'
    descriptions; ``outputs`` are the whole batch's tensors, of which the reply gets ``rows`` from
    ``first_row`` on. One copy: from the batch's output into the reply. Raises ValueError for
    rows that the batch doesn't have, and more than 16 outputs.
    """
    cdef Py_buffer views[MOST_OUTPUTS]
    cdef Py_ssize_t count = len(outputs)
    cdef Py_ssize_t opened = 0
    cdef Py_ssize_t index, row_bytes, size
    cdef Py_ssize_t total = PyBytes_GET_SIZE(head) + PyBytes_GET_SIZE(described)
    cdef bytes reply
    cdef uint8_t *at
    if count > MOST_OUTPUTS:
        raise ValueError("too many outputs")
    if batch_rows < 1 or first_row < 0 or rows < 0 or rows > batch_rows or first_row > batch_rows - rows:
        raise ValueError("rows that the batch doesn't have")
    if identity:
        total += 1 + _varint_size(PyBytes_GET_SIZE(identity)) + PyBytes_GET_SIZE(identity)
    try:
        for index in range(count):
            PyObject_GetBuffer(outputs[index].data, &views[index], PyBUF_SIMPLE)
            opened += 1
            size = views[index].len // batch_rows * rows
            total += 1 + _varint_size(size) + size
        reply = PyBytes_FromStringAndSize(NULL, total)
        at = <uint8_t *> PyBytes_AS_STRING(reply)
        memcpy(at, PyBytes_AS_STRING(head), PyBytes_GET_SIZE(head))
        at += PyBytes_GET_SIZE(head)
        if identity:
            at[0] = ID_TAG
            at = _put_varint(at + 1, PyBytes_GET_SIZE(identity))
            memcpy(at, PyBytes_AS_STRING(identity), PyBytes_GET_SIZE(identity))
            at += PyBytes_GET_SIZE(identity)
        memcpy(at, PyBytes_AS_STRING(described), PyBytes_GET_SIZE(described))
        at += PyBytes_GET_SIZE(described)
        for index in range(count):
            row_bytes = views[index].len // batch_rows
            at[0] = RAW_OUTPUT_TAG
            at = _put_varint(at + 1, row_bytes * rows)
            memcpy(at, <uint8_t *> views[index].buf + row_bytes * first_row, row_bytes * rows)
            at += row_bytes * rows
        return reply
    finally:
        for index in range(opened):
            PyBuffer_Release(&views[index])
