"""The store: what it keeps, what it drops, and what it counts."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tensorferry.batching.pending import Pending
from tensorferry.engine.response_cache import ENTRY_BYTES, OUTPUT_BYTES, ResponseCache, key_of
from tensorferry.model import Bound
from tensorferry.tensors import Tensor

OWN_BYTES = ENTRY_BYTES + OUTPUT_BYTES


def bound_of(*inputs: tuple[str, tuple[int, ...], bytes]) -> Bound:
    return Bound([Tensor("x", datatype, shape, data) for datatype, shape, data in inputs], 1, ())


def key(*inputs, owner=0):
    bound = bound_of(*inputs)
    return key_of(owner, bound, [tensor.data for tensor in bound.tensors])


def number(value: int, owner: int = 0):
    return key(("UINT8", (1,), bytes([value])), owner=owner)


def answered(data: bytes, first_row=0, batch_rows=0) -> Pending:
    request = Pending(bound_of(("UINT8", (1, 1), b"a")), lambda _: None)
    rows = batch_rows or 1
    request.finish([Tensor("y", "UINT8", (rows, len(data) // rows), data)], first_row, batch_rows)
    return request


def kept(cache: ResponseCache, value: int) -> bytes | None:
    answer = cache.get(number(value))
    return None if answer is None else bytes(answer[0][0].data)


class TestKey:
    def test_equal_content_has_equal_keys_whatever_buffer_holds_it(self):
        bound = bound_of(("UINT8", (3,), b"abc"))
        assert key_of(1, bound, [b"abc"]) == key_of(1, bound, [memoryview(b"xabc")[1:]])

    def test_another_byte_shape_datatype_or_owner_is_another_key(self):
        keys = {
            key(("UINT8", (4,), b"abcd")),
            key(("UINT8", (4,), b"abce")),
            key(("UINT8", (2, 2), b"abcd")),
            key(("INT8", (4,), b"abcd")),
            key(("FP32", (1,), b"abcd")),
            key(("UINT8", (4,), b"abcd"), owner=1),
        }
        assert len(keys) == 6

    def test_bytes_that_move_from_one_input_to_the_next_are_another_key(self):
        assert key(("BYTES", (1,), b"ab"), ("BYTES", (1,), b"c")) != key(
            ("BYTES", (1,), b"a"), ("BYTES", (1,), b"bc")
        )

    def test_inputs_in_another_order_are_another_key(self):
        assert key(("UINT8", (1,), b"a"), ("UINT8", (1,), b"b")) != key(
            ("UINT8", (1,), b"b"), ("UINT8", (1,), b"a")
        )


class TestBound:
    def test_what_was_used_longest_ago_leaves_first(self):
        cache = ResponseCache(10 * (OWN_BYTES + 1))
        for value in range(10):
            cache.keep(number(value), answered(bytes([value])))
        assert kept(cache, 0) == b"\x00"
        cache.keep(number(10), answered(b"k"))
        assert [value for value in range(11) if kept(cache, value) is None] == [1]

    def test_an_answer_above_its_share_of_the_bound_is_not_kept(self):
        cache = ResponseCache(8 * (OWN_BYTES + 100))
        cache.keep(number(1), answered(bytes(100)))
        cache.keep(number(2), answered(bytes(101)))
        assert kept(cache, 1) == bytes(100)
        assert kept(cache, 2) is None
        assert cache.size().byte_size == OWN_BYTES + 100

    def test_keeping_an_answer_again_counts_it_once(self):
        cache = ResponseCache(2**20)
        for _ in range(3):
            cache.keep(number(1), answered(b"abc"))
        assert cache.size().count == 1
        assert cache.size().byte_size == OWN_BYTES + 3

    def test_a_bound_of_zero_keeps_nothing(self):
        cache = ResponseCache(0)
        cache.keep(number(1), answered(b""))
        assert not cache.is_enabled
        assert cache.size().count == 0

    def test_forgetting_an_owner_drops_its_answers_alone(self):
        cache = ResponseCache(2**20)
        cache.keep(number(1, owner=1), answered(b"a"))
        cache.keep(number(1, owner=2), answered(b"b"))
        cache.forget(1)
        assert cache.get(number(1, owner=1)) is None
        assert cache.get(number(1, owner=2)) is not None
        cache.forget(2)
        assert cache.size().byte_size == 0

    def test_owners_are_never_the_same(self):
        cache = ResponseCache(2**20)
        assert len({cache.new_owner() for _ in range(5)}) == 5

    @given(
        st.lists(
            st.one_of(
                st.tuples(st.just("keep"), st.integers(0, 9), st.integers(0, 900)),
                st.tuples(st.just("get"), st.integers(0, 9), st.just(0)),
                st.tuples(st.just("forget"), st.integers(0, 1), st.just(0)),
            ),
            max_size=60,
        )
    )
    def test_the_bytes_held_never_exceed_the_bound_and_are_those_of_what_is_kept(self, actions):
        cache = ResponseCache(9 * (OWN_BYTES + 300))
        for action, value, size in actions:
            if action == "keep":
                cache.keep(number(value, owner=value % 2), answered(bytes(size)))
            elif action == "get":
                cache.get(number(value, owner=value % 2))
            else:
                cache.forget(value)
            assert cache.size().byte_size <= cache.size().max_bytes
            answers = [cache.get(number(value, owner=value % 2)) for value in range(10)]
            held = [OWN_BYTES + len(each[0][0].data) for each in answers if each is not None]
            assert (len(held), sum(held)) == (cache.size().count, cache.size().byte_size)
        cache.forget(0)
        cache.forget(1)
        assert cache.size().byte_size == 0


def test_a_kept_answer_owns_its_rows_and_no_others():
    cache = ResponseCache(2**20)
    buffer = bytearray(b"abcdefgh")
    cache.keep(number(1), answered(memoryview(buffer), first_row=2, batch_rows=4))
    buffer[:] = b"xxxxxxxx"
    assert kept(cache, 1) == b"ef"
    assert type(cache.get(number(1))[0][0].data) is bytes
    assert cache.get(number(1))[1] == 1
