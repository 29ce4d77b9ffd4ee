"""Run a model of ONNX without mae_jax: python -I run_onnx.py FILE [IN.npz OUT.npz ...]"""

import sys
from typing import Any


def main(path: str, *files: str) -> None:
    """Write the outputs for each .npz file of inputs to the .npz file after it."""
    import numpy as np
    import onnxruntime  # pyright: ignore[reportMissingImports]

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    for source, target in zip(files[::2], files[1::2], strict=True):
        with np.load(source) as arrays:
            results: Any = session.run(names, dict(arrays))
        np.savez(target, **dict(zip(names, results, strict=True)))


if __name__ == "__main__":
    sys.modules |= dict.fromkeys(("mae_jax", "jax", "flax"))  # their import would fail
    main(*sys.argv[1:])
