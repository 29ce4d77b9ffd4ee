"""The oracle: Hugging Face's `ViTMAEForPreTraining`, and our parameters from its own.

This module imports torch and transformers only in the functions that run the oracle.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from flax import traverse_util

from mae_jax.models import build, patches, positions
from mae_jax.weights import families, parameter_names

NAMES = families.FAMILIES["huggingface"].names
POSITIONS = {part: NAMES[f"{part}/positions"] for part in ("encoder", "decoder")}


def params_from_huggingface(state: Mapping[str, np.ndarray], grid: Sequence[int]) -> dict:
    """The parameters of `mae.MaskedAutoencoder`, nested, from a state dict with sin-cos positions.

    Raises:
      ValueError: the positions are others.
    """
    flat = parameter_names.from_format(state, families.FAMILIES["huggingface"])
    for part in POSITIONS:
        if (table := flat.pop(f"{part}/positions", None)) is not None:
            fixed = positions.sincos(grid, table.shape[1])
            if np.abs(table[0]).max() or np.abs(table[1:] - fixed).max() > 1e-6:
                raise ValueError(f"the positions of the {part} are not sin-cos on the grid {grid}")
    return traverse_util.unflatten_dict(flat, sep="/")


def huggingface(
    fields: Mapping[str, Any],
    size: Sequence[int],
    channels: int,
    ratio: float,
    gain: float = 1.2,
):
    """The `ViTMAEForPreTraining` of a model's fields, with random parameters, so that each matters.

    Its positions are its own; transformers 5 leaves them zero in a model that is not loaded from a
    file unless it is asked again, and makes them for square pictures only: other shapes get them
    from its function for one table. The draw is torch's: seed it. A kernel
    multiplies the standard deviation of its inputs by `gain`.
    """
    import torch
    from transformers import ViTMAEConfig, ViTMAEForPreTraining
    from transformers.models.vit_mae import modeling_vit_mae

    f = build.completed("MaskedAutoencoder", fields)
    grid = patches.grid_of(size, f["patch"])
    config = ViTMAEConfig(
        image_size=max(size),
        patch_size=f["patch"][0],
        num_channels=channels,
        hidden_size=f["width"],
        num_hidden_layers=f["depth"],
        num_attention_heads=f["heads"],
        intermediate_size=int(f["width"] * f["mlp_ratio"]),
        decoder_hidden_size=f["decoder_width"],
        decoder_num_hidden_layers=f["decoder_depth"],
        decoder_num_attention_heads=f["decoder_heads"],
        decoder_intermediate_size=int(f["decoder_width"] * f["mlp_ratio"]),
        mask_ratio=ratio,
        norm_pix_loss=f["norm_pix"],
        layer_norm_eps=1e-6,  # the reference's; its own default is 1e-12
        attn_implementation="eager",
    )
    oracle = ViTMAEForPreTraining(config).eval()
    embeddings, decoder = oracle.vit.embeddings, oracle.decoder
    embeddings.patch_embeddings.projection._is_hf_initialized = False  # or it leaves them zero
    embeddings.initialize_weights()
    decoder.initialize_weights(embeddings.patch_embeddings.num_patches)
    with torch.no_grad():
        for name, x in oracle.named_parameters():
            if name in POSITIONS.values():
                continue
            noise = torch.randn(x.shape)
            if x.ndim > 1 and name.endswith("weight"):
                x.copy_(gain * noise / x[0].numel() ** 0.5)
            elif "norm" in name and name.endswith("weight"):
                x.copy_(1 + 0.3 * noise)
            elif name == NAMES["encoder/cls"]:
                x.copy_(0.02 * noise)  # small, as it starts: only there the norm's eps is seen
            else:
                x.copy_(0.3 * noise)

    def table(width: int):
        rows = modeling_vit_mae.build_2d_sinusoidal_position_embedding(*grid, width, cls_token=True)
        rows = torch.cat([rows[:, width // 2 :], rows[:, : width // 2]], -1)  # as it does itself
        return torch.nn.Parameter(rows[None], requires_grad=False)

    if size[0] != size[1]:  # the path of other sizes, with a table in the place of the resize
        embeddings.position_embeddings = table(f["width"])
        decoder.decoder_pos_embed = table(f["decoder_width"])
        embeddings.interpolate_pos_encoding = lambda *args: embeddings.position_embeddings
        decoder.interpolate_pos_encoding = lambda *args: decoder.decoder_pos_embed
    return oracle


def run_huggingface(oracle, images: np.ndarray, noise: np.ndarray) -> tuple[dict, dict]:
    """What the oracle computes of `images` [b h w c], and its gradients by its own names.

    Returns:
      `loss`, `logits` [b n d], `mask` [b n] (1 = masked), `ids_restore` [b n], `hidden_states`
      [depth + 1, b, 1 + k, width] (the embedding, then every block) and `last_hidden_state` (after
      the final norm); the gradients.
    """
    import torch

    states = []
    record = lambda module, arguments, out: states.append(out.detach().numpy())
    hooks = [
        layer.register_forward_hook(record) for layer in (*oracle.vit.layers, oracle.vit.layernorm)
    ]
    first = oracle.vit.layers[0].register_forward_pre_hook(
        lambda module, arguments: states.append(arguments[0].detach().numpy())
    )
    height, width = images.shape[1:3]
    out = oracle(
        torch.tensor(images.transpose(0, 3, 1, 2)),
        noise=torch.tensor(noise),
        interpolate_pos_encoding=height != width,
    )
    for hook in (*hooks, first):
        hook.remove()
    oracle.zero_grad()
    out.loss.backward()
    gradients = {
        name: x.grad.numpy().copy() for name, x in oracle.named_parameters() if x.requires_grad
    }
    values = {
        "loss": out.loss.detach().numpy(),
        "logits": out.logits.detach().numpy(),
        "mask": out.mask.numpy(),
        "ids_restore": out.ids_restore.numpy(),
        "hidden_states": np.stack(states[:-1]),
        "last_hidden_state": states[-1],
    }
    return values, gradients


def state_of(oracle) -> dict[str, np.ndarray]:
    """The state dict as numpy arrays."""
    return {name: x.numpy().copy() for name, x in oracle.state_dict().items()}


def draw(
    seed: int, patch: Sequence[int], batch: int, size: Sequence[int], channels: int
) -> tuple[np.ndarray, np.ndarray]:
    """Images [b h w c] and noise [b n], float32.

    Contrast falls to a thirtieth along the rows: where a patch is nearly flat, the eps and the
    variance of the normalised target are seen.
    """
    generator = np.random.default_rng(seed)
    n = math.prod(patches.grid_of(size, patch))
    contrast = np.logspace(0, -1.5, size[0])[:, None, None]
    images = generator.normal(size=(batch, 1, 1, channels)) + contrast * generator.normal(
        size=(batch, *size, channels)
    )
    noise = generator.permuted(np.tile(np.arange(n) / n, (batch, 1)), axis=1)  # no ties
    return images.astype(np.float32), noise.astype(np.float32)
