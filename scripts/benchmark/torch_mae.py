"""The same work in PyTorch: Hugging Face's ViTMAE with AdamW, to be timed beside our step.

This is what PyTorch users run: `ViTMAEForPreTraining` with SDPA attention, fused AdamW without
decay on norms and biases, float32 or bfloat16 autocast as the config says, and a uint8 batch that
is on the device, flipped and normalised there. Two parts of its forward pass do more than ours,
as in the reference: the patch embedding sees masked patches too, and the head visible ones
(`forward_flops`).
"""

import contextlib
import importlib.util
import math
import os
import sys
import warnings
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from mae_jax.planning import estimate, flops
from scripts.benchmark.alternating import Contender

# What the reference cannot do, by key; all else in a config is the same work or costs nothing.
ONLY = {
    "accumulation": 1,
    "data.modality": "image",
    "model.cls_tokens": 1,
    "model.register_tokens": 0,
    "model.position_formula": "sincos",
    "model.decoder": "self",
    "model.final_norm": True,
    "model.target_stride": (),
    "model.learned_positions": False,
    "model.separable_positions": False,
    "model.channel_groups": (),
    "model.vocab_size": 0,
    "mask.name": "random",
    "mask.decode": 1.0,
    "optimizer.clip": 0.0,
    "optimizer.ema": 0.0,
    "optimizer.mu_dtype": "float32",
}


def cores() -> int:
    """Return the cores of this process, which may be fewer than the machine has."""
    affinity = getattr(os, "sched_getaffinity", None)  # on Linux alone
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def device_of(config) -> str:
    """Return torch's name of the device that jax runs on.

    Raises:
      ValueError: in one sentence, what is missing, or what Hugging Face's ViTMAE cannot do.
    """
    missing = [name for name in ("torch", "transformers") if not importlib.util.find_spec(name)]
    if missing:
        raise ValueError(f"--against=torch needs {' and '.join(missing)}: pip install '.[parity]'")
    import torch

    for key, only in ONLY.items():
        section, _, name = key.rpartition(".")
        value = (config[section] if section else config)[name]
        if value != only:
            raise ValueError(f"PyTorch's ViTMAE has no {key} = {value!r}: compare with {only!r}")
    for name, sides in (("data.size", config.data.size), ("model.patch", config.model.patch)):
        if len(set(sides)) > 1:
            raise ValueError(f"PyTorch's ViTMAE wants squares, and {name} = {sides}")
    backend = jax.default_backend()
    if jax.device_count() > 1:
        raise ValueError("--against=torch compares one device: set CUDA_VISIBLE_DEVICES=0")
    if backend not in ("cpu", "gpu") or (backend == "gpu" and not torch.cuda.is_available()):
        raise ValueError(f"jax runs on {backend!r}, and this torch does not")
    return "cuda" if backend == "gpu" else "cpu"


def forward_flops(config) -> dict[str, int]:
    """Return the FLOPs of the reference's forward pass of one image, part by part.

    It embeds all patches before it drops the masked ones, and its head runs on all tokens.
    """
    (model, masks), channels = estimate.network(config), config.data.channels
    values = math.prod(model.patch) * channels
    head = flops.product(1 + masks.n, model.decoder.trunk.width, model.target.size(channels))
    embedding = flops.product(masks.n, values, model.encoder.trunk.width)
    return estimate.forward_flops(config) | {"patch embedding": embedding, "head": head}


def contenders(config, inputs: np.ndarray, part: str, device: str) -> list[Contender]:
    """Build the eager and the compiled one on `inputs` [b h w c]; print what cannot be built."""
    built = []
    for compiled in (False, True):
        try:
            built.append(contender(config, inputs, part, compiled, device))
        except ValueError as error:
            print(error, file=sys.stderr)
    return built


