"""What a file for other runtimes computes: a function of raw arrays, and a description of it."""

from collections.abc import Callable, Sequence
from pathlib import PurePath
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import export

import mae_jax
from mae_jax.evaluators import features
from mae_jax.exchange import raw_inputs
from mae_jax.exchange.raw_inputs import RawInputs
from mae_jax.models import build, masking
from mae_jax.weights import load
from mae_jax.weights.checkpoint_info import CheckpointInfo

# Every runtime has float32, and attention in plain operations.
PORTABLE = dict(dtype="float32", attention="reference")
INSTALL = "pip install 'mae_jax[export]'"
Arrays = dict[str, jax.ShapeDtypeStruct]  # by name; the first size is a symbolic batch size


class Computation(NamedTuple):
    """A function of parameters and raw arrays, and what a user of the file must know of it."""

    function: Callable[..., dict[str, jax.Array]]  # params, *inputs -> outputs
    params: dict
    inputs: Arrays
    texts: dict[str, str]  # what each input and output is
    metadata: dict[str, Any]  # plain values

    @property
    def outputs(self) -> Arrays:
        return jax.eval_shape(self.function, self.params, *self.inputs.values())

    def description(self) -> dict[str, Any]:
        """Return the metadata with the dtype, shape and meaning of each input and output."""

        def described(arrays: Arrays) -> dict[str, Any]:
            return {
                name: {
                    "dtype": str(x.dtype),
                    "shape": ["batch", *x.shape[1:]],
                    "meaning": self.texts[name],
                }
                for name, x in arrays.items()
            }

        arrays = {"inputs": described(self.inputs), "outputs": described(self.outputs)}
        return self.metadata | arrays


class _Subject(NamedTuple):
    """A model, what is known of it, and how its raw inputs look."""

    model: Any
    info: CheckpointInfo
    raw: RawInputs
    pooling: str
    inputs: Arrays


def make(
    checkpoint: str,
    what: str = "",
    *,
    size: Sequence[int] | None = None,
    pooling: str = "",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    **options: Any,
) -> Computation:
    """Return a computation of a checkpoint's model, in float32 and for any batch size.

    Args:
      what: "encode" (tokens and a pooled feature; the default without classes), "predict" (logits
        and probabilities, or numbers in their own units; the default of a classifier and of a
        regressor) or "reconstruct".
      pooling: of the feature, as in evaluations: "mean", "cls" or "both".
      mean, std: per channel, of values in [0, 1] if they are bytes; by default the checkpoint's.
      checkpoint, size, options: as in `load.load`.

    Raises:
      ValueError: the checkpoint cannot be read or has no such output, or the size is unknown.
    """
    info = load.find(checkpoint, size=size, **options)
    what = what or ("predict" if info.fields.get("classes") else "encode")
    size = tuple(size or info.size or ())
    if not size:
        raise ValueError(f"{info.path} does not say of which size its inputs are: give --size=H,W")
    if pooling and what != "encode":
        raise ValueError(f"--pooling={pooling} is for --what=encode: leave it out with {what}")
    params = load.parameters(info, size=size)
    info = info._replace(size=size, fields=info.fields | PORTABLE)
    raw = raw_inputs.of(info, mean, std)
    (batch,) = export.symbolic_shape("b")
    inputs = {"inputs": jax.ShapeDtypeStruct((batch, *size, info.channels), raw.dtype)}
    subject = _Subject(info.model, info, raw, pooling, inputs)
    function, more_inputs, texts, metadata = WHAT[what](subject)
    known = dict(
        mae_jax=mae_jax.__version__,
        checkpoint=PurePath(info.path).name,
        what=what,
        size=size,
        channels=info.channels,
        patch=info.fields["patch"],
        vocab_size=info.fields.get("vocab_size") or None,
        classes=info.classes,
        targets=info.targets and info.targets.names,
        mean=raw.mean or None,
        std=raw.std or None,
    )
    texts = {"inputs": str(raw), **texts}
    return Computation(function, params, inputs | more_inputs, texts, known | metadata)


def _encode(x: _Subject):
    model, is_classifier = x.model, x.info.kind == "Classifier"
    own = "cls" if is_classifier and model.pooling == "cls" else "mean"
    has_norm = model.encoder.final_norm or (is_classifier and model.pooling == "mean")
    feature = features.Feature(pooling=x.pooling or own, norm=has_norm)

    def function(params, inputs):
        values, present, _ = x.raw.split(inputs)
        mask = None if present is None else masking.whole(model.present(present))
        tokens, maps = model.apply({"params": params}, values, mask, method="encode")
        return {"tokens": tokens, "feature": features.pool(model, params, maps, feature, mask)}

    norm = "after the final norm" if model.encoder.final_norm else "without a final norm"
    texts = {
        "tokens": f"{model.cls_tokens} class token(s), then the patches row by row, {norm}",
        "feature": str(feature),
    }
    return function, {}, texts, {"grid": model.grid(x.info.size), "cls_tokens": model.cls_tokens}


def _predict(x: _Subject):
    if not x.info.fields.get("classes"):
        raise ValueError(f"{x.info.path} has no classes to predict: use --what=encode")
    if x.info.targets:
        return _predict_numbers(x, x.info.targets.names)
    names = f"{len(x.info.classes)} names" if x.info.classes else "no names"
    several = (x.info.config or {}).get("loss") == "binary"
    probability = jax.nn.sigmoid if several else jax.nn.softmax

    def function(params, inputs):
        values, present, _ = x.raw.split(inputs)
        logits = x.model.apply({"params": params}, values, present=present)
        return {"logits": logits, "probabilities": probability(logits)}

    texts = {
        "logits": f"a number for each class, of which the checkpoint knows {names}",
        "probabilities": "of each class alone" if several else "of the classes; their sum is 1",
    }
    return function, {}, texts, {}


def _predict_numbers(x: _Subject, names: Sequence[str]):
    def function(params, inputs):
        values, present, _ = x.raw.split(inputs)
        return {"numbers": x.model.apply({"params": params}, values, present=present)}

    return function, {}, {"numbers": f"predictions of {', '.join(names)}"}, {}


def _reconstruct(x: _Subject):
    if x.info.kind != "MaskedAutoencoder":
        raise ValueError(f"{x.info.path} has no decoder to reconstruct with: use --what=encode")
    model, config = x.model, (x.info.config or {}).get("mask", {})
    sampler = build.mask_sampler({"ratio": 0.75, **config}, model, x.info.size)

    def function(params, inputs, noise):
        values, present, weight = x.raw.split(inputs)
        tokens = None if present is None else model.present(present)
        mask = masking.from_scores(noise, sampler.keep, tokens)
        prediction = model.apply({"params": params}, values, mask, weight).prediction
        filled = model.target.to_inputs(prediction, values, mask, weight)
        return {"reconstruction": x.raw.restore(filled), "mask": masking.masked_map(mask)}

    (batch, *_) = x.inputs["inputs"].shape
    noise = {"noise": jax.ShapeDtypeStruct((batch, sampler.n), jnp.float32)}
    assumed = "" if "ratio" in config else " (a mask ratio of .75 is assumed)"
    texts = {
        "noise": f"a score for each patch: the {sampler.keep} smallest are visible{assumed}; "
        "uniform random numbers give a random mask",
        "reconstruction": "the inputs with predictions for the masked patches, as floats, not "
        "clipped",
        "mask": "1 for a masked patch, 0 for a visible one",
    }
    return function, noise, texts, {"grid": model.grid(x.info.size), "visible": sampler.keep}


WHAT = {"encode": _encode, "predict": _predict, "reconstruct": _reconstruct}
