"""Sounds as log-mel spectrograms float32 [time, mel, 1]: decoding and windows.

The recipe of AudioMAE (arXiv 2207.06405) and AST (arXiv 2104.01778): mono, 16 kHz, 128 mel bins of
25 ms every 10 ms, 1024 frames (10.2 seconds). On AudioSet the values have mean -4.2677393 and
standard deviation 4.5689974, and both papers feed `(x - mean) / (2 * std)` to the model.
"""

import functools
import io
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mae_jax.data.bad_examples import Unreadable

RATE = 16000
_EPS = 2.0**-23  # the least energy of Kaldi, the epsilon of float32
# Silence follows a sound that is too short. AudioMAE pads with 0, which as a logarithm is louder
# than the average of AudioSet; its released weights have seen such noise in the last frames.
PADDING = math.log(_EPS)

Sound = str | os.PathLike[str] | bytes | tuple[np.ndarray, float]
Choose = Callable[[int, int], tuple[int, int]]  # (samples, rate) of a sound to (start, count)


def decode(
    sound: Sound, rate: int = RATE, choose: Choose = lambda samples, rate: (0, samples)
) -> np.ndarray:
    """Decode a sound to float32 [samples].

    It is the path of a file, the content of one, or (array [samples] or [samples, channels], rate).
    The result is the mean of the channels, minus its mean over time, resampled to `rate` by a
    polyphase filter (`scipy.signal.resample_poly`). Integers are scaled to [-1, 1]. Only the
    samples that `choose` names are read, as far as they exist. A part has its own mean, and differs
    from the same part of the whole in the 10 samples at either end, where the filter has no
    neighbours. A sound that cannot be read raises `Unreadable`.
    """
    is_array = isinstance(sound, tuple)
    samples, own_rate = _from_array(*sound, choose) if is_array else _from_file(sound, choose)
    if not samples.size:
        raise Unreadable("the sound has no samples here, or fewer than its header says")
    with np.errstate(over="ignore", invalid="ignore"):
        wave = samples.astype(np.float32, copy=False).mean(1)
        if not np.abs(wave).max() < 1e10:
            raise Unreadable("the sound has samples that are not numbers, or beyond 1e10")
    # The mean goes first: the filter would ring where an offset begins and ends.
    wave = wave - wave.mean()
    if own_rate == rate:
        return wave
    from scipy import signal  # the import takes half a second

    return signal.resample_poly(wave, rate, own_rate)


def log_mel(wave: np.ndarray, rate: int = RATE, mels: int = 128) -> np.ndarray:
    """Return Kaldi's log-mel filter bank of `wave` [samples] in [-1, 1]: float32 [frames, mels].

    There are as many frames of 25 ms every 10 ms as fit; a shorter wave is filled up with silence.
    Each frame, minus its mean, is pre-emphasised by .97 and multiplied by a symmetric Hann window.
    Its power spectrum, at the next power of two, is summed in triangles that are even on the mel
    scale from 20 Hz to `rate / 2`; the result is the natural logarithm of at least 2**-23. With 128
    bins at 16 kHz some of the lowest triangles lie between two frequencies and are always empty, as
    in the reference:
    `torchaudio.compliance.kaldi.fbank(wave, htk_compat=True, use_energy=False, dither=0,
    window_type="hanning", num_mel_bins=128, frame_shift=10)`.
    """
    length, step = _frame(rate)
    wave = np.pad(np.asarray(wave, np.float64), (0, max(0, length - len(wave))))
    frames = np.lib.stride_tricks.sliding_window_view(wave, length)[::step]  # [t length]
    frames = frames - frames.mean(-1, keepdims=True)
    before = np.concatenate([frames[:, :1], frames[:, :-1]], -1)
    frames = (frames - 0.97 * before) * np.hanning(length)
    size = 1 << (length - 1).bit_length()
    power = np.abs(np.fft.rfft(frames, size)) ** 2
    return np.log(np.maximum(power @ _bank(size, rate, mels), _EPS)).astype(np.float32)


def train_views(
    sound: Sound, data: Mapping[str, Any], rng: np.random.Generator
) -> Iterator[np.ndarray]:
    """Yield random windows of a sound as float32 [*size, 1], where `data.size` is (frames, mels).

    The window is drawn before it is read, and nothing else is read; a shorter sound is whole and
    followed by PADDING. `data.roll` moves the wave by any number of samples, around its end;
    `data.magnitude` multiplies it by Beta(10, 10) + 1/2: AudioMAE's augmentation for fine-tuning
    (`roll_mag_aug`; its released code counts channels as samples there and so never rolls).
    """
    size, rate = data["size"], data["rate"]
    for _ in range(data["repeats"]):
        wave = _window(sound, size[0], rate, lambda free: int(rng.integers(free + 1)))
        if data["roll"]:
            wave = np.roll(wave, rng.integers(len(wave)))
        if data["magnitude"]:
            wave = wave * (rng.beta(10, 10) + 0.5)
        yield _features(wave, size, rate)


