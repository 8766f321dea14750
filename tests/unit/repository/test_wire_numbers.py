"""That our messages are Triton's, as far as they go: tritonclient carries the whole of them."""

from __future__ import annotations

import pytest
from tritonclient.grpc import model_config_pb2 as triton

from tensorferry.wire import model_config_pb2 as ours

MESSAGES = list(ours.DESCRIPTOR.message_types_by_name)


def assert_same(mine, theirs):
    for field in mine.fields:
        other = theirs.fields_by_name[field.name]
        assert (field.number, field.type, field.is_repeated) == (
            other.number,
            other.type,
            other.is_repeated,
        ), field.full_name
    for enum in mine.enum_types:
        numbers = {value.name: value.number for value in theirs.enum_types_by_name[enum.name].values}
        assert {value.name: value.number for value in enum.values} == numbers, enum.full_name
    for inner in mine.nested_types:
        assert_same(inner, theirs.nested_types_by_name[inner.name])


@pytest.mark.parametrize("name", MESSAGES)
def test_fields_have_tritons_numbers_and_types(name):
    assert_same(ours.DESCRIPTOR.message_types_by_name[name], triton.DESCRIPTOR.message_types_by_name[name])
