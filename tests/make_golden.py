"""What Hugging Face's `ViTMAEForPreTraining` computes, written to tests/golden/NAME.npz.

    pip install -e '.[parity]'
    python tests/make_golden.py

The files in the repository were written with transformers 5.23.0, torch 2.13.0 (CPU), numpy 2.4.6
and Python 3.11. Each holds the fields of our model (`fields`, JSON), the state dict under Hugging
Face's names (`state/...`), `images` [b h w c], `noise` [b n], and what `run_huggingface` returns.
"""

import json
from pathlib import Path

import numpy as np
import parity  # beside this file
import torch  # pyright: ignore[reportMissingImports]

SMALL = dict(width=24, depth=2, heads=3, decoder_width=16, decoder_depth=2, decoder_heads=2)
OTHER = dict(width=16, depth=3, heads=2, decoder_width=24, decoder_depth=2, decoder_heads=3)
CASES = {  # name: size, channels, mask ratio, fields of the model
    "patch4_pixels_rgb": ((16, 16), 3, 0.75, SMALL | dict(patch=(4, 4), norm_pix=False)),
    "patch4_normalised_gray": ((16, 16), 1, 0.5, OTHER | dict(patch=(4, 4), norm_pix=True)),
    "patch8_pixels_gray": ((32, 32), 1, 0.75, OTHER | dict(patch=(8, 8), norm_pix=False)),
    "patch8_normalised_rgb": ((32, 32), 3, 0.75, SMALL | dict(patch=(8, 8), norm_pix=True)),
    "patch4_normalised_wide": ((16, 24), 3, 0.75, SMALL | dict(patch=(4, 4), norm_pix=True)),
}


def main() -> None:
    folder = Path(__file__).resolve().parent / "golden"
    for seed, (name, (size, channels, ratio, fields)) in enumerate(CASES.items()):
        torch.manual_seed(seed)
        oracle = parity.huggingface(fields, size, channels, ratio)
        images, noise = parity.draw(seed, fields["patch"], 2, size, channels)
        values, _ = parity.run_huggingface(oracle, images, noise)
        state = {f"state/{key}": x for key, x in parity.state_of(oracle).items()}
        arrays = dict(images=images, noise=noise) | values | state
        arrays = {
            key: x.astype(np.int32 if x.dtype == np.int64 else np.float32)
            for key, x in arrays.items()
        }
        path = folder / f"{name}.npz"
        np.savez_compressed(path, fields=json.dumps(fields), **arrays)
        print(f"{path}: loss {values['loss']:.4f}, {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
