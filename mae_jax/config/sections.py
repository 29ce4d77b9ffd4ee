"""The sections of a config: for each key its type, range, default and meaning.

The text below a key is its documentation, from which `docs/config.md` is generated. A config file
may leave out every key that has a default. Rules that span several keys are in `checks.py`, and
those of the network's geometry in `mae_jax/models/rules.py`.
"""

import functools
import operator
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal, get_args

from annotated_types import Predicate
from pydantic import BaseModel, ConfigDict, Field


def _is_expression(text: str) -> bool:
    try:
        re.compile(text)
    except re.error:
        return False
    return True


# The title of a type is what an error says that a value must be.
Text = Annotated[str, Field(title="a text")]
Regex = Annotated[
    str, Predicate(_is_expression), Field(title="a regular expression over parameter names")
]
Switch = Annotated[bool, Field(title="True or False")]
Integer = Annotated[int, Field(title="a whole number")]
Number = Annotated[int, Field(ge=0, title="a whole number of at least 0")]
Count = Annotated[int, Field(ge=1, title="a whole number of at least 1")]
Positive = Annotated[float, Field(gt=0, title="a number above 0")]
NotNegative = Annotated[float, Field(ge=0, title="a number of at least 0")]
BelowOne = Annotated[float, Field(ge=0, lt=1, title="a number from 0 up to but not 1")]
UpToOne = Annotated[float, Field(gt=0, le=1, title="a number above 0 and up to 1")]
Fraction = Annotated[float, Field(ge=0, le=1, title="a fraction from 0 to 1")]
One = Annotated[Literal[1], Field(title="1")]
# Tuples are not strict: JSON and the command line have lists.
Counts = Annotated[
    tuple[Count, ...],
    Field(
        strict=False, min_length=1, title="a tuple of whole numbers of at least 1, such as (16, 16)"
    ),
]
Range = Annotated[tuple[float, float], Field(strict=False)]
Zoom = Annotated[
    Range,
    Predicate(lambda x: 0.01 <= x[0] <= x[1] <= 100),
    Field(title="(smallest, largest) factor from .01 to 100"),
]
Channels = Annotated[tuple[int, ...], Field(strict=False, min_length=1)]
Statistic = Annotated[
    Literal["auto"] | Annotated[tuple[float, ...], Field(strict=False, min_length=1)],
    Field(title='a tuple with one number for each channel, or "auto"'),
]


