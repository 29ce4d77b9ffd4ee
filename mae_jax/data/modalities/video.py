"""Clips of videos as uint8 arrays [t, h, w, c]: from files, or from folders of frames."""

import contextlib
import functools
import itertools
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mae_jax.data.image_io import crop as cropping
from mae_jax.data.image_io import decode
from mae_jax.data.sources import folders
from mae_jax.data.sources.folders import Folder
from mae_jax.data.unreadable import Unreadable

EXTENSIONS = ("mp4", "m4v", "mov", "mkv", "webm", "avi", "mpg", "mpeg", "ogv", "gif")

_MOST = 2**26  # pixels of a frame, of which decoders keep several

# the path of a video, the paths of its frames, or uint8 [frames, h, w] or [frames, h, w, c]
Clip = str | tuple[str, ...] | np.ndarray


def files(path: str, split: str) -> Folder:
    """Video files under `path`, with the splits and classes of `folders.folder`.

    `source[i]["image"]` is the path of the file: `train` and `test` read it.

    Raises:
      ImportError: PyAV is not there.
      FileNotFoundError, ValueError: as `folders.folder`.
    """
    _av()
    return Folder(*folders.listed(path, split, EXTENSIONS, f"video:{path}", "videos"), str)


def frames(path: str, split: str) -> Folder:
    """Folders of frames under `path`, with the splits and classes of `folders.folder`.

    A folder below `path` that holds pictures itself is one clip, and stands where `folders.folder`
    has a file. `source[i]["image"]` is the paths of its pictures in natural order: frame2 comes
    before frame10.

    Raises:
      FileNotFoundError, ValueError: as `folders.folder`.
    """
    extensions, noun = folders.EXTENSIONS, "folders of frames"
    return Folder(
        *folders.listed(path, split, extensions, f"frames:{path}", noun, _folders), _in_order
    )


def train(
    clip: Clip,
    rng: np.random.Generator,
    *,
    size: tuple[int, int, int],
    channels: int,
    stride: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    repeats: int = 1,
) -> np.ndarray:
    """Random parts of a video, uint8 [repeats, *size, channels]; `size` is (t, h, w).

    Each has t frames, `stride` frames apart, from a start uniform over those that fit, and one
    `images.random_resized_crop` for all of its frames. A video that is too short repeats its last
    frame. All are cut from one decoding: that is the repeated sampling of Feichtenhofer et al. 2022
    (arXiv 2205.09113; they use size (16, 224, 224), stride 4, scale (.5, 1) and 4 repeats).

    Raises:
      Unreadable: no readable video, or channels that do not fit.
    """
    t, *area = size
    seeds = rng.integers(2**63, size=repeats)

    def choose(count: int) -> np.ndarray:
        starts = rng.integers(max(1, count - (t - 1) * stride), size=repeats)
        return starts[:, None] + stride * np.arange(t)

    def crop(frame: np.ndarray, row: int) -> np.ndarray:
        again = np.random.default_rng(seeds[row])  # draws the same box for every frame
        return cropping.random_resized_crop(frame, (area[0], area[1]), scale, ratio, again)

    return _cut(clip, choose, crop, size, channels)


def test(
    clip: Clip,
    *,
    size: tuple[int, int, int],
    channels: int,
    stride: int,
    share: float,
    clips: int = 1,
    crops: int = 1,
) -> np.ndarray:
    """Evenly spread parts of a video, uint8 [clips * crops, *size, channels]; `size` is (t, h, w).

    `clips` parts as those of `train` start evenly spread from the first to the last place that
    fits, one in the middle. Of each, crops as `images.center_crop` takes it lie evenly spread from
    end to end of the longer side, one in the middle; the crops of a clip are neighbours.

    Raises:
      Unreadable: no readable video, or channels that do not fit.
    """
    t, *area = size

    def choose(count: int) -> np.ndarray:
        starts = np.rint(_spread(clips) * max(0, count - 1 - (t - 1) * stride)).astype(int)
        return np.repeat(starts, crops)[:, None] + stride * np.arange(t)

    def crop(frame: np.ndarray, row: int) -> np.ndarray:
        height, width = frame.shape[:2]
        along = _spread(crops)[row % crops]
        wide = width * area[0] >= height * area[1]
        return cropping.center_crop(
            frame, (area[0], area[1]), share, (0.5, along) if wide else (along, 0.5)
        )

    return _cut(clip, choose, crop, size, channels)


test.__test__ = False  # pytest would collect it in every module that imports it


def _spread(n: int) -> np.ndarray:
    return np.linspace(0, 1, n) if n > 1 else np.full(n, 0.5)


def _cut(
    clip: Clip,
    choose: Callable[[int], np.ndarray],
    crop: Callable[[np.ndarray, int], np.ndarray],
    size: tuple[int, int, int],
    channels: int,
) -> np.ndarray:
    """`crop(frame, row)` of the frames `choose(count)` [rows t], each frame decoded once."""
    with _opened(clip, channels) as (count, read):
        if not count:
            raise Unreadable("the video has no frames")
        index = np.minimum(choose(count), count - 1)
        needed = np.unique(index)
        cut = np.empty((len(index), *size, channels), np.uint8)
        shape = None
        for k, frame in zip(needed, read(needed), strict=True):
            shape = shape or frame.shape
            if frame.shape != shape:
                raise Unreadable(f"the frames differ in shape: {shape} and {frame.shape}")
            # cropped as they come: few frames of full size are in memory
            for row in np.flatnonzero((index == k).any(1)).tolist():
                cut[row, index[row] == k] = crop(frame, row)
    return cut