def network(config):
    """Build the `ViTMAEForPreTraining` of a config's sizes, freshly initialised.

    transformers 5 leaves the positions zero in a model that is not loaded from a file, unless it is
    asked again, and has another eps than the reference.
    """
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    model, masks = estimate.network(config)
    encoder, decoder = model.encoder.trunk, model.decoder.trunk
    attention: Any = dict(attn_implementation="sdpa")
    oracle: Any = ViTMAEForPreTraining(
        ViTMAEConfig(
            image_size=config.data.size[0],
            patch_size=model.patch[0],
            num_channels=config.data.channels,
            hidden_size=encoder.width,
            num_hidden_layers=encoder.depth,
            num_attention_heads=encoder.heads,
            intermediate_size=int(encoder.width * encoder.mlp_ratio),
            decoder_hidden_size=decoder.width,
            decoder_num_hidden_layers=decoder.depth,
            decoder_num_attention_heads=decoder.heads,
            decoder_intermediate_size=int(decoder.width * decoder.mlp_ratio),
            mask_ratio=1 - (masks.keep + 0.5) / masks.n,  # it cuts n * (1 - ratio) off
            norm_pix_loss=config.model.norm_pix,
            layer_norm_eps=encoder.eps,
            **attention,
        )
    )
    embeddings = oracle.vit.embeddings
    embeddings.patch_embeddings.projection._is_hf_initialized = False
    embeddings.initialize_weights()
    oracle.decoder.initialize_weights(masks.n)
    return oracle


def trained(oracle) -> int:
    """Count the parameters without the fixed tables of positions."""
    return sum(x.numel() for x in oracle.parameters() if x.requires_grad)


def loss_of(config, oracle, device: str) -> Callable:
    """Return `uint8 [b c h w] -> loss`: flip, normalise, and the forward pass in our dtype."""
    import torch

    data, dtype = config.data, estimate.network(config)[0].encoder.trunk.ops.dtype
    channels = lambda values: torch.tensor(values, device=device).reshape(-1, 1, 1) * 255
    mean, std = (channels(x if x != "auto" else (0.5,)) for x in (data.mean, data.std))
    half = np.dtype(dtype).name == "bfloat16"

    def loss(images):
        if data.get("flip"):
            coins = torch.rand(len(images), 1, 1, 1, device=device) < 0.5
            images = torch.where(coins, images.flip(-1), images)
        with torch.autocast(device, torch.bfloat16) if half else contextlib.nullcontext():
            return oracle((images - mean) / std).loss

    return loss


def optimizer_of(config, oracle):
    """Return AdamW as the config has it, with one kernel for all parameters if torch has that."""
    import torch

    options, params = config.optimizer, [x for x in oracle.parameters() if x.requires_grad]
    groups = [
        dict(params=[x for x in params if x.ndim > 1], weight_decay=options.weight_decay),
        dict(params=[x for x in params if x.ndim <= 1], weight_decay=0.0),
    ]
    shared: Any = dict(
        lr=options.base_learning_rate * config.batch_size / 256, betas=(options.b1, options.b2)
    )
    try:
        return torch.optim.AdamW(groups, fused=True, **shared)
    except RuntimeError:  # none for this device
        return torch.optim.AdamW(groups, foreach=True, **shared)


def contender(config, inputs: np.ndarray, part: str, compiled: bool, device: str) -> Contender:
    """Build PyTorch's step (or `part="forward"`) on `inputs` [b h w c], uint8.

    Raises:
      ValueError: torch.compile cannot build it, or there is too little memory; with the reason.
    """
    import torch

    torch.manual_seed(config.seed)
    torch.set_num_threads(cores())
    cuda = device == "cuda"
    if cuda:
        torch.set_float32_matmul_precision("high")  # TF32, as XLA has it by default
        torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() if cuda else 0
    oracle = network(config).to(device)
    loss = loss_of(config, oracle, device)
    optimizer = optimizer_of(config, oracle) if part == "step" else None
    batch = torch.tensor(inputs.transpose(0, 3, 1, 2).copy(), device=device)

    def dispatch():
        if optimizer is None:
            with torch.inference_mode():
                value = loss(batch)
        else:
            optimizer.zero_grad(set_to_none=True)
            value = loss(batch)
            value.backward()
            optimizer.step()
        done = torch.cuda.Event() if cuda else None
        if done is not None:
            done.record()
        return value.detach(), done

    def wait(running):
        value, done = running
        if done is not None:  # float(value) would wait for the step behind it, too
            done.synchronize()
        return value

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own, about torch
            loss = torch.compile(loss) if compiled else loss
            wait(dispatch())
            wait(dispatch())
    except torch.OutOfMemoryError as error:
        raise ValueError(f"torch has too little memory: {str(error).splitlines()[0]}") from error
    except Exception as error:
        if not compiled:
            raise
        lines = [line for line in str(error).splitlines() if line.strip()]
        raise ValueError(f"torch.compile does not work on this machine: {lines[0]}") from error
    used = torch.cuda.max_memory_allocated() - before if cuda else None
    name = "torch, compiled" if compiled else "torch, eager"
    return Contender(name, dispatch, wait, trained(oracle), used)
