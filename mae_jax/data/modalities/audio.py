"""Sounds as log-mel spectrograms float32 [time, mel, 1]: files, decoding, windows.

The recipe of AudioMAE (arXiv 2207.06405) and AST (arXiv 2104.01778): mono, 16 kHz, 128 mel bins of
25 ms every 10 ms, 1024 frames (10.2 seconds). On AudioSet these have mean -4.2677393 and standard
deviation 4.5689974, and both papers feed `(x - mean) / (2 * std)` to the model.
"""

import csv
import functools
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from mae_jax.data.sources import folders
from mae_jax.data.sources.folders import Folder
from mae_jax.data.unreadable import Unreadable

EXTENSIONS = ("wav", "flac", "ogg", "aiff", "aif", "mp3", "au")
RATE = 16000
_EPS = 2.0**-23  # Kaldi's floor of an energy, the epsilon of float32
# What follows a sound that is too short: silence. AudioMAE pads with 0, which in logarithms is a
# noise louder than the average of AudioSet; its released weights have seen that in the last frames.
PADDING = math.log(_EPS)

Sound = str | os.PathLike[str] | tuple[np.ndarray, float]
Part = Callable[[int, int], tuple[int, int]]  # (samples, rate) of a sound to (start, count)


@dataclass(frozen=True)
class Sounds(Folder):
    """Sound files; a label is a class, or a tuple of classes."""

    def __getitem__(self, i: int) -> dict[str, Any]:
        label: Any = self.labels[i]
        if isinstance(label, tuple):
            label = np.isin(np.arange(len(self.classes)), label).astype(np.uint8)
        return {"image": str(self.root / self.files[i]), "label": label}


def files(path: str, split: str) -> Sounds:
    """Sound files under `path`: `{"image": path of the file, "label": ...}`.

    Splits and classes are those of `folders.folder`, unless there is a `labels.csv` in `path`. That
    names files relative to `path` and their classes; sounds that it leaves out do not count. Its
    first line decides: after `file,label` each sound has one class, or none (-1) where the place is
    empty, and "label" is an int; after `file,labels` it has any number of them, as in `dog;rain`,
    and "label" is uint8 [classes] with a 1 for each.

    Raises:
      FileNotFoundError: no such folder, no sounds in it, or not those that `labels.csv` names.
      ValueError: unknown split, a split without sounds, or a `labels.csv` of another form.
    """
    spec, table = f"audio:{path}", Path(path).expanduser() / "labels.csv"
    listed = functools.partial(
        folders.listed, path, extensions=EXTENSIONS, spec=spec, noun="sounds"
    )
    root, found, labels, classes = listed(split)
    if not table.is_file():
        return Sounds(root, found, labels, classes)
    named, many = _read_labels(table)
    if missing := sorted(named.keys() - set(listed("all")[1])):
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise FileNotFoundError(
            f"data {spec!r}: labels.csv names {missing[0]!r}{more}, but there is no such sound "
            "file: correct the name or drop its line"
        )
    found = tuple(file for file in found if file in named)
    if not found:
        raise ValueError(f"data {spec!r}: labels.csv names no sounds of split {split!r}: use 'all'")
    classes = tuple(sorted({name for names in named.values() for name in names}))
    number = {name: label for label, name in enumerate(classes)}
    rows = [tuple(number[name] for name in named[file]) for file in found]
    return Sounds(root, found, tuple(rows if many else (r[0] if r else -1 for r in rows)), classes)


def _read_labels(path: Path) -> tuple[dict[str, list[str]], bool]:
    """The classes of each file in a `labels.csv`, and whether a file may have many."""
    # a byte-order mark is what Excel writes; file names need not be UTF-8
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as lines:
        reader = csv.reader(lines, skipinitialspace=True)
        header = [name.strip() for name in next(reader, [])]
        if header not in (["file", "label"], ["file", "labels"]):
            raise ValueError(
                f"{str(path)!r} starts with {','.join(header)!r}: "
                "write 'file,label' (one class each) or 'file,labels' (any number, a;b;c)"
            )
        many, table = header[1] == "labels", {}
        for row in filter(None, reader):
            if len(row) != 2:
                raise ValueError(
                    f"{str(path)!r} has {len(row)} columns instead of 2 in line "
                    f"{reader.line_num}: put names with a comma in double quotes"
                )
            file = PurePosixPath(row[0].strip()).as_posix()  # without a leading ./
            if file in table:
                raise ValueError(f"{str(path)!r} names {file!r} twice: join its lines")
            names = row[1].split(";") if many else row[1:]
            table[file] = [name.strip() for name in names if name.strip()]
    return table, many


