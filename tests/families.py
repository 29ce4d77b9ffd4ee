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
from mae_jax.weights.families import videomae

GOLDEN = Path(__file__).parent / "golden" / "families"
NAMES = sorted(path.stem for path in GOLDEN.glob("*.npz"))
# What is refused, and the sentence.
REFUSED = {
    "crossmae_self_attention": "see each other",
    "satmae_temporal": "time stamps",
    "videomae_finetuned_first_token": "first patch",
}
# What only the arguments in a file say, and the sentence of a file without them.
NEEDS_ARGS = {"crossmae_some_maps": "does not say which"}
# The order of bands in a group is a mistake of SatMAE's loss, which compares them with other bands.
OTHER_LOSS = ("satmae_mixed_groups", "satmae_mixed_groups_norm_pix")
# Fields that the names of a file and the arguments in it do not tell.
ALWAYS = ("heads", "decoder_heads", "size")
WITHOUT_DECODER = ("audiomae_swin_decoder",)
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
            path.mkdir(exist_ok=True)
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

    def given(self, suffix: str) -> dict[str, Any]:
        """Return what its code does not write into a file."""
        given = {name: self.fields[name] for name in ALWAYS if name in self.fields}
        if self.name in WITHOUT_DECODER:
            del given["decoder_heads"]
        options = self.fields.get("options", {})
        if options.get("global_pool") == "avg" and options.get("fc_norm") is False:
            given["pooling"] = "norm_mean"
        has_args = suffix == ".pth" and self.args
        if self.fields.get("norm_pix") is False and not has_args:
            given["norm_pix"] = False
        if suffix == ".safetensors":
            given |= {name: self.fields[name] for name in WITHOUT_ARGS if name in self.fields}
        return given

    def load(self, path: Path, **more) -> tuple[Any, dict]:
        return mae_jax.load(path, **self.given(path.suffix) | more)

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
        prediction = np.asarray(out.prediction)
        if self.name.startswith("satmae_") and "groups" in self.name:
            return self._of_groups(prediction, n) | (
                {} if self.name in OTHER_LOSS else {"loss": out.loss}
            )
        if self.name in ("videomae_pixels", "VideoMAEForPreTraining pixels"):
            mean, std = np.float32(videomae.MEAN), np.float32(videomae.STD)
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


class FromTransformers(Case):
    """A tiny model of transformers with random parameters, and what it computes."""

    def __init__(self, name: str):  # pyright: ignore[reportMissingSuperCall]
        import torch
        import transformers

        transformers.utils.logging.disable_progress_bar()
        video, options, fields = TRANSFORMERS[name]
        class_name = name.partition(" ")[0]
        sizes = dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=3)
        sizes |= dict(intermediate_size=48, image_size=16, patch_size=4)
        if video:
            sizes |= dict(num_frames=4, tubelet_size=2)
        if "PreTraining" in name:
            sizes |= dict(decoder_hidden_size=16, decoder_num_hidden_layers=2)
            sizes |= dict(decoder_num_attention_heads=2, decoder_intermediate_size=80)
        model_class = getattr(transformers, class_name)
        torch.manual_seed(0)
        self.name, self.fields = name, fields
        self.model = model_class(model_class.config_class(**sizes | options)).eval()
        with torch.no_grad():
            for key, x in self.model.named_parameters():
                noise = torch.randn(x.shape)
                if x.requires_grad:
                    x.copy_(noise * 0.2 + (1 if "norm" in key and key.endswith("weight") else 0))
            self.arrays = {n: x.numpy() for n, x in self._run(torch).items()}

    def _run(self, torch) -> dict[str, Any]:
        """Return the arrays of `Case`."""
        video = TRANSFORMERS[self.name][0]
        inputs = torch.randn((2, 4, 16, 16, 3) if video else (2, 16, 16, 3))
        pixels = inputs.movedim(-1, 2 if video else 1)
        if self.name.startswith("VideoMAEForPreTraining"):
            masked = torch.rand(2, 32).argsort(1) < 24
            out = self.model(pixels, bool_masked_pos=masked)
            index = torch.arange(32).expand(2, -1)
            arrays = dict(loss=out.loss, prediction=out.logits)
            arrays |= dict(
                visible=index[~masked].reshape(2, -1), masked=index[masked].reshape(2, -1)
            )
        elif self.name.startswith("ViTMAEForPreTraining"):
            out = self.model(pixels, noise=torch.rand(2, 16))
            visible, masked = ((out.mask == x).nonzero()[:, 1].reshape(2, -1) for x in (0, 1))
            prediction = torch.stack([x[i] for x, i in zip(out.logits, masked, strict=True)])
            arrays = dict(loss=out.loss, prediction=prediction, visible=visible, masked=masked)
        elif "Classification" in self.name:
            arrays = dict(logits=self.model(pixels).logits)
        else:
            order = dict(noise=torch.arange(16.0).expand(2, -1)) if "ViTMAE" in self.name else {}
            arrays = dict(features=self.model(pixels, **order).last_hidden_state)
        return arrays | dict(inputs=inputs)

    def save(self, folder: Path, as_pth: bool) -> Path:
        path = folder / self.name.replace(" ", "_")
        if "sharded" in self.name:
            self.model.save_pretrained(path, max_shard_size="20kB")
        elif "bin" in self.name:
            import torch

            self.model.config.save_pretrained(path)
            torch.save(self.model.state_dict(), path / "pytorch_model.bin")
        else:
            self.model.save_pretrained(path)
        return path

    def load(self, path: Path, **more) -> tuple[Any, dict]:
        return mae_jax.load(path, **self.fields | more)


