"""Run a model of ONNX without mae_jax: python -I run_onnx.py FILE [IN.npz OUT.npz ...]"""

import sys

sys.modules |= dict.fromkeys(("mae_jax", "jax", "flax"))  # their import fails

import numpy as np  # noqa: E402
import onnxruntime  # noqa: E402  # pyright: ignore[reportMissingImports]

session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
names = [output.name for output in session.get_outputs()]
for source, target in zip(sys.argv[2::2], sys.argv[3::2], strict=True):
    with np.load(source) as arrays:
        results = session.run(names, dict(arrays))
    np.savez(target, **dict(zip(names, results, strict=True)))
