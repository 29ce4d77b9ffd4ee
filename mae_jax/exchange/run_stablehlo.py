"""Run an artefact without mae_jax: python -I run_stablehlo.py FILE [IN.npz OUT.npz ...]"""

import sys

sys.modules |= dict.fromkeys(("mae_jax", "flax"))  # their import fails

import numpy as np  # noqa: E402
from jax import export  # noqa: E402

with open(sys.argv[1], "rb") as file:
    exported = export.deserialize(bytearray(file.read()))
for source, target in zip(sys.argv[2::2], sys.argv[3::2], strict=True):
    with np.load(source) as arrays:
        results = exported.call(*(arrays[name] for name in arrays.files))
    np.savez(target, **{name: np.asarray(x) for name, x in results.items()})
