"""Nothing of a tensor or a secret, and no unbounded text, is ever shown."""

from __future__ import annotations

import enum
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tensorferry.errors import ModelFailed
from tensorferry.logs.redaction import HIDDEN, message_of, redact, shown, text_of, traceback_of
from tensorferry.tensors import Tensor

#: So unlike anything else that finding it means it leaked.
MARK = "8f3aMARKc0ffee"


class Colour(enum.Enum):
    RED = 1


class Odd:
    """Looks like an array, and isn't one."""

    dtype = MARK * 10

    @property
    def shape(self):
        raise RuntimeError(MARK)

    def __repr__(self):
        return MARK


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        (True, True),
        (7, 7),
        (2**200, "<int of 201 bits>"),
        (1.5, 1.5),
        (math.nan, "nan"),
        ("text", "text"),
        (Path("/a/b"), "/a/b"),
        (Colour.RED, "RED"),
        (np.int64(4), 4),
        (np.float32(0.5), 0.5),
        (b"abc", "<bytes of 3 bytes>"),
        (bytearray(5), "<bytearray of 5 bytes>"),
        (memoryview(np.zeros((2, 3), np.float32)), "<memoryview of 24 bytes>"),
        (np.zeros((2, 3), np.float32), "<ndarray float32 [2, 3]>"),
        (torch.zeros(2, 3), "<Tensor torch.float32 [2, 3]>"),
        (torch.tensor(0.25), "<Tensor torch.float32 []>"),
        ([1, "a", b"b"], [1, "a", "<bytes of 1 bytes>"]),
        (list(range(1000)), "<list of 1000 items>"),
        ({"rows": 1, "data": b"xx"}, {"rows": 1, "data": "<bytes of 2 bytes>"}),
        (Tensor("x", "FP32", (1,), MARK.encode()), "<Tensor>"),
        (Odd(), "<Odd>"),
        (ModelFailed("as the caller got it"), "as the caller got it"),
        (ValueError("what"), "ValueError: what"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_value_is_shown_or_described(value, expected):
    assert shown(value) == expected


@pytest.mark.parametrize(
    "key",
    [
        "authorization",
        "Authorization",
        "api_key",
        "tls-key",
        "accessToken",
        "PASSWORD",
        "split_key",
        "cookie",
    ],
)
def test_what_has_a_secret_name_is_hidden_wherever_it_stands(key):
    event = redact(None, "info", {key: MARK, "nested": {key: {"deep": MARK}, "list": [{key: [MARK]}]}})
    assert MARK not in json.dumps(event)
    assert event[key] == HIDDEN


@pytest.mark.parametrize("key", ["model", "monkey", "keyboard", "author", "error_id", "tokenizer"])
def test_what_only_resembles_a_secret_name_is_shown(key):
    assert shown("value", key) == "value"


@pytest.mark.parametrize(
    "text",
    [
        f"authorization: Bearer {MARK}",
        f"Bearer {MARK}",
        f"password={MARK}",
        f'{{"api_key": "{MARK} and more {MARK}"}}',
        f"GET https://user:{MARK}@host/path",
        f"-----BEGIN RSA PRIVATE KEY-----\n{MARK}\n-----END RSA PRIVATE KEY-----",
        f"-----BEGIN PRIVATE KEY----- {MARK}",
        f"AWS_SECRET_ACCESS_TOKEN={MARK}",
    ],
)
def test_secrets_inside_a_text_are_hidden(text):
    assert MARK not in text_of(text)
    assert MARK not in message_of(ValueError(text))


def test_control_characters_are_escaped_and_long_texts_cut():
    assert text_of("a\x1b[31m\nforged line\u202e") == "a\\x1b[31m\\nforged line\\u202e"
    cut = text_of("x" * 5000, 100)
    assert cut.startswith("x" * 100 + "...")
    assert "5000 characters" in cut
    event = redact(None, "info", {"request_id": "i" * 4000})
    assert event["request_id"].startswith("i" * 128 + "... ")


@pytest.mark.parametrize(
    "message",
    [
        f"got tensor([[1., 2., {MARK}]], dtype=torch.float32) here",
        f"bad array([{MARK}\n 2, 3])",
        f"bytes b'{MARK}\\x00{MARK}' came",
        "row [" + ", ".join(["0.123456"] * 20) + "]",
    ],
)
def test_data_in_a_message_is_left_out(message):
    said = message_of(ValueError(message))
    assert MARK not in said
    assert "0.123456" not in said
    assert "..." in said


def test_of_a_long_message_the_beginning_and_the_end_are_kept():
    said = message_of(RuntimeError("begin " + "x " * 5000 + "the size of a must match"))
    assert len(said) < 1200
    assert "begin" in said
    assert said.endswith("the size of a must match")


def test_a_traceback_has_causes_and_no_local_variables():
    def fails(argument):
        secret_local = argument * 2
        raise KeyError(len(secret_local))

    try:
        try:
            fails(MARK)
        except KeyError as error:
            raise ValueError("outer") from error
    except ValueError as error:
        text = traceback_of(error)
    assert "fails(MARK)" in text, "the line of code"
    assert text.index("KeyError: 28") < text.index("ValueError: outer")
    assert MARK not in text


def test_a_deep_recursion_has_a_short_traceback():
    def deeper(left):
        if not left:
            raise ValueError("bottom")
        further(left - 1)

    def further(left):
        deeper(left)

    with pytest.raises(ValueError, match="bottom") as caught:
        deeper(300)
    text = traceback_of(caught.value)
    assert text.count("deeper") < 120
    assert "frames ..." in text


def test_an_exception_that_has_no_text_is_told_all_the_same():
    class Mute(Exception):
        def __str__(self):
            raise RuntimeError(MARK)

    assert message_of(Mute()) == "Mute: (says nothing: its text can't be made)"


leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=300),
    st.binary(max_size=300),
    st.builds(lambda n: np.full((n % 5, 3), 7.0), st.integers(0, 100)),
    st.just(Odd()),
    st.just(Tensor("x", "FP32", (1,), MARK.encode())),
    st.builds(ValueError, st.text(max_size=3000)),
)
values = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=40)
        | st.dictionaries(st.text(max_size=100), inner, max_size=40)
        | st.tuples(inner, inner)
    ),
    max_leaves=30,
)


@given(fields=st.dictionaries(st.text(min_size=1, max_size=30), values, max_size=6))
def test_whatever_is_logged_is_bounded_printable_json_without_data(fields):
    event = redact(None, "info", dict(fields))
    text = json.dumps(event, allow_nan=False)
    assert MARK not in text
    for value in event.values():
        if isinstance(value, str):
            assert len(value) < 2100
            assert all(part.isprintable() for part in value.split("\n"))
