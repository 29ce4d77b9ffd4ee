"""How far models of other code, once loaded, are from what that code computes.

    python tests/families.py

prints a table. The numbers of other code are in tests/golden/families, whose README says what made
them; transformers computes its own, if it is installed (`pip install -e '.[parity]'`).
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

import mae_jax
from mae_jax.models.masking import Mask

GOLDEN = Path(__file__).parent / "golden" / "families"
NAMES = sorted(path.stem for path in GOLDEN.glob("*.npz"))
# What is refused, and the sentence.
REFUSED = {
    "crossmae_self_attention": "self_attn",
    "satmae_temporal": "time stamps",
    "videomae_finetuned_first_token": "first patch",
}
# The order of bands in a group is a mistake of SatMAE's loss, which compares them with other bands.
OTHER_LOSS = ("satmae_mixed_groups", "satmae_mixed_groups_norm_pix")
# Fields that the names of a file and the arguments in it do not tell.
ALWAYS = ("heads", "decoder_heads", "size")
WITHOUT_ARGS = ("channel_groups",)


class Case:
    """A file of another code, and what that code computes of `inputs`."""

    def __init__(self, name: str):
        arrays = np.load(GOLDEN / f"{name}.npz")
        part = {key: arrays[key] for key in arrays if not key.startswith("state/")}
        self.name, self.arrays = name, part
        self.state = {key[6:]: arrays[key] for key in arrays if key.startswith("state/")}
        self.fields = json.loads(str(part.pop("fields")))
        self.args = json.loads(str(part.pop("args", "{}")))
        self.wrapper = str(part.pop("wrapper", ""))
        self.config = part.pop("config", None)

    def save(self, folder: Path, as_pth: bool) -> Path:
        """Write the file as its own code does, or its tensors alone as a .safetensors file."""
        path = folder / (self.name + (".pth" if as_pth else ".safetensors"))
        if self.config is not None:
            path = folder / self.name
            path.mkdir()
            (path / "config.json").write_text(str(self.config))
            safetensors.numpy.save_file(self.state, path / "model.safetensors")
        elif as_pth:
            import torch

            state = {name: torch.from_numpy(np.array(x)) for name, x in self.state.items()}
            file: dict[str, Any] = {self.wrapper: state} if self.wrapper else state
            if self.args:
                file["args"] = argparse.Namespace(**self.args)
            torch.save(file, path)
        else:
            safetensors.numpy.save_file(self.state, path)
        return path

    def load(self, path: Path, **more) -> tuple[Any, dict]:
        """Load the file with what its code does not write into it."""
        given = {name: self.fields[name] for name in ALWAYS if name in self.fields}
        options = self.fields.get("options", {})
        if options.get("global_pool") == "avg" and options.get("fc_norm") is False:
            given["pooling"] = "norm_mean"
        if path.suffix == ".safetensors":
            given |= {name: self.fields[name] for name in WITHOUT_ARGS if name in self.fields}
            if self.fields.get("norm_pix") is False:
                given["norm_pix"] = False
        return mae_jax.load(path, **given | more)

    def differences(self, model: Any, params: dict) -> dict[str, float]:
        """Return the largest difference of each array, as a share of its largest value."""
        variables, inputs = {"params": params}, jnp.asarray(self.arrays["inputs"])
        ours = {}
        if "prediction" in self.arrays or "prediction_bands" in self.arrays:
            visible, masked = (jnp.asarray(self.arrays[name]) for name in ("visible", "masked"))
            n = int(np.prod(model.grid(inputs.shape[1:-1])))
            out = jax.jit(model.apply)(variables, inputs, Mask(visible, masked, n))
            ours = self._in_their_terms(out, n)
        if "features" in self.arrays:
            encode = jax.jit(lambda x: model.apply(variables, x, method="encode"))
            tokens, maps = encode(inputs)
            if "logits" in self.arrays and self.arrays["features"].ndim == 2:
                ours["features"] = _feature(model, params, inputs)
            else:
                shown = tokens.shape[1] - self.arrays["features"].shape[1]
                ours["features"] = np.asarray(tokens)[:, max(shown, 0) :]
                if shown < 0:  # timm's registers, which stand behind the class token
                    theirs = self.arrays["features"]
                    self.arrays["features"] = np.concatenate(
                        [theirs[:, :1], theirs[:, 1 - shown :]], 1
                    )
        if "logits" in self.arrays:
            ours["logits"] = jax.jit(model.apply)(variables, inputs)
        return {
            name: float(
                np.abs(np.asarray(x) - self.arrays[name]).max() / np.abs(self.arrays[name]).max()
            )
            for name, x in ours.items()
        }

    def _in_their_terms(self, out, n: int) -> dict[str, Any]:
        prediction, ours = np.asarray(out.prediction), {}
        if self.name.startswith("satmae_") and "groups" in self.name:
            return self._of_groups(prediction, n) | (
                {} if self.name in OTHER_LOSS else {"loss": out.loss}
            )
        if self.fields.get("norm_pix") is False and "mean" in self.fields:  # VideoMAE's own pixels
            mean, std = (np.float32(self.fields[name]) for name in ("mean", "std"))
            prediction = (prediction.reshape(*prediction.shape[:2], -1, 3) * std + mean).reshape(
                prediction.shape
            )
            return {"prediction": prediction}  # and its loss has other units
        return {"prediction": prediction, "loss": out.loss}

    def _of_groups(self, prediction, n: int) -> dict[str, Any]:
        """Return the outputs of the groups, channels first as SatMAE has them."""
        groups, patch = self.fields["channel_groups"], int(np.prod(self.fields["patch"]))
        starts = np.cumsum([0, *map(len, groups)])
        channels, per_group = starts[-1], n // len(groups)
        grid = prediction.reshape(*prediction.shape[:2], patch, channels)
        if "prediction" in self.arrays:
            rows = [
                [x[i][:, starts[g] : starts[g + 1]].T.ravel() for i, g in enumerate(m // per_group)]
                for x, m in zip(grid, self.arrays["masked"], strict=True)
            ]
            return {"prediction": np.asarray(rows)}
        theirs = self.arrays.pop("prediction_bands")  # [b outputs patches pixels]
        ours, expected = [], []
        for x, bands, masked in zip(grid, theirs, self.arrays["masked"], strict=True):
            for i, index in enumerate(masked):
                g, place = divmod(index, per_group)
                ours.append(x[i][:, starts[g] : starts[g + 1]].T.ravel())
                expected.append(bands[starts[g] : starts[g + 1], place].ravel())
        self.arrays["prediction"] = np.concatenate(expected)
        return {"prediction": np.concatenate(ours)}


def _feature(model, params, inputs):
    """What the head of a classifier gets."""
    headless = model.clone(classes=0)
    return headless.apply({"params": {n: x for n, x in params.items() if n != "head"}}, inputs)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name in NAMES:
            case = Case(name)
            try:
                model, params = case.load(case.save(Path(folder), as_pth=True))
            except ValueError as error:
                print(f"{name:36} refused: {error}")
                continue
            differences = case.differences(model, params)
            cells = ", ".join(f"{what} {x:.1e}" for what, x in differences.items())
            print(f"{name:36} {type(model).__name__:18} {cells}")


if __name__ == "__main__":
    main()
