"""Clips of videos as uint8 arrays [t, h, w, c], from files or from folders of frames."""

import contextlib
import functools
import io
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mae_jax.data.bad_examples import Unreadable
from mae_jax.data.image_io import crop, decode

_MAX_PIXELS = 2**26  # of a frame; decoders keep several frames

# the path of a video or its content, the paths of its frames, or uint8 [frames, h, w(, c)]
Clip = str | bytes | tuple[str, ...] | np.ndarray
Read = Callable[[np.ndarray], Iterable[np.ndarray]]  # numbers of frames, ascending, to the frames
FrameSize = tuple[int | None, int | None]


def train_views(clip: Clip, data: Mapping[str, Any], rng: np.random.Generator) -> np.ndarray:
    """Return random parts of a video, uint8 [repeats, *size, channels]; `data.size` is (t, h, w).

    Each part has t frames, `data.stride` frames apart, from a start uniform over those that fit,
    and one `crop.random_resized_crop` for all of its frames. A video that is too short repeats its
    last frame. All parts are cut from one decoding: the repeated sampling of Feichtenhofer et al.
    2022 (arXiv 2205.09113).

    Raises:
      Unreadable: the video cannot be read, or its channels do not fit.
    """
    (t, height, width), stride, repeats = data["size"], data["stride"], data["repeats"]
    scale, ratio = tuple(data["crop_scale"]), tuple(data["crop_ratio"])
    seeds = rng.integers(2**63, size=repeats)

    def choose(count: int) -> np.ndarray:
        starts = rng.integers(max(1, count - (t - 1) * stride), size=repeats)
        return starts[:, None] + stride * np.arange(t)

    def cut(frame: np.ndarray, row: int) -> np.ndarray:
        same = np.random.default_rng(seeds[row])  # draws the same box for every frame
        return crop.random_resized_crop(frame, (height, width), scale, ratio, same)

    return _cut_frames(clip, choose, cut, data)


def eval_views(clip: Clip, data: Mapping[str, Any], clips: int = 1, crops: int = 1) -> np.ndarray:
    """Return evenly spread parts of a video, uint8 [clips * crops, *size, channels].

    The starts of `clips` parts are evenly spread from the first to the last that fits; a single
    part is in the middle. Each part has `crops` crops, as large as `crop.center_crop`, evenly
    spread along the longer side; a single one is in the middle. Crops of a part are neighbours.
    """
    (t, *area), stride = data["size"], data["stride"]

    def choose(count: int) -> np.ndarray:
        starts = np.rint(_spread(clips) * max(0, count - 1 - (t - 1) * stride)).astype(int)
        return np.repeat(starts, crops)[:, None] + stride * np.arange(t)

    def cut(frame: np.ndarray, row: int) -> np.ndarray:
        height, width = frame.shape[:2]
        along = _spread(crops)[row % crops]
        wide = width * area[0] >= height * area[1]
        position = (0.5, along) if wide else (along, 0.5)
        return crop.center_crop(frame, (area[0], area[1]), data["center_crop"], position)

    return _cut_frames(clip, choose, cut, data)


def _spread(n: int) -> np.ndarray:
    return np.linspace(0, 1, n) if n > 1 else np.full(n, 0.5)


def _cut_frames(
    clip: Clip,
    choose: Callable[[int], np.ndarray],
    cut: Callable[[np.ndarray, int], np.ndarray],
    data: Mapping[str, Any],
) -> np.ndarray:
    """Return `cut(frame, row)` of the frames `choose(count)` [rows t], each decoded once."""
    channels = data["channels"]
    with _open_clip(clip, channels) as (count, read):
        if not count:
            raise Unreadable("the video has no frames")
        index = np.minimum(choose(count), count - 1)
        needed = np.unique(index)
        views = np.empty((len(index), *data["size"], channels), np.uint8)
        shape = None
        for k, frame in zip(needed, read(needed), strict=True):
            shape = shape or frame.shape
            if frame.shape != shape:
                raise Unreadable(f"the frames differ in shape: {shape} and {frame.shape}")
            # Frames are cropped as they come, so that memory holds few of full size.
            for row in np.flatnonzero((index == k).any(1)).tolist():
                views[row, index[row] == k] = cut(frame, row)
    return views