def decode(
    sound: Sound, rate: int = RATE, start: float = 0.0, seconds: float | None = None
) -> np.ndarray:
    """A sound file, or (array [samples] or [samples, channels], its rate), to float32 [samples].

    The mean of the channels, less the mean over time, resampled to `rate` by a polyphase filter
    (`scipy.signal.resample_poly`). Integers are scaled to [-1, 1]. Only the `seconds` from `start`
    on are read, as far as there are any; a part has its own mean, and differs from that of the
    whole in the 10 samples at either end, where the filter sees no neighbours.

    Raises:
      Unreadable: not a readable sound, or no samples.
      ImportError: a file, but no soundfile.
    """
    stop = math.inf if seconds is None else seconds
    return _decode(sound, rate, lambda n, own: (round(start * own), math.ceil(min(n, stop * own))))


def log_mel(wave: np.ndarray, rate: int = RATE, mels: int = 128) -> np.ndarray:
    """Kaldi's filter bank of `wave` [samples] in [-1, 1]: float32 [frames, mels].

    Frames of 25 ms every 10 ms, as many as fit (less than one is filled up with silence); each less
    its mean, pre-emphasised by .97, under a symmetric Hann window; its power spectrum at the next
    power of two, in triangles that are even on the mel scale from 20 Hz to `rate / 2`; the natural
    logarithm of at least 2**-23. With 128 bins at 16 kHz some of the lowest triangles lie between
    two frequencies and are always empty, as in the reference:
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


def train(
    sound: Sound,
    rng: np.random.Generator,
    *,
    size: tuple[int, int],
    rate: int = RATE,
    roll: bool = True,
    magnitude: bool = True,
) -> np.ndarray:
    """A random window of a sound as float32 [*size, 1], where `size` is (frames, mels).

    The window is drawn in the file and read alone; a shorter sound is whole and followed by
    PADDING. `roll` moves the wave by any number of samples, around its end; `magnitude` multiplies
    it by Beta(10, 10) + 1/2: AudioMAE's augmentation for fine-tuning (`roll_mag_aug`; its released
    code counts channels for samples there and so never rolls).

    Raises:
      Unreadable, ImportError: as `decode`.
    """
    wave = _window(sound, size[0], rate, lambda free: int(rng.integers(free + 1)))
    if roll:
        wave = np.roll(wave, rng.integers(len(wave)))
    if magnitude:
        wave = wave * (rng.beta(10, 10) + 0.5)
    return _features(wave, size, rate)


def test(sound: Sound, *, size: tuple[int, int], rate: int = RATE, clips: int = 1) -> np.ndarray:
    """Windows of a sound from its start to its end, evenly spread: float32 [clips, *size, 1].

    One is from the middle. A sound that is shorter is whole in each, followed by PADDING.

    Raises:
      Unreadable, ImportError: as `decode`.
    """
    shares = np.linspace(0, 1, clips) if clips > 1 else [0.5]
    starts = [lambda free, share=share: round(free * share) for share in shares]
    waves = (_window(sound, size[0], rate, start) for start in starts)
    return np.stack([_features(wave, size, rate) for wave in waves])


test.__test__ = False  # pytest would collect it in every module that imports it


def _window(sound: Sound, frames: int, rate: int, start: Callable[[int], int]) -> np.ndarray:
    """The samples [<= n] that `frames` need, from `start(how many more there are)` on."""
    length, step = _frame(rate)
    samples = (frames - 1) * step + length

    def part(n: int, own: int) -> tuple[int, int]:
        count = -(-samples * own // rate)
        return start(max(0, n - count)), count

    return _decode(sound, rate, part)[:samples]


def _features(wave: np.ndarray, size: tuple[int, int], rate: int) -> np.ndarray:
    features = log_mel(wave, rate, size[1])[: size[0]]
    after = ((0, size[0] - len(features)), (0, 0))
    return np.pad(features, after, constant_values=PADDING)[..., None]


def _frame(rate: int) -> tuple[int, int]:
    return rate * 25 // 1000, rate // 100  # cut like Kaldi's


@functools.cache
def _bank(size: int, rate: int, mels: int) -> np.ndarray:
    """Kaldi's mel filters for a spectrum of `size` samples: float64 [size / 2 + 1, mels]."""
    mel = lambda hertz: 1127 * np.log1p(hertz / 700)
    edges = np.linspace(mel(20), mel(rate / 2), mels + 2)
    at = mel(np.arange(size // 2 + 1) * (rate / size))[:, None]
    rising = (at - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - at) / (edges[2:] - edges[1:-1])
    return np.maximum(0, np.minimum(rising, falling))


def _decode(sound: Sound, rate: int, part: Part) -> np.ndarray:
    if isinstance(sound, tuple):
        samples, own = _from_array(*sound, part)
    else:
        samples, own = _from_file(sound, part)  # [n channels]
    if not samples.size:
        raise Unreadable("the sound has no samples here, or fewer than its header says")
    with np.errstate(over="ignore", invalid="ignore"):
        wave = samples.astype(np.float32, copy=False).mean(1)
        if not np.abs(wave).max() < 1e10:
            raise Unreadable("the sound has samples that are not numbers, or beyond 1e10")
    wave = wave - wave.mean()  # first: the filter would ring where an offset begins and ends
    if own == rate:
        return wave
    from scipy import signal  # here: it takes half a second

    return signal.resample_poly(wave, rate, own)


def _from_array(values: np.ndarray, rate: float, part: Part) -> tuple[np.ndarray, int]:
    if values.ndim not in (1, 2) or values.ndim == 2 and values.shape[1] > 1024:
        raise Unreadable(f"an array of shape {values.shape} is no [samples] or [samples, channels]")
    if values.dtype.kind != "f" and values.dtype not in (np.uint8, np.int16, np.int32):
        raise Unreadable(
            f"an array of {values.dtype} is no sound: give float, uint8, int16 or int32"
        )
    own = _check_rate(rate)
    start, count = part(len(values), own)
    samples = values[start : start + count]
    if samples.dtype.kind != "f":
        half = 2.0 ** (8 * samples.itemsize - 1)
        samples = samples / half - (samples.dtype.kind == "u")
    return samples if samples.ndim == 2 else samples[:, None], own


def _from_file(path: str | os.PathLike[str], part: Part) -> tuple[np.ndarray, int]:
    try:
        import soundfile
    except (ImportError, OSError) as error:  # OSError: there is no libsndfile
        raise ImportError(
            "reading sound files needs soundfile: pip install 'mae_jax[audio]'"
        ) from error
    try:
        with soundfile.SoundFile(path) as file:
            if file.format == "RAW":  # what libsndfile makes of any bytes in a file named .au
                raise Unreadable("not a readable sound: Format not recognised.")
            if file.frames >= 2**36 - 1:  # what libsndfile and FLAC's headers say for "unknown"
                raise Unreadable("its header does not say how long it is: encode it again")
            own = _check_rate(file.samplerate)
            start, count = part(file.frames, own)
            start = file.seek(min(start, file.frames))
            return file.read(min(count, file.frames - start), "float32", always_2d=True), own
    except Unreadable:
        raise
    except Exception as error:  # soundfile's own kinds, and memory for what a bad header promises
        reason = getattr(error, "error_string", error)  # without the path
        raise Unreadable(f"not a readable sound: {reason}") from error


def _check_rate(rate: float) -> int:
    if not 1000 <= rate <= 1_000_000:
        raise Unreadable(f"{rate} samples per second are no sound: 1000 to 1000000 are")
    return int(rate)