@contextlib.contextmanager
def _opened(
    clip: Clip, channels: int
) -> Iterator[tuple[int, Callable[[np.ndarray], Iterable[np.ndarray]]]]:
    """The number of frames, and what reads those of ascending numbers as [h, w, channels]."""
    if isinstance(clip, str):
        if channels not in (1, 3):
            raise Unreadable(f"video files give 1 or 3 channels, not {channels}: use arrays")
        with _video(clip) as (count, read):
            yield count, lambda needed: (decode.decode(frame, channels) for frame in read(needed))
    elif isinstance(clip, tuple):
        yield len(clip), lambda needed: (_picture(clip[k], channels) for k in needed)
    elif clip.dtype == np.uint8 and clip.ndim in (3, 4):
        yield len(clip), lambda needed: (decode.decode(clip[k], channels) for k in needed)
    else:
        raise Unreadable(
            f"an array of {clip.dtype} {clip.shape} is no video: "
            "give uint8 [frames, h, w] or [frames, h, w, c]"
        )


def _picture(path: str, channels: int) -> np.ndarray:
    try:
        return decode.decode(Path(path).read_bytes(), channels)
    except (Unreadable, OSError) as error:
        raise Unreadable(f"frame {os.path.basename(path)!r}: {error}") from error


def _av() -> Any:
    try:
        import av
    except ImportError as error:
        raise ImportError("reading video files needs PyAV: pip install 'mae_jax[video]'") from error
    return av


@contextlib.contextmanager
def _video(path: str) -> Iterator[tuple[int, Callable[[np.ndarray], Iterator[np.ndarray]]]]:
    """As `_opened` does, with frames uint8 [h, w, 3], upright.

    The packets of the file are counted, because its header may know nothing or lie, and kept: they
    need the memory of the file, but no seeking, which each format does in its own inexact way.
    Frames of more than 67 megapixels are not decoded.
    """
    av = _av()
    # absolute, because a name like "a:b.mp4" would be a protocol; no protocol but "file", because
    # a play list under the name of a video could call servers
    options = {"protocol_whitelist": "file"}
    try:
        container = av.open(os.path.abspath(path), options=options, metadata_errors="ignore")
    except Exception as error:
        raise Unreadable(f"not a readable video: {_reason(error)}") from error
    with container:
        stream = container.streams.best("video")
        if stream is None or stream.disposition & av.stream.Disposition.attached_pic:
            raise Unreadable("the file has no video")  # cover art is none
        if stream.codec_context is None:
            raise Unreadable("the video has a codec that PyAV does not know")
        stream.codec_context.thread_count = 1  # the pipeline has its own threads
        stream.codec_context.options = {"max_pixels": str(_MOST)}
        # a video may change its size on the way: all frames get that of the header
        size = stream.width or None, stream.height or None
        packets = []
        with contextlib.suppress(Exception):  # PyAV's, where a file breaks off: use what is there
            for packet in container.demux(stream):
                if packet.size and not packet.is_corrupt:
                    packets.append(packet)
        count = sum(not packet.is_discard for packet in packets)
        yield count, functools.partial(_decode, av, stream, size, packets)


def _decode(
    av: Any,
    stream: Any,
    size: tuple[int | None, int | None],
    packets: list[Any],
    needed: np.ndarray,
) -> Iterator[np.ndarray]:
    """The frames number `needed`, ascending; a missing one is the frame that is shown instead."""
    times = [packet.pts for packet in packets if not packet.is_discard]
    timed = all(p.pts is not None for p in packets) and len(set(times)) == len(times)
    order = sorted(times) if timed else range(len(times))  # packets come in order of decoding
    wanted = [order[k] for k in needed]
    first = 0
    if timed:
        keys = [i for i, p in enumerate(packets) if p.is_keyframe and p.pts <= wanted[0]]
        first = max(keys, key=lambda i: packets[i].pts, default=0)
    shown, reason, numbers = None, "", itertools.count()
    for packet in [*packets[first:], None]:
        if packet is not None and timed:  # what no other frame refers to need not be decoded
            stream.codec_context.skip_frame = "DEFAULT" if packet.pts in wanted else "NONREF"
        try:
            decoded = stream.decode(packet)
        except av.FFmpegError as error:
            reason = f": {_reason(error)}"
            continue
        for frame in decoded:
            time = frame.pts if timed else next(numbers)
            before, shown = shown or frame, frame
            while wanted and wanted[0] <= time:
                yield _upright(frame if wanted.pop(0) == time else before, size)
            if not wanted:
                return
    if shown is None:
        raise Unreadable(f"no frame of the video can be decoded{reason}")
    for _ in wanted:
        yield _upright(shown, size)


def _upright(frame: Any, size: tuple[int | None, int | None]) -> np.ndarray:
    try:
        pixels = frame.to_ndarray(format="rgb24", width=size[0], height=size[1])
    except Exception as error:
        raise Unreadable(f"a frame of the video is not readable: {_reason(error)}") from error
    return np.rot90(pixels, round(frame.rotation / 90))  # counter-clockwise, as FFmpeg has it


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def _in_order(folder: Path) -> tuple[str, ...]:
    """The paths of the pictures in `folder`, with numbers in the order of numbers."""
    ends = tuple(f".{extension}" for extension in folders.EXTENSIONS)
    names = [name for name in os.listdir(folder) if name.lower().endswith(ends)]
    # split at numbers, so that text is compared with text and numbers with numbers
    steps = lambda name: [int(s) if s.isdecimal() else s for s in re.split(r"(\d+)", name)]
    shown = (name for name in names if not name.startswith("."))
    return tuple(str(folder / name) for name in sorted(shown, key=lambda n: (steps(n), n)))


def _folders(root: Path, part: str, extensions: tuple[str, ...]) -> set[str]:
    """The folders below `root/part` that hold a picture, relative to `root`."""
    return {name.rpartition("/")[0] for name in folders._files(root, part, extensions)} - {part}
