"""The model on Triton's Python backend. Run by Triton's own stub process, in Triton's environment."""

from __future__ import annotations

import numpy as np
import torch
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, arguments: dict[str, str]) -> None:
        torch.set_num_threads(1)
        directory = f"{arguments['model_repository']}/{arguments['model_version']}"
        self._model = torch.jit.load(f"{directory}/model.pt")
        with torch.inference_mode():
            for rows in (1, 2, 4, 8, 16, 32, 64) * 5:
                self._model(torch.zeros(rows, 30))

    def execute(self, requests: list[object]) -> list[object]:
        parts = [pb_utils.get_input_tensor_by_name(each, "features").as_numpy() for each in requests]
        with torch.inference_mode():
            scores = self._model(torch.from_numpy(np.concatenate(parts))).numpy()
        responses, start = [], 0
        for part in parts:
            end = start + len(part)
            output = pb_utils.Tensor("score", scores[start:end])
            responses.append(pb_utils.InferenceResponse(output_tensors=[output]))
            start = end
        return responses