def eval_views(
    sound: Sound, data: Mapping[str, Any], clips: int = 1, crops: int = 1
) -> Iterator[np.ndarray]:
    """Yield `clips` windows of a sound, evenly spread from its start to its end; or the middle.

    A sound shorter than a window is whole in each window, followed by PADDING.
    """
    for share in np.linspace(0, 1, clips) if clips > 1 else [0.5]:
        start = lambda free, share=share: round(free * share)
        wave = _window(sound, data["size"][0], data["rate"], start)
        yield _features(wave, data["size"], data["rate"])


def _window(sound: Sound, frames: int, rate: int, start: Callable[[int], int]) -> np.ndarray:
    """Return the samples of `frames`, or fewer, from `start(number of the other samples)` on."""
    length, step = _frame(rate)
    samples = (frames - 1) * step + length

    def choose(n: int, own_rate: int) -> tuple[int, int]:
        count = -(-samples * own_rate // rate)
        return start(max(0, n - count)), count

    return decode(sound, rate, choose)[:samples]


def _features(wave: np.ndarray, size: Sequence[int], rate: int) -> np.ndarray:
    features = log_mel(wave, rate, size[1])[: size[0]]
    silence = ((0, size[0] - len(features)), (0, 0))
    return np.pad(features, silence, constant_values=PADDING)[..., None]


def _frame(rate: int) -> tuple[int, int]:
    return rate * 25 // 1000, rate // 100  # rounded down like Kaldi's


@functools.cache
def _bank(size: int, rate: int, mels: int) -> np.ndarray:
    """Return Kaldi's mel filters for a spectrum of `size` samples, float64 [size / 2 + 1, mels]."""
    mel = lambda hertz: 1127 * np.log1p(hertz / 700)
    edges = np.linspace(mel(20), mel(rate / 2), mels + 2)
    bins = mel(np.arange(size // 2 + 1) * (rate / size))[:, None]
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    return np.maximum(0, np.minimum(rising, falling))


def _from_array(values: np.ndarray, rate: float, choose: Choose) -> tuple[np.ndarray, int]:
    own_rate = _checked_rate(rate)
    if values.ndim not in (1, 2) or values.ndim == 2 and values.shape[1] > 1024:
        raise Unreadable(f"an array of shape {values.shape} is no [samples] or [samples, channels]")
    if values.dtype.kind != "f" and values.dtype not in (np.uint8, np.int16, np.int32):
        raise Unreadable(f"{values.dtype} values are no sound: give float, uint8, int16 or int32")
    start, count = choose(len(values), own_rate)
    samples = values[start : start + count]
    samples = samples[:, None] if samples.ndim == 1 else samples
    if samples.dtype.kind != "f":
        half = 2.0 ** (8 * samples.itemsize - 1)
        samples = samples / half - (1 if samples.dtype.kind == "u" else 0)
    return samples, own_rate


def _from_file(sound: str | os.PathLike[str] | bytes, choose: Choose) -> tuple[np.ndarray, int]:
    try:
        import soundfile
    except (ImportError, OSError) as error:  # OSError: there is no libsndfile
        why = "reading sound files needs soundfile: pip install 'mae_jax[audio]'"
        raise ImportError(why) from error
    try:
        with soundfile.SoundFile(io.BytesIO(sound) if isinstance(sound, bytes) else sound) as file:
            if file.format == "RAW":  # libsndfile takes any bytes in a file named .au for RAW
                raise Unreadable("not a readable sound: Format not recognised.")
            if file.frames >= 2**36 - 1:  # "unknown" in libsndfile and FLAC's headers
                raise Unreadable("its header does not say how long it is: encode it again")
            own_rate = _checked_rate(file.samplerate)
            start, count = choose(file.frames, own_rate)
            start = file.seek(min(start, file.frames))
            return file.read(min(count, file.frames - start), "float32", always_2d=True), own_rate
    except Unreadable:
        raise
    except Exception as error:  # soundfile's own types, or no memory for what a bad header claims
        reason = getattr(error, "error_string", error)  # without the path
        raise Unreadable(f"not a readable sound: {reason}") from error


def _checked_rate(rate: float) -> int:
    if not 1000 <= rate <= 1_000_000:
        raise Unreadable(f"{rate} samples per second are no sound: 1000 to 1000000 are")
    return int(rate)
