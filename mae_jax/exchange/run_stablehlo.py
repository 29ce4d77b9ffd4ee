"""Run an artefact without mae_jax: python -I run_stablehlo.py FILE [IN.npz OUT.npz ...]"""

import sys
from typing import Any


def main(path: str, *files: str) -> None:
    """Write the outputs for each .npz file of inputs to the .npz file after it."""
    import numpy as np
    from jax import export

    with open(path, "rb") as file:
        exported = export.deserialize(bytearray(file.read()))
    for source, target in zip(files[::2], files[1::2], strict=True):
        with np.load(source) as arrays:
            results: Any = exported.call(*(arrays[name] for name in arrays.files))
        np.savez(target, allow_pickle=False, **{name: np.asarray(x) for name, x in results.items()})


if __name__ == "__main__":
    sys.modules |= dict.fromkeys(("mae_jax", "flax"))  # their import would fail
    main(*sys.argv[1:])