class Section(BaseModel, Mapping):
    """A part of a config: immutable, read as an attribute or as a key of a mapping."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )

    def __getitem__(self, key: str) -> Any:
        return self._values()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values())

    def __len__(self) -> int:
        return len(self._values())

    def _values(self) -> dict[str, Any]:
        return vars(self) | (self.model_extra or {})


class Init(Section):
    """The start of a run."""

    checkpoint: Text = ""
    """The checkpoint to start from: whatever `mae_jax.load` reads, such as a work directory, an
    exported file, or a PyTorch or Hugging Face checkpoint. "" starts from random parameters."""
    without: Regex = ""
    """Regular expression over parameter names. A parameter that only the network or only the
    checkpoint has must match it, or the run ends with an error."""
    key: Text = ""
    """Which of several networks in a `.pth` file is read, such as "model_ema". "" reads the trained
    one, not its moving average."""
    prefix: Text = ""
    """Which of several networks in one state dict is read, by the prefix of its names, such as
    "teacher."."""
    adapt: Annotated[
        Literal["", "mean", "repeat", "resize"]
        | Annotated[tuple[Literal["mean", "repeat", "resize"], ...], Field(strict=False)],
        Field(title='"mean", "repeat", "resize", a tuple of two such as ("mean", "resize"), or ""'),
    ] = ""
    """What changes the checkpoint's embedding and the decoder's head for another number of
    `data.channels` ("mean" of the checkpoint's channels, or "repeat" them) or another `model.patch`
    ("resize" by the pseudo-inverse, as FlexiViT). "" refuses checkpoints in which these differ."""
    positions: Literal["interpolate", "compute"] = "interpolate"
    """What learned positions start as if `data.size` is not that of a checkpoint with fixed ones:
    its positions interpolated, as in the reference, or those of the formula."""


class Model(Section):
    """The encoder and its computation."""

    patch: Counts
    """Values along each axis of a patch, such as (16, 16). It divides `data.size`. Half the
    side gives four times as many tokens of a picture."""
    width: Count
    """Size of the encoder's tokens. `heads` divides it."""
    depth: Count
    """Number of the encoder's blocks."""
    heads: Count
    """Number of attention heads of each block of the encoder."""
    channel_groups: Annotated[
        tuple[Channels, ...],
        Field(strict=False, title="a tuple of tuples such as ((0, 1, 2), (3, 4)), or ()"),
    ] = ()
    """Groups of channels that become tokens of their own, as in SatMAE: ((0, 1, 2), (3, 4)) gives
    two tokens for each patch. () puts all channels of a patch into one token."""
    vocab_size: Number = 0
    """Size of the vocabulary of discrete inputs: 256 for bytes, which are predicted with a
    cross-entropy. 0 means that the input is made of real values, such as pixels."""
    learned_positions: Switch = False
    """Train the position embeddings, which start as the fixed sines and cosines."""
    separable_positions: Switch = False
    """Learn one table for the first axis (time) and one for the other axes, and add them."""
    position_formula: Literal["sincos", "interleaved"] = "sincos"
    """The fixed positions, which learned ones start as: "sincos" has channels for each axis, as in
    MAE; "interleaved" numbers the patches in reading order, as in VideoMAE."""
    cls_tokens: Number = 1
    """Number of class tokens: 1 in MAE, 0 in VideoMAE, 8 in Pixio."""
    register_tokens: Number = 0
    """Number of tokens that only the encoder's blocks see (Darcet et al. 2023)."""
    dtype: Literal["float32", "bfloat16", "auto"] = "auto"
    """Precision of the computation; parameters are always float32. "auto" is bfloat16 on
    accelerators and float32 on CPUs. A run keeps the precision that it began with."""
    attention: Literal["auto", "reference", "recompute", "per_sample", "cudnn", "pallas"] = "auto"
    """Implementation of attention, which changes speed and memory. `recompute` keeps no weights
    for the gradient, `per_sample` loops over the batch (CPUs), `cudnn` is for NVIDIA GPUs and
    `pallas` for TPUs. "auto" takes the fastest one for the devices."""
    remat: Literal["none", "products", "inputs"] = "none"
    """What a block keeps for its gradient. "products" keeps the results of matrix products and
    "inputs" only the input; the rest is computed again, which saves memory and costs time."""
    scan: Switch = False
    """Compile one block and loop over it: about half the compilation time, for slower steps."""


class AutoencoderModel(Model):
    """The decoder and the target, of task `pretrain`."""

    decoder_width: Count = 512
    """Size of the decoder's tokens. `decoder_heads` divides it."""
    decoder_depth: Count = 8
    """Number of the decoder's blocks."""
    decoder_heads: Count = 16
    """Number of attention heads of each block of the decoder."""
    decoder: Literal["self", "own_cls", "cross"] = "self"
    """"self" is the decoder of MAE. "own_cls" has a class token of its own in place of the
    encoder's, as MAE-ST. In "cross" mask tokens attend to the visible tokens and not to each other,
    as in CrossMAE, which makes a small `mask.decode` cheap."""
    final_norm: Switch = True
    """End the encoder with a LayerNorm. CrossMAE does not."""
    norm_pix: Annotated[
        bool | Literal["channel", "patch"],
        Field(title="True, False, 'channel' or 'patch'"),
    ] = True
    """Predict patches that are normalised by their own mean and standard deviation. This gives
    better features, and reconstructions that look less good. "channel" normalises each channel of a
    patch alone, as VideoMAE; "patch" differs from True only with `channel_groups`: it normalises
    over all groups, as SatMAE."""
    target_stride: Annotated[
        tuple[Count, ...],
        Field(strict=False, title="a tuple of whole numbers, one for each axis, or ()"),
    ] = ()
    """Step, along each axis of a patch, between the values that are predicted: (2, 1, 1) predicts
    every second frame. It divides `patch`. () predicts all values."""
    target_spread: Switch = False
    """Spread the values of `target_stride` from the first to the last: frames 0, 2, ..., 12, 15 of
    16, as in MAE-ST, and not 0, 2, ..., 12, 14."""


class ClassifierModel(Model):
    """The position embeddings and the head of the encoder, in task `classify` or `regress`."""

    learned_positions: Switch = True
    """Train the position embeddings, which start as the checkpoint's or as sines and cosines."""
    pooling: Literal["mean", "cls", "norm_mean"] = "mean"
    """Input of the head: the mean of the patch tokens and then a LayerNorm ("mean"), the class
    token after the final norm ("cls"), or the mean of the patch tokens after it ("norm_mean")."""
    batch_norm: Switch = False
    """Put a BatchNorm without parameters before the head, as linear probing does."""
    head_std: NotNegative = 2e-5
    """Standard deviation of the head's initial weights. 0 starts with the same score for each
    class, or with the mean of each target."""


Strategy = Literal[
    "random",
    "block",
    "grid",
    "stroke",
    "joint",
    "tube",
    "frame",
    "time",
    "frequency",
    "importance",
]


class Mask(Section):
    """Which patches are masked, in task `pretrain`."""

    ratio: Annotated[float, Field(gt=0, lt=1, title="a number above 0 and below 1")] = 0.75
    """Fraction of the patches that are masked. A larger one makes steps cheaper and the task
    harder."""
    name: Annotated[
        Strategy | Annotated[tuple[Strategy, ...], Field(strict=False, min_length=1)],
        Field(title=f"one of {', '.join(map(repr, get_args(Strategy)))}, or a tuple of some"),
    ] = "random"
    """Strategy: `random` patches, `block` rectangles, `grid` a regular pattern, `stroke` free-form
    brush strokes, `joint` boxes of `side` patches, `importance` patches drawn by their contrast; of
    video also `tube` (the same places in all frames) and `frame`; of audio also `time` and
    `frequency`. The samples of a batch take turns in a tuple of strategies, all with one number of
    masked patches; a name that stands there twice has twice the share."""
    side: Count = 2
    """Side, in patches, of the boxes that `joint` masks together."""
    decode: UpToOne = 1.0
    """Fraction of the masked patches that are predicted. The learning rate is multiplied by it."""


class Optimizer(Section):
    """AdamW with a warm-up and a cosine."""

    base_learning_rate: Positive
    """Peak learning rate for a batch of 256; the used rate is this times `batch_size` / 256."""
    warmup_epochs: NotNegative = 0.0
    """Epochs in which the learning rate rises from 0. They are fewer than `epochs`."""
    b1: BelowOne = 0.9
    """Decay of Adam's first moment."""
    b2: BelowOne = 0.95
    """Decay of Adam's second moment."""
    weight_decay: NotNegative = 0.05
    """Decoupled weight decay, multiplied by the learning rate. Norms and biases have none."""
    clip: NotNegative = 0.0
    """Largest global norm of the gradient; longer gradients are scaled down to it. 0 clips none."""
    ema: BelowOne = 0.0
    """Decay, at each step, of a moving average of the parameters, which is evaluated and exported
    instead of them. It costs 4 bytes a parameter. 0 keeps no average."""
    mu_dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the first moment. "bfloat16" saves 2 bytes a parameter."""
    shard: Switch = False
    """Shard the moments over all devices, as ZeRO-1 does: the same result in less memory."""


class ClassifierOptimizer(Optimizer):
    """AdamW or LARS for fine-tuning and linear probing, in the tasks `classify` and `regress`."""

    name: Literal["adamw", "lars"] = "adamw"
    """The optimiser: "adamw" for fine-tuning, "lars" for linear probes with large batches."""
    b2: BelowOne = 0.999
    """Decay of Adam's second moment."""
    momentum: BelowOne = 0.9
    """Momentum of LARS. AdamW does not use it."""
    final_learning_rate: NotNegative = 0.0
    """Learning rate at the end of the cosine, not scaled by the batch size."""
    layer_decay: UpToOne = 1.0
    """Factor of the learning rate from each layer to the one below it. 1 keeps it the same."""


class TrainingSource(Section):
    """The examples to train on."""

    source: Text
    """Source of the examples: `folder:PATH`, `tfds:NAME`, `array_record:PATH`, `idx:PATH`,
    `arrays:PATH`, `video:PATH`, `frames:PATH`, `audio:PATH`, `ts:PATH`, `text:PATH`, `csv:FILE`,
    `parquet:PATH`, `webdataset:GLOB`, `hf:PATH`, your own `python:MODULE:FACTORY`, or the name of a
    synthetic source such as `photos`."""
    split: Text = "train"
    """The part of the source to train on. Of a table with folds, "not_fold:2" is all but fold 2."""


class Data(Section):
    """Keys of every kind of input."""

    train: TrainingSource
    modality: Literal["image", "video", "audio", "volume", "signal", "text"] = "image"
    """Kind of the input. It decides how examples are read, and which further keys exist."""
    size: Counts
    """Size of the network's input along each axis, a multiple of `model.patch`: (height, width);
    (frames, height, width) of video; (frames, mels) of audio; (length,) of signals; (bytes,) of
    text."""
    channels: Count = 3
    """Number of channels of the input."""
    examples: Number = 0
    """Number of examples to train on: a fixed choice with the same number of each class, as far as
    possible. 0 trains on all."""
    repeats: Count = 1
    """Crops that a batch holds of each decoded example, so that decoding costs that much less.
    `batch_size` counts crops, and is a multiple of it."""
    mean: Statistic = "auto"
    """Mean of each channel, of values in [0, 1] for pictures. "auto" measures it once."""
    std: Statistic = "auto"
    """Standard deviation of each channel. "auto" measures it once."""
    threads: Number = 16
    """Threads of each host that decode and crop. 0 does so in the thread that trains."""
    max_bad_fraction: Fraction = 0.01
    """Fraction of the examples that each host may find unreadable; others take their places. If
    there are more, the run saves its state and ends."""


class Values(Data):
    """How the numbers in files become values, for modality `image`, `volume` or `signal`."""

    bands: Annotated[
        tuple[Number, ...], Field(strict=False, title="a tuple of whole numbers of at least 0")
    ] = ()
    """The bands of a file that are read, in this order: (3, 2, 1) reads three, counted from 0. ()
    reads all. `channels` is their number."""
    channel_axis: Literal["auto", "first", "last"] = "auto"
    """Place of the channels in arrays whose files do not say it. "auto" finds the axis with
    `channels` values, or that many bands; an array in which both ends may be meant is refused."""
    range: Annotated[
        Literal["auto", "data", "dtype"]
        | Annotated[tuple[float, float], Field(strict=False), Predicate(lambda x: x[0] < x[1])],
        Field(title='(low, high) with low < high, "data", "dtype" or "auto"'),
    ] = "auto"
    """The numbers that become 0 and 1, the same for all files: (low, high), the least and the
    greatest number of the data set ("data", measured once), or those of each file's type ("dtype":
    65,535 of uint16 becomes 1, and floats stay). "auto" is "data" if there are pictures of more
    than 8 bits. Pictures of 8 bits are 0 to 255 otherwise, and arrays keep their values."""
    clip: Switch = False
    """Replace numbers beyond `range` by its ends, as a window of CT values does."""
    nodata: Annotated[
        float | Literal["nan", "file", "mask"] | None,
        Field(title='a number, "nan", "file", "mask" or None'),
    ] = None
    """The number that stands for missing values, beside NaN; "nan" for NaN alone; "file" for what
    each file says of itself; "mask" if the last band is a mask that is 0 where values are missing.
    Missing values are neither shown nor learned. None refuses files that have any."""
    foreground: Annotated[
        tuple[float, float] | None,
        Predicate(lambda x: x is None or 0 < x[1] <= 1),
        Field(strict=False, title="(threshold, weight) with 0 < weight <= 1, or None"),
    ] = None
    """(threshold, weight): values up to the threshold, such as the air around a body, count so much
    in the loss of task `pretrain`, and the others 1. The threshold is one of values after `range`,
    as `mean` is. None counts all values alike."""
    noise: NotNegative = 0.0
    """Largest standard deviation of the Gaussian noise that is added to training examples in task
    `pretrain`, for denoising; each has its own, uniform from 0. It is one of values after `range`,
    as `std` is. 0 adds none. As nothing predicts the noise of a masked patch, the best prediction
    is the patch without it."""
    reference_spacing: Annotated[
        tuple[Positive, ...],
        Field(strict=False, title="a tuple of numbers above 0, one for each axis of size, or ()"),
    ] = ()
    """The distance between values at which a position is its index, in the unit of the files, such
    as millimetres or metres. The positions of an input are then its coordinates divided by it, as
    in Scale-MAE: patches of coarse inputs are far apart. () takes the indices of patches."""
    spacing: Annotated[
        tuple[Positive, ...],
        Field(strict=False, title="a tuple of numbers above 0, one for each axis of size, or ()"),
    ] = ()
    """The distance between values along each axis in files that do not say it."""


class Crops(Data):
    """Random crops of pictures, for modality `image` or `video`."""

    crop_scale: Annotated[
        Range,
        Predicate(lambda x: 0 < x[0] <= x[1] <= 1),
        Field(title="(smallest, largest) fraction of the area"),
    ] = (0.2, 1.0)
    """Smallest and largest fraction of a picture's area that a training crop takes."""
    crop_ratio: Annotated[
        Range,
        Predicate(lambda x: 0 < x[0] <= x[1]),
        Field(title="(narrowest, widest) width / height"),
    ] = (3 / 4, 4 / 3)
    """Narrowest and widest ratio of a crop's width to its height, relative to that of `size`."""
    flip: Switch = True
    """Mirror half of the training crops left to right."""
    center_crop: UpToOne = 0.875
    """Fraction of the shorter side that evaluations see: 224 of 256 pixels by default."""


class ImageData(Crops, Values):
    """Pictures, of `size` (height, width)."""

    modality: Literal["image"] = "image"


class VideoData(Crops):
    """Clips, of `size` (frames, height, width). All frames of a clip have the same crop."""

    modality: Literal["video"] = "video"
    stride: Count = 4
    """Step between the frames of a file that make a clip. Short files repeat their last frame."""


class AudioData(Data):
    """Sounds as log-mel spectrograms, of `size` (frames of 10 ms, mel bands)."""

    modality: Literal["audio"] = "audio"
    channels: One = 1
    """Number of channels of the input, which is 1."""
    rate: Annotated[int, Field(ge=1000, title="a whole number of at least 1000")] = 16_000
    """Samples a second; sounds with another rate are resampled."""
    roll: Switch = True
    """Rotate each training example in time by a random amount."""
    magnitude: Switch = False
    """Make each training example louder or softer by a random factor."""


class VolumeData(Values):
    """Volumes and pictures with many channels, as arrays of any number of axes."""

    modality: Literal["volume"] = "volume"
    zoom: Zoom = (0.75, 1.0)
    """A training crop takes `size` times a random factor of this range: above 1 it shows more."""
    flip: Switch = True
    """Mirror half of the training crops along the last axis."""


class SignalData(Values):
    """Signals, of `size` (length,): series, spectra and recordings with channels."""

    modality: Literal["signal"] = "signal"
    zoom: Zoom = (1.0, 1.0)
    """A training window takes `size` times a random factor of this range: above 1 it shows more."""
    time_band: Number | None = Field(default=None, title="a whole number of at least 0, or None")
    """The band that holds the time of each value, in the unit of `reference_spacing`. It is no
    channel, and positions are these times. None means that values are evenly spaced."""


class TextData(Data):
    """Bytes, of `size` (bytes,)."""

    modality: Literal["text"] = "text"
    channels: One = 1
    """Number of channels of the input, which is 1."""


MODALITIES: dict[str, type[Data]] = dict(
    image=ImageData,
    video=VideoData,
    audio=AudioData,
    volume=VolumeData,
    signal=SignalData,
    text=TextData,
)


class Mesh(Section):
    """How the devices share the work. The three numbers multiply to the number of devices."""

    data: Annotated[
        int,
        Predicate(lambda x: x == -1 or x > 0),
        Field(title="-1 (all remaining devices) or above 0"),
    ] = -1
    """Copies of the model, which share the batch. -1 uses all remaining devices."""
    fsdp: Count = 1
    """Devices that share the batch, the parameters and the moments, which saves memory in each."""
    tensor: Count = 1
    """Devices that share the heads and the MLP's width for the same samples. It divides `heads`."""


class Recovery(Section):
    """The faults that a run survives, and those that end the run."""

    max_skipped_updates: Number = 0
    """Updates in a row that are left out because the loss or gradient is not finite. 0 goes back
    to the last checkpoint at the first one. The check costs a tenth to a fifth of a step, by the
    estimate of the TPU compiler."""
    max_rewinds: Number = 2
    """How often a run may go back to its last checkpoint and skip the batches since, without a good
    save in between, before it ends."""
    max_loss_ratio: Annotated[
        float,
        Predicate(lambda x: x == 0 or x > 1),
        Field(title="0 (never) or a factor above 1"),
    ] = 0.0
    """A loss above this factor times its moving average counts as not finite. 0 allows any loss."""
    max_failed_saves: Count = 3
    """Failed saves in a row that end the run."""
    check_determinism: Switch = False
    """Compute the first step twice and require the same bits. It needs memory for three states."""
    stall_timeout: Positive = 600.0
    """Seconds without a step after which the log shows what each thread does."""
    heartbeat_timeout: Annotated[int, Field(ge=5, title="a whole number of at least 5")] = 30
    """Seconds without a sign of life of a process after which the other processes end."""


class Regularize(Section):
    """Augmentation in the tasks `classify` and `regress`. All of it is off by default."""

    drop_path: BelowOne = 0.0
    """Fraction of the samples that skip the last block. It falls linearly to 0 at the first."""
    mixup: NotNegative = 0.0
    """Parameter of the Beta distribution of mixup. 0 mixes none."""
    erase: Fraction = 0.0
    """Fraction of the pictures in which a box is replaced by noise."""
    randaugment: Annotated[float, Field(ge=0, le=10, title="a magnitude from 0 to 10")] = 0.0
    """Magnitude of two random operations on each picture, with a spread of .5. 0 applies none."""


class ClassifierRegularize(Regularize):
    """Further augmentation in task `classify`."""

    cutmix: NotNegative = 0.0
    """Parameter of the Beta distribution of CutMix. With `mixup`, each is used half of the time."""
    label_smoothing: BelowOne = 0.0
    """Fraction of the target that is spread over all classes."""


class Source(Section):
    """The examples of an evaluator, in its sections `train` and `test`."""

    source: Text = "same"
    """As `data.train.source`; "same" is that one. "" leaves the evaluator out."""
    split: Text = "test"
    """The part of the source; in the section `train` it is "train" by default."""


class TrainSource(Source):
    """Examples that the evaluator learns from."""

    split: Text = "train"


EVALUATORS: dict[str, dict[str, type["Evaluator"]]] = dict(pretrain={}, classify={}, regress={})


class Evaluator(Section):
    """Keys of every evaluator."""

    tasks: ClassVar[tuple[str, ...]] = ("pretrain", "classify", "regress")  # of the evaluator
    usual_name: ClassVar[str] = ""  # its metrics have no prefix; "" means the type
    type: Text
    """The kind of the evaluator, see below."""
    every: Number = 0
    """Steps from one evaluation to the next, before which a checkpoint is saved. 0 evaluates at the
    end of the run only."""
    batch_size: Count = 256
    """Examples in a batch over all devices. The result does not depend on it."""

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        for name in get_args(cls.model_fields["type"].annotation):
            for task in cls.tasks:
                EVALUATORS[task][name] = cls


class HeldOutEvaluator(Evaluator):
    """Keys of the evaluators of held-out examples: `reconstruction`, `classification`,
    `regression`, `custom`."""

    source: Text = "same"
    """As `data.train.source`; "same" is that one. "" leaves the evaluator out."""
    split: Text = "test"
    """The part of the source."""
    examples: Number = 0
    """Number of examples, at most. 0 takes all."""


class Reconstruction(HeldOutEvaluator):
    """The loss on masked patches of held-out examples, with a picture of reconstructions."""

    tasks = ("pretrain",)
    type: Literal["reconstruction"]
    examples: Number = 10_000
    """Number of examples for the loss, at most. 0 takes all."""
    pictures: Count = 8
    """Number of examples in the picture."""


class ViewsEvaluator(HeldOutEvaluator):
    """Keys of the evaluators of predictions: `classification` and `regression`."""

    clips: Count = 1
    """Views along the time of a video, a sound or a signal, whose predictions are averaged."""
    crops: Annotated[Literal[1, 3], Field(title="1 or 3")] = 1
    """Crops of each clip of a video, whose predictions are averaged: 1 or 3."""


class Classification(ViewsEvaluator):
    """Accuracy of a classifier on held-out examples, or mean average precision if `loss` is
    "binary"."""

    tasks = ("classify",)
    type: Literal["classification"]


class Regression(ViewsEvaluator):
    """R2, mean absolute error and root mean squared error of a regressor on held-out examples."""

    tasks = ("regress",)
    type: Literal["regression"]


class FeatureEvaluator(Evaluator):
    """Keys of the evaluators of frozen features: `knn` and `linear_probe`."""

    train: TrainSource = TrainSource()
    """Labelled examples that the evaluator learns from."""
    test: Source = Source()
    """Labelled examples that are predicted."""
    examples: Number = 20_000
    """Number of examples of each source, at most. 0 takes all."""
    block: Integer = -1
    """The block whose tokens are the feature, counted from 0. -1 is the last one."""
    pooling: Literal["mean", "cls", "both"] = "mean"
    """The mean of the patch tokens, the class token, or both side by side."""
    norm: Switch = True
    """Take the feature after the encoder's norm, which is applied to the tokens of any block."""
    standardize: Switch = True
    """Give each number of the feature mean 0 and deviation 1 on the examples of `train`."""


class Knn(FeatureEvaluator):
    """Accuracy of nearest neighbours on frozen features; mean average precision if an example may
    have several classes, and R2 and mean absolute error if its labels are numbers."""

    type: Literal["knn"]
    k: Annotated[
        Count | Counts,
        Predicate(lambda k: isinstance(k, int) or len(set(k)) == len(k)),
        Field(title="a whole number of at least 1, or a tuple of different ones"),
    ] = 20
    """Number of neighbours that vote. Several numbers give a metric each."""


class LinearProbe(FeatureEvaluator):
    """Accuracy of a linear classifier on frozen features; mean average precision if an example may
    have several classes, and R2 and mean absolute error of a ridge regression if its labels are
    numbers."""

    usual_name = "linear"
    type: Literal["linear_probe"]
    solver: Literal["auto", "sklearn", "lars"] = "auto"
    """Of classes: "sklearn" is logistic regression on the CPU, "lars" trains on the devices. "auto"
    takes "sklearn", which then needs minutes, if examples times classes are at most two million."""


class Sweep(Evaluator):
    """The metric of `knn` for every block, pooling and norm, on a fifth of the training data."""

    type: Literal["sweep"]
    train: TrainSource = TrainSource()
    """Labelled examples, of which a fifth is classified by the others."""
    examples: Number = 20_000
    """Number of examples, at most. 0 takes all."""
    seed: Number = 0
    """Seed of the choice of the fifth."""


class CustomEvaluator(HeldOutEvaluator):
    """An evaluator of your own. All further keys of its section are its own options."""

    model_config = ConfigDict(extra="allow")
    type: Literal["custom"]
    evaluator: Text
    """`MODULE:CLASS` that Python can import, such as "my_evaluators:Brightness"."""


def _one_of(types: Mapping[str, type[Evaluator]]) -> Any:
    union = functools.reduce(operator.or_, types.values())
    return Annotated[union, Field(discriminator="type")]


class Config(Section):
    """Keys of every task."""

    task: Literal["pretrain", "classify", "regress"]
    """The training of a masked autoencoder, or the fine-tuning or probing of its encoder to predict
    classes or numbers."""
    seed: Annotated[int, Field(ge=0, lt=2**32, title="a whole number from 0 up to 2**32")] = 0
    """Seed of the initial parameters, the order of the examples, the crops and the masks."""
    init: Init = Init()
    epochs: Positive
    """How often each training example is seen. Fractions are allowed."""
    batch_size: Count
    """Examples in a step over all devices. The learning rate scales with it."""
    accumulation: Count = 1
    """Number of parts of a batch that a step computes one after the other: the same result in less
    memory. It divides `batch_size`."""
    data: Annotated[
        ImageData | VideoData | AudioData | VolumeData | SignalData | TextData,
        Field(discriminator="modality"),
    ]
    """The inputs."""
    mesh: Mesh = Mesh()
    log_every: Count = 50
    """Steps from one record of the metrics to the next."""
    save_every: Count = 1000
    """Steps from one checkpoint to the next. A fault costs at most that many steps. A checkpoint is
    also saved before each evaluation, which may then be interrupted."""
    keep: Count = 3
    """Number of the newest checkpoints that are kept."""
    recovery: Recovery = Recovery()


class Pretrain(Config):
    """Masked pre-training."""

    task: Literal["pretrain"]
    model: AutoencoderModel
    mask: Mask = Mask()
    optimizer: Optimizer
    evaluators: dict[str, _one_of(EVALUATORS["pretrain"])] = {}  # pyright: ignore
    """Evaluations during the run and at its end, by names of your choice."""


class FineTuning(Config):
    """Fine-tuning, partial fine-tuning and linear probing, in task `classify` or `regress`."""

    model: ClassifierModel
    trainable: Regex = ".*"
    """Regular expression over the names of the parameters that are trained; others are frozen."""
    optimizer: ClassifierOptimizer


class Classify(FineTuning):
    """Prediction of the classes of an example."""

    task: Literal["classify"]
    loss: Literal["softmax", "binary"] = "softmax"
    """Cross-entropy over the classes, or one for each class if an example may have several."""
    class_weights: Annotated[
        Literal["balanced"] | Annotated[tuple[Positive, ...], Field(strict=False)],
        Field(title='"balanced", a tuple with a number above 0 for each class, or ()'),
    ] = ()
    """Weights in the training loss; evaluations have none. With loss "softmax": a weight for the
    examples of each class, by which the mean over the batch is weighted; "balanced" is n /
    (classes * n of the class). With loss "binary": a weight of examples with the class relative to
    those without; "balanced" is their inverse ratio. () weighs all alike."""
    regularize: ClassifierRegularize = ClassifierRegularize()
    evaluators: dict[str, _one_of(EVALUATORS["classify"])] = {}  # pyright: ignore
    """Evaluations during the run and at its end, by names of your choice."""


class Regress(FineTuning):
    """Prediction of one number or several, which are standardised by their mean and deviation in
    the training examples. Mixup mixes the numbers as well."""

    task: Literal["regress"]
    loss: Literal["l2", "l1", "huber"] = "l2"
    """Loss of a standardised error: its square, its absolute value, or half of its square up to
    `huber_delta` and linear beyond."""
    huber_delta: Positive = 1.0
    """Error, in standard deviations, from which on the Huber loss is linear. Others do not use
    it."""
    regularize: Regularize = Regularize()
    evaluators: dict[str, _one_of(EVALUATORS["regress"])] = {}  # pyright: ignore
    """Evaluations during the run and at its end, by names of your choice."""


TASKS: dict[str, type[Config]] = dict(pretrain=Pretrain, classify=Classify, regress=Regress)
# The keys that may change when a run continues: those of speed, memory, recovery and evaluation.
MAY_CHANGE = r"(mesh|recovery)\..*|model\.(attention|remat|scan)|optimizer\.shard|accumulation"
MAY_CHANGE += r"|data\.(threads|max_bad_fraction)|(log|save)_every|keep|evaluators\..*"
