"""What locust's users send, and how many of them there are over time."""

from __future__ import annotations

import numpy as np
import pytest
from loadtests.payloads import FEATURES, infer_request, infer_response, output_bytes, score_bytes
from loadtests.shapes import users_at

from tensorferry.wire import open_inference_pb2 as pb


class TestUsersAt:
    @pytest.mark.parametrize(
        ("elapsed_s", "users"),
        [
            (0.0, 2),
            (3.9, 2),
            (4.0, 2),
            (5.9, 2),
            (6.0, 8),
            (7.9, 8),
            (8.0, 1),
            (9.9, 1),
            (10.0, None),
            (99, None),
        ],
    )
    def test_steps_share_the_duration_after_the_warmup(self, elapsed_s: float, users: int | None):
        assert users_at(elapsed_s, steps=(2, 8, 1), warmup_s=4.0, duration_s=6.0) == users

    def test_one_step_is_constant(self):
        run = [users_at(tenth / 10, steps=(5,), warmup_s=1.0, duration_s=2.0) for tenth in range(31)]
        assert run == [5] * 30 + [None]

    def test_no_step_is_left_out_whatever_the_rounding(self):
        steps = tuple(range(1, 8))
        run = {users_at(tick / 100, steps, warmup_s=0.0, duration_s=0.7) for tick in range(71)}
        assert run == {*steps, None}


class TestPayloads:
    @pytest.mark.parametrize("rows", [1, 3, 64])
    def test_request_holds_the_rows_it_names(self, rows: int):
        request = pb.ModelInferRequest.FromString(infer_request("fraud", rows))
        (tensor,), (raw,) = request.inputs, request.raw_input_contents
        assert (request.model_name, tensor.name, tensor.datatype) == ("fraud", "features", "FP32")
        values = np.frombuffer(raw, np.float32).reshape(list(tensor.shape))
        assert values.shape == (rows, FEATURES)
        assert np.isfinite(values).all()
        assert len(np.unique(values)) > rows

    def test_same_seed_gives_the_same_request(self):
        assert infer_request("fraud", 2, seed=1) == infer_request("fraud", 2, seed=1)
        assert infer_request("fraud", 2, seed=1) != infer_request("fraud", 2, seed=2)

    def test_reference_answers_with_as_many_bytes_as_the_rows_scores_take(self):
        assert output_bytes(infer_response("fraud", 3)) == score_bytes(3) == 12

    def test_empty_reply_holds_no_output(self):
        assert output_bytes(b"") == 0
