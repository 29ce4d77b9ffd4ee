"""Synthetic pictures, clips, sounds, volumes and signals: small, labelled, without a download.

Example i is drawn by a generator seeded with (split, i), so the splits share no seed. Examples made
from the photographs of `samples` use the left 70 % of each for training and the rest for testing.
"""

import dataclasses
import functools
import io
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from mae_jax.data.sources import samples
from mae_jax.data.sources.source import Example, Examples

_PHOTOS = tuple(samples.PHOTOS)

Draw = Callable[[np.random.Generator, str, int], Example]


def _synthetic(
    title: str, split: str, counts: tuple[int, int], classes: tuple[str, ...], draw: Draw
) -> Examples:
    load, (train, test) = functools.partial(_drawn, draw, split), counts
    return Examples(test if split == "test" else train, load, classes, f"{title} {split}")


def _drawn(draw: Draw, split: str, i: int) -> Example:
    return draw(np.random.default_rng([split == "train", i]), split, i)


SHAPES = ("disc", "ring", "square", "triangle")


def shapes(split: str) -> Examples:
    """Open JPEGs of 80 x 64 pixels, each with one shape on a gradient: picture i shows i % 4."""
    return _synthetic("synthetic", split, (64, 32), SHAPES, _shape)


def _shape(rng: np.random.Generator, split: str, i: int) -> Example:
    ends = rng.integers(0, 256, (2, 1, 1, 3))
    across = np.linspace(0, 1, 80)[:, None]
    shade = ends[0] * across + ends[1] * (1 - across)  # [1 80 3]
    picture = Image.fromarray(np.repeat(shade, 64, 0).astype(np.uint8))
    color = tuple(int(c) for c in (ends.mean((0, 1, 2)) + 128) % 256)
    radius = int(rng.integers(10, 24))
    x, y = rng.integers(radius, [80 - radius, 64 - radius]).tolist()
    box = (x - radius, y - radius, x + radius, y + radius)
    draw, label = ImageDraw.Draw(picture), i % len(SHAPES)
    {
        "disc": lambda: draw.ellipse(box, fill=color),
        "ring": lambda: draw.ellipse(box, outline=color, width=radius // 3),
        "square": lambda: draw.rectangle(box, fill=color),
        "triangle": lambda: draw.regular_polygon((x, y, radius), 3, fill=color),
    }[SHAPES[label]]()
    encoded = io.BytesIO()
    picture.save(encoded, "JPEG", quality=90)
    return {"image": encoded.getvalue(), "label": label}


MOTIONS = ("still", "left", "right", "up", "down", "zoom in", "zoom out", "sway")
_FRAMES, _SIDE, _FAR = 20, 48, 72  # a frame of 48 pixels shows 48 to 72 pixels of the photo


def pans(split: str) -> Examples:
    """Open clips uint8 [20, 48, 48, 3] of a camera over the ten photographs, labelled by motion.

    Two views, which differ by 18 to 42 pixels in each direction and by a zoom of 1.2 to 1.5, are
    drawn for every clip. The class says which one of row, column and zoom goes from one view to the
    other ("sway" is left and right and back); the others stay at a value in between. A random frame
    therefore looks the same in every class, and only the order of the frames tells the class.
    "left" and "zoom in" describe the camera: the content moves right, or grows. Clip i has motion
    i % 8 and photo i // 8 % 10.
    """
    return _synthetic("pans", split, (800, 160), MOTIONS, _pan)


def _pan(rng: np.random.Generator, split: str, i: int) -> Example:
    label = i % len(MOTIONS)
    part = samples.photo_part(_PHOTOS[i // len(MOTIONS) % len(_PHOTOS)], split)
    height, width, _ = part.shape
    travel, zoom = rng.uniform(18, 42, 2), rng.uniform(1.2, 1.5)
    low = rng.uniform(_FAR / 2, np.array([height, width]) - _FAR / 2 - travel)
    high = low + travel  # the centres of the two views
    nearest = _SIDE * (_FAR / _SIDE / zoom) ** rng.random()
    on = np.linspace(0, 1, _FRAMES)
    share = np.repeat(rng.random((1, 3)), _FRAMES, axis=0)  # [frames 3], from low to high
    moves: dict[str, tuple[int, np.ndarray]] = {
        "left": (1, 1 - on), "right": (1, on), "up": (0, 1 - on), "down": (0, on),
        "zoom in": (2, 1 - on), "zoom out": (2, on),
        "sway": (1, np.abs(1 - 2 * (on + rng.random()) % 2)),
    }  # fmt: skip
    if MOTIONS[label] in moves:
        axis, share[:, axis] = moves[MOTIONS[label]]
    views = np.concatenate(
        [low + share[:, :2] * (high - low), nearest * zoom ** share[:, 2:]], axis=-1
    )
    top, left = np.floor(views[:, :2].min(0) - _FAR / 2).astype(int)
    bottom, right = np.ceil(views[:, :2].max(0) + _FAR / 2).astype(int)
    photo = Image.fromarray(np.ascontiguousarray(part[top:bottom, left:right]))
    clip = np.empty((_FRAMES, _SIDE, _SIDE, 3), np.uint8)
    for frame, (y, x, side) in zip(clip, views - [top, left, 0], strict=True):
        box = (x - side / 2, y - side / 2, x + side / 2, y + side / 2)
        frame[:] = np.asarray(photo.resize((_SIDE, _SIDE), Image.Resampling.BILINEAR, box=box))
    return {"image": clip, "label": label}


INSTRUMENTS = ("sine", "square", "pluck", "noise", "rise", "fall", "bell", "tremolo")
_RATE, _SAMPLES = 16000, 20800


def tones(split: str) -> Examples:
    """Open sounds `(float32 [20800], 16000)` of 1.3 s: one to three instruments, one note each.

    The label is uint8 [8], with a 1 for each instrument that plays; one of them is i % 8. A note
    has its own pitch (200 to 800 Hz), level (0 to -12 dB), onset and length (0.4 to 0.6 s). White
    noise at -50 dB of full scale is added.
    """
    return _synthetic("tones", split, (600, 150), INSTRUMENTS, _tone)


def _tone(rng: np.random.Generator, split: str, i: int) -> Example:
    first, others = i % len(INSTRUMENTS), np.delete(np.arange(8), i % len(INSTRUMENTS))
    playing = [first, *rng.choice(others, rng.integers(3), replace=False)]
    sound = rng.normal(0, 10 ** (-50 / 20), _SAMPLES)
    for number in playing:
        length = int(_RATE * rng.uniform(0.4, 0.6))
        start = rng.integers(0, _SAMPLES - length)
        level = 0.3 * 10 ** (rng.uniform(-12, 0) / 20)
        sound[start : start + length] += level * _note(INSTRUMENTS[number], length, rng)
    label = np.zeros(len(INSTRUMENTS), np.uint8)
    label[playing] = 1
    return {"image": (sound.astype(np.float32), _RATE), "label": label}


def _note(instrument: str, length: int, rng: np.random.Generator) -> np.ndarray:
    """Return samples [length] with a peak of 1."""
    t = np.arange(length) / _RATE
    pitch = 200 * 4 ** rng.random()
    turn = 2 * np.pi * pitch * t
    match instrument:
        case "sine":
            wave = np.sin(turn)
        case "square":
            wave = sum(np.sin(k * turn) / k for k in (1, 3, 5, 7, 9))
        case "pluck":
            wave = sum(np.sin(k * turn) * np.exp(-(2 + 2 * k) * t) / k for k in range(1, 10))
        case "noise":
            wave = rng.normal(size=length) * np.exp(-6 * t)
        case "rise" | "fall":  # the pitch triples
            speed = np.log(3) / t[-1]
            wave = np.sin(2 * np.pi * pitch * np.expm1(speed * t) / speed)
            wave = wave if instrument == "rise" else wave[::-1]
        case "bell":  # the ratios of a free bar, which sounds like one
            partials = enumerate((1, 2.756, 5.404, 8.933))
            wave = sum(np.sin(r * turn) * np.exp(-(3 + 3 * k) * t) / (1 + k) for k, r in partials)
        case _:  # the loudness trembles
            wave = np.sin(turn) * (0.55 + 0.45 * np.sin(2 * np.pi * rng.uniform(6, 10) * t))
    wave = wave * np.minimum(1, np.minimum(t, t[::-1]) / 0.01)  # no clicks
    return wave / np.abs(wave).max()


SOLIDS = ("ellipsoids", "plates", "shells", "tubes")
_VOXELS = 24


def phantoms(split: str) -> Examples:
    """Open volumes float32 [24, 24, 24] of bright solids in clouds, labelled by kind of solid.

    Three solids are of the class i % 4 and one is of another class, each with its own position,
    direction, size and brightness (0.5 to 1). The background is four long waves between about -0.2
    and 0.2; noise of 0.05 is added to all voxels.
    """
    return _synthetic("phantoms", split, (400, 100), SOLIDS, _phantom)


def _phantom(rng: np.random.Generator, split: str, i: int) -> Example:
    label = i % len(SOLIDS)
    place = np.moveaxis(np.indices([_VOXELS] * 3), 0, -1).astype(float)  # [24 24 24 3]
    lengths, arrows = rng.uniform(24, 72, 4), rng.normal(size=(4, 3))
    directions = arrows / np.linalg.norm(arrows, axis=-1, keepdims=True)
    waves = 2 * np.pi / lengths * directions.T  # [3 4], radians per voxel
    volume = 0.06 * np.cos(place @ waves + rng.uniform(0, 2 * np.pi, 4)).sum(-1)
    distractor = SOLIDS[(label + rng.integers(1, len(SOLIDS))) % len(SOLIDS)]
    for kind in (distractor, SOLIDS[label], SOLIDS[label], SOLIDS[label]):
        centre = rng.uniform(5, _VOXELS - 6, 3)
        axes = np.linalg.qr(rng.normal(size=(3, 3)))[0]
        depth = _depth(kind, (place - centre) @ axes, rng)
        volume += (rng.uniform(0.5, 1) - volume) * np.clip(depth + 0.5, 0, 1)  # soft edges
    volume += rng.normal(0, 0.05, volume.shape)
    return {"image": volume.astype(np.float32), "label": label}


def _depth(kind: str, place: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return about how many voxels the points `place` [*sides 3] lie below a solid's surface."""
    if kind == "ellipsoids":
        half = rng.uniform(2.5, 5, 3)
        return (1 - np.linalg.norm(place / half, axis=-1)) * half.min()
    if kind == "plates":
        flat = rng.uniform(4, 7) - np.linalg.norm(place[..., :2], axis=-1)
        return np.minimum(flat, rng.uniform(0.6, 1.0) - np.abs(place[..., 2]))
    if kind == "shells":
        ring = np.linalg.norm(place, axis=-1) - rng.uniform(3.5, 5.5)
        return rng.uniform(0.6, 1.0) - np.abs(ring)
    return rng.uniform(1, 2) - np.linalg.norm(place[..., :2], axis=-1)


_BANDS, _MATERIALS = 10, 4


def spectra(split: str) -> Examples:
    """Open reflectances float32 [48, 48, 10] of mixed materials in ten bands, labelled by photo.

    Each pixel is a linear mixture of four spectra, the same smooth random curves for all pictures,
    plus sensor noise of 0.01. The shares of the materials are the softmax of the colors of a window
    of photograph i % 10: slightly blurred red, green, blue, and darkness.
    """
    return _synthetic("spectra", split, (600, 150), _PHOTOS, _spectrum)


SHARES = ("red", "green", "blue", "dark")


def mixtures(split: str) -> Examples:
    """Open the pictures of `spectra`, labelled by the mean share of each material [4]."""
    examples = _synthetic("mixtures", split, (600, 150), (), _mixture)
    return dataclasses.replace(examples, label_kind="number", targets=SHARES)


def materials() -> np.ndarray:
    """Return the four materials' spectra [4, 10]: bumps on a slope, between 0 and 1."""
    rng = np.random.default_rng(80)  # the seed, of 200, whose spectra differ most
    band, centre = np.arange(_BANDS), rng.uniform(0, _BANDS - 1, (_MATERIALS, 3, 1))
    bumps = np.exp(-(((band - centre) / rng.uniform(1.5, 3, centre.shape)) ** 2))
    slope = np.linspace(0, 1, _BANDS) * rng.uniform(-0.5, 0.5, (_MATERIALS, 1))
    curves = (rng.uniform(0.3, 1, centre.shape) * bumps).sum(1) + slope
    low, high = curves.min(1, keepdims=True), curves.max(1, keepdims=True)
    return 0.05 + 0.9 * (curves - low) / (high - low)


def _spectrum(rng: np.random.Generator, split: str, i: int) -> Example:
    return {"image": _scene(rng, split, i)[0], "label": i % len(_PHOTOS)}


def _mixture(rng: np.random.Generator, split: str, i: int) -> Example:
    picture, shares = _scene(rng, split, i)
    return {"image": picture, "label": shares.mean((0, 1)).astype(np.float32)}


def _scene(rng: np.random.Generator, split: str, i: int) -> tuple[np.ndarray, np.ndarray]:
    """Return reflectances [48 48 10] and the shares of the materials [48 48 4]."""
    part = samples.photo_part(_PHOTOS[i % len(_PHOTOS)], split)
    y, x = rng.integers(0, np.array(part.shape[:2]) - _SIDE, endpoint=True)
    window = Image.fromarray(np.ascontiguousarray(part[y : y + _SIDE, x : x + _SIDE]))
    colors = np.asarray(window.filter(ImageFilter.BoxBlur(1))) / 255
    weights = np.exp(6 * np.concatenate([colors, 1 - colors.max(-1, keepdims=True)], axis=-1))
    shares = weights / weights.sum(-1, keepdims=True)  # [48 48 4]
    picture = shares @ materials() + rng.normal(0, 0.01, (_SIDE, _SIDE, _BANDS))
    return picture.astype(np.float32), shares


RHYTHMS = ("regular", "irregular", "premature", "dropped")
_SECONDS, _HERTZ = 4, 128
# The waves P, Q, R, S and T of a heart beat: seconds after R, width in seconds, millivolts, and the
# direction of its dipole in degrees. A lead sees the cosine of the angle between itself and that.
_WAVES = np.array(
    [
        (-0.17, 0.025, 0.15, 50),
        (-0.03, 0.010, -0.15, 20),
        (0.0, 0.012, 1.2, 55),
        (0.03, 0.010, -0.35, 90),
        (0.26, 0.045, 0.35, 45),
    ]
)


def beats(split: str) -> Examples:
    """Open heart beats float32 [512, 2]: 4 s of two leads, 0 and 90 degrees, in millivolts.

    A beat is a sum of five Gaussians, as in ECGSYN (McSharry et al. 2003). Signal i has rhythm
    i % 4: "regular"; "irregular", at random intervals and without P waves; "premature", where one
    beat is early, wide and without a P wave, and a pause follows; or "dropped", where one P wave
    has no beat. Rate (60 to 100 a minute), level and axis of the heart are random. Noise of 0.03
    and a slow wave of up to 0.1 are added.
    """
    return _synthetic("beats", split, (600, 150), RHYTHMS, _rhythm)


def _rhythm(rng: np.random.Generator, split: str, i: int) -> Example:
    rhythm, interval = RHYTHMS[i % len(RHYTHMS)], 60 / rng.uniform(60, 100)
    spread = 0.4 if rhythm == "irregular" else 0.02
    steps = interval * rng.uniform(1 - spread, 1 + spread, 12)
    onset = -interval * rng.random()
    odd = int(np.searchsorted(onset + steps.cumsum(), 1.0)) + int(rng.integers(2))  # in the middle
    if rhythm == "premature":
        steps[odd : odd + 2] *= 0.6, 1.4
    t, signal = np.arange(_SECONDS * _HERTZ) / _HERTZ, np.zeros((_SECONDS * _HERTZ, 2))
    level, axis = rng.uniform(0.7, 1.3), rng.uniform(-30, 30)
    for k, at in enumerate(onset + steps.cumsum()):
        start, width, height, angle = _WAVES.T.copy()
        if rhythm == "irregular" or rhythm == "premature" and k == odd:
            height[0] = 0
        if rhythm == "dropped" and k == odd:
            height[1:] = 0
        if rhythm == "premature" and k == odd:
            width[1:4], height[4] = 2.5 * width[1:4], -height[4]
        leads = level * height * np.cos(np.radians(angle + axis - [[0], [90]]))  # [2 5]
        signal += np.exp(-0.5 * ((t[:, None] - at - start) / width) ** 2) @ leads.T
    drift = 0.1 * rng.random() * np.sin(2 * np.pi * (0.3 * t + rng.random()))
    signal += drift[:, None] + rng.normal(0, 0.03, signal.shape)
    return {"image": signal.astype(np.float32), "label": i % len(RHYTHMS)}