# Is it of video, options of its config, and what has to be said when it is loaded.
TRANSFORMERS: dict[str, tuple[bool, dict, dict]] = {
    "ViTMAEForPreTraining": (False, dict(norm_pix_loss=True), {}),
    "ViTMAEForPreTraining sharded": (False, {}, {}),
    "ViTMAEForPreTraining bin": (False, {}, {}),
    "ViTMAEModel": (False, dict(mask_ratio=0.0), {}),
    "ViTModel": (False, {}, {}),
    "ViTModel without biases": (False, dict(qkv_bias=False), {}),
    "ViTForImageClassification": (False, dict(num_labels=5), {}),
    "PixioModel": (False, dict(mlp_ratio=2), {}),
    "VideoMAEForPreTraining": (True, dict(use_mean_pooling=False), {}),
    "VideoMAEForPreTraining without norm": (True, {}, {}),
    "VideoMAEForPreTraining pixels": (True, dict(norm_pix_loss=False), {}),
    "VideoMAEModel": (True, dict(use_mean_pooling=False), {}),
    "VideoMAEForVideoClassification": (True, dict(num_labels=5), {}),
}


def _feature(model, params, inputs):
    """What the head of a classifier gets."""
    headless = model.clone(classes=0)
    return headless.apply({"params": {n: x for n, x in params.items() if n != "head"}}, inputs)


# Rows of the table: the code, the beginning of the names of its cases, and what is read of it.
CODE = {
    "MAE (facebookresearch/mae)": ("mae_", "pre-trained, fine-tuned, linear probe"),
    "transformers: ViTMAE, ViT, Pixio, VideoMAE": (
        "ViT,Pixio,VideoMAE",
        "pre-trained, encoder, fine-tuned; sharded, `.bin`",
    ),
    "timm, lightly": (
        "timm_,lightly",
        "pooled by class token or average, registers, layer scale, Hub folder",
    ),
    "MAE-ST": ("mae_st_", "pre-trained, fine-tuned"),
    "VideoMAE (MCG-NJU), MAE-pytorch": (
        "videomae_,mae_pytorch",
        "pre-trained, fine-tuned by the mean",
    ),
    "CrossMAE": ("crossmae", "pre-trained with weighted maps, fine-tuned"),
    "AudioMAE": ("audiomae_", "global decoder, fine-tuned; of a Swin decoder the encoder"),
    "SatMAE": ("satmae_", "bands, channel groups, fine-tuned"),
}


def main() -> None:
    """Print the table, and the sentences for what is refused."""
    worst: dict[str, list[float]] = {code: [] for code in CODE}
    refused = []
    beginnings = [(start, code) for code, (x, _) in CODE.items() for start in x.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        for case in [*map(Case, NAMES), *map(FromTransformers, TRANSFORMERS)]:
            found = [(start, code) for start, code in beginnings if case.name.startswith(start)]
            code = max(found, key=lambda pair: len(pair[0]))[1]
            try:
                differences = case.differences(*case.load(case.save(Path(folder), as_pth=True)))
                worst[code].append(max(differences.values()))
            except ValueError as error:
                if case.name not in REFUSED:
                    raise
                refused.append(str(error).replace(f"{folder}/", ""))
    print("| files of | what is read | files compared | largest difference |\n|---|---|---|---|")
    for code, differences in worst.items():
        print(f"| {code} | {CODE[code][1]} | {len(differences)} | {max(differences):.0e} |")
    print("\nrefused:", *refused, sep="\n- ")


if __name__ == "__main__":
    main()
