"""Run a model once and print its outputs: ``python clients/examples/infer.py [target]``.

The server has a model ``fraud`` that takes float32 (rows, 30), as the one of ``make demo`` does.
"""

import sys

import numpy as np

from tensorferry_client import Client, ClientError


def main(target: str) -> None:
    """Ask for the model's input, send two rows of zeros and print the outputs."""
    with Client(target) as client:
        name = client.model_metadata("fraud").inputs[0].name
        result = client.infer("fraud", {name: np.zeros((2, 30), np.float32)}, timeout_s=1.0)
    for output, array in result.outputs.items():
        print(f"{result.model} version {result.version}: {output} = {array.tolist()}")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:2] or ["127.0.0.1:8001"])
    except ClientError as error:
        sys.exit(f"{type(error).__name__}: {error}")