@contextlib.contextmanager
def _open_clip(clip: Clip, channels: int) -> Iterator[tuple[int, Read]]:
    if isinstance(clip, str | bytes):
        if channels not in (1, 3):
            raise Unreadable(f"video files give 1 or 3 channels, not {channels}: use arrays")
        with open_video(clip) as (count, read):
            yield count, lambda needed: (decode.decode(frame, channels) for frame in read(needed))
    elif isinstance(clip, tuple):
        yield len(clip), lambda needed: (_read_picture(clip[k], channels) for k in needed)
    elif clip.dtype == np.uint8 and clip.ndim in (3, 4):
        yield len(clip), lambda needed: (decode.decode(clip[k], channels) for k in needed)
    else:
        raise Unreadable(
            f"an array of {clip.dtype} {clip.shape} is no video: "
            "give uint8 [frames, h, w] or [frames, h, w, c]"
        )


def _read_picture(path: str, channels: int) -> np.ndarray:
    try:
        return decode.decode(Path(path).read_bytes(), channels)
    except (Unreadable, OSError) as error:
        raise Unreadable(f"frame {os.path.basename(path)!r}: {error}") from error


def import_av() -> Any:
    """Return the module of PyAV; an ImportError says how to install it."""
    try:
        import av
    except ImportError as error:
        raise ImportError("reading video files needs PyAV: pip install 'mae_jax[video]'") from error
    return av


@contextlib.contextmanager
def open_video(video: str | bytes) -> Iterator[tuple[int, Read]]:
    """Yield the number of frames, and a function that reads them upright, uint8 [h, w, 3].

    `video` is the path of a file, or the content of one.

    The packets of the file are counted, because its header may be incomplete or wrong, and kept in
    memory, because each format seeks in its own inexact way. Frames of more than 67 megapixels are
    not decoded.
    """
    av = import_av()
    # The path is absolute, because "a:b.mp4" would name a protocol. The only protocol is "file",
    # because a play list under the name of a video could call servers.
    is_file = isinstance(video, str)
    options = {"protocol_whitelist": "file" if is_file else "none"}
    file = os.path.abspath(video) if is_file else io.BytesIO(video)
    try:
        container = av.open(file, options=options, metadata_errors="ignore")
    except Exception as error:
        raise Unreadable(f"not a readable video: {_reason(error)}") from error
    with container:
        stream = container.streams.best("video")
        if stream is None or stream.disposition & av.stream.Disposition.attached_pic:
            raise Unreadable("the file has no video")  # cover art does not count
        if stream.codec_context is None:
            raise Unreadable("the video has a codec that PyAV does not know")
        stream.codec_context.thread_count = 1  # the pipeline has its own threads
        stream.codec_context.options = {"max_pixels": str(_MAX_PIXELS)}
        # A video may change its size on the way: all frames get the size in the header.
        size = stream.width or None, stream.height or None
        packets = []
        with contextlib.suppress(Exception):  # PyAV raises if a file ends early: use its start
            for packet in container.demux(stream):
                if packet.size and not packet.is_corrupt:
                    packets.append(packet)
        count = sum(not packet.is_discard for packet in packets)
        yield count, functools.partial(decode_frames, av, stream, size, packets)


def decode_frames(
    av: Any, stream: Any, size: FrameSize, packets: list[Any], needed: np.ndarray
) -> Iterator[np.ndarray]:
    """Yield the frames `needed`, ascending; for a missing frame, the one shown at its time."""
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
        if packet is not None and timed:  # skip frames that no other frame refers to
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
                yield upright(frame if wanted.pop(0) == time else before, size)
            if not wanted:
                return
    if shown is None:
        raise Unreadable(f"no frame of the video can be decoded{reason}")
    for _ in wanted:
        yield upright(shown, size)


def upright(frame: Any, size: FrameSize) -> np.ndarray:
    """Return a frame of PyAV as uint8 [*size, 3], turned as its metadata says."""
    try:
        pixels = frame.to_ndarray(format="rgb24", width=size[0], height=size[1])
    except Exception as error:
        raise Unreadable(f"a frame of the video is not readable: {_reason(error)}") from error
    return np.rot90(pixels, round(frame.rotation / 90))  # counter-clockwise, as in FFmpeg


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
