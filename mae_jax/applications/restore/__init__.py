"""Restoration: pictures whose missing or noisy values a masked autoencoder predicts."""

# ruff: noqa: F401
from mae_jax.applications.restore.denoising import Denoiser, denoise
from mae_jax.applications.restore.inpainting import Inpainter, inpaint
