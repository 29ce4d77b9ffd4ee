"""Bad inputs, bad configurations and flipped bits: the part of chaos.py inside one process.

    python scripts/chaos_inputs.py inputs --place=DIR   # also: configs, flips

Inputs are read as training reads them: a folder with seven good pictures and an odd one, through
`sources.open`, the training transform and `pipeline.training_batches`. The odd one is converted to
what an independent computation expects, or another takes its place and it is counted, or one
sentence says what is wrong. Configurations go through the real parser and `train`, and must be
refused before anything is compiled. Flipped bits are looked for by what training restores with.

Prints a line of JSON a case, which chaos.py collects.
"""

import argparse
import contextlib
import gzip
import io
import json
import os
import pickle
import re
import shutil
import struct
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from chaos_configs import watch_compilations, wrong_configs
from chaos_flips import FLIPS, flips
from chaos_pictures import BLOCK, deflated_zeros, encoded, half, pictures, png
from chaos_reading import (
    IMAGE,
    ROOT,
    SIDE,
    Case,
    Failed,
    apart,
    check,
    colours,
    either,
    epoch,
    opened,
    says,
    within_seconds,
    write,
)
from PIL import Image

ARRAYS = dict(modality="volume", size=(SIDE, SIDE), channels=1, zoom=(1.0, 1.0))


def plane(value: float) -> np.ndarray:
    return np.full((SIDE, SIDE, 1), value, np.float32)


def arrays_case(name: str, data: Callable[[], bytes] | bytes, expected: np.ndarray | None):
    """An odd array among seven of one value each: what it becomes, or None if it is replaced."""

    def act(place: Path) -> str:
        folder = place / "a"
        folder.mkdir(parents=True)
        for i in range(7):
            np.save(folder / f"{i}.npy", plane(i))
        write(name, data)(folder)
        batch = epoch(opened(f"arrays:{folder}", modality="volume"), place, ARRAYS)
        values = batch.image
        check(len(values) == 8 and np.isfinite(values.astype(float)).all(), "not finite")
        constant = [float(x.flat[0]) for x in values if np.ptp(x) == 0]
        check({float(i) for i in range(7)} <= set(constant), f"others are missing: {constant}")
        if expected is None:
            check(len(batch.replaced) == 1, f"unreadable.txt has {batch.replaced}")
            check(set(constant) == {float(i) for i in range(7)}, "it was taken for an array")
            return "another takes its place, counted and named"
        check(not batch.replaced, f"replaced: {batch.replaced}")
        check(any(np.array_equal(x, expected) for x in values), "converted to something else")
        return "converted exactly"

    return Case(f"array: {name}", act)


def saved(array: np.ndarray, **options) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


RAN = (
    Path(tempfile.gettempdir()) / f"mae_jax_chaos_ran_{os.getpid()}"
)  # what a pickle makes if it is run


class Hostile:
    def __reduce__(self):
        return os.mkdir, (str(RAN),)


def pickled(place: Path) -> str:
    data = lambda: saved(np.array([Hostile()], object), allow_pickle=True)
    happened = arrays_case("x.npy", data, None).act(place)
    if RAN.exists():
        RAN.rmdir()
        raise Failed("code from a file was run")
    return happened + ", not run"


def hostile_weights(place: Path) -> None:
    """A .pth whose pickle makes a directory."""
    with zipfile.ZipFile(place / "x.pth", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"model": Hostile()}, protocol=2))
    from mae_jax.weights import load

    try:
        load.load(place / "x.pth")
    finally:
        if RAN.exists():
            RAN.rmdir()
            raise Failed("code from a file was run")


def npz(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(f"{name}.npy", data)
    return buffer.getvalue()


def npz_bomb() -> bytes:
    """Two gigabytes of zeros in two megabytes, all of it as it should be."""
    side = 22_000
    header = saved(np.zeros((1, 1, 1), np.float32))[:128]
    header = header.replace(b"(1, 1, 1), }" + b" " * 8, b"(%d, %d, 1), }" % (side, side))
    size, total = side * side * 4, zlib.crc32(header)
    for start in range(0, size, BLOCK):
        total = zlib.crc32(bytes(min(BLOCK, size - start)), total)
    data, name = deflated_zeros(size, header), b"image.npy"
    facts = struct.pack("<HHHHIII", 0, 8, 0, 33, total, len(data), len(header) + size)
    facts += struct.pack("<HH", len(name), 0)
    local = b"PK\3\4\x14\0" + facts + name
    central = b"PK\1\2\x14\0\x14\0" + facts + struct.pack("<HHHII", 0, 0, 0, 0, 0) + name
    end = struct.pack("<HHHHIIH", 0, 0, 1, 1, len(central), len(local) + len(data), 0)
    return local + data + central + b"PK\5\6" + end


def sound(samples: np.ndarray, rate: int = 16_000, **options) -> bytes:
    import soundfile

    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format="WAV", **options)
    return buffer.getvalue()


def media(kind: str, data: dict, others: Callable[[int], tuple[str, bytes]]):
    """An odd file among three good ones: whether another takes its place."""

    def case(title: str, name: str, odd: Callable[[], bytes] | bytes, replaced: bool) -> Case:
        def act(place: Path) -> str:
            folder = place / "m"
            folder.mkdir(parents=True)
            for i in range(3):
                write(*others(i))(folder)
            write(name, odd)(folder)
            source = opened(f"{kind}:{folder}", modality=data["modality"])
            check(len(source) == 4, f"{len(source)} examples")
            batch = epoch(source, place, data)
            check(np.isfinite(batch.image.astype(float)).all(), "not finite")
            check(len(batch.replaced) == replaced, f"unreadable.txt has {batch.replaced}")
            return "another takes its place, counted and named" if replaced else "converted"

        return Case(title, act)

    return case


def clip(colour: int) -> bytes:
    """Twenty frames as an animated GIF, which is a video too."""
    frames = [Image.new("RGB", (40, 40), (colour, 10 * i, 0)) for i in range(20)]
    return encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])


def idx(place: Path, images: int, labels: bytes | None = None, cut: int = 0, zipped=False):
    """Files as MNIST's."""
    header = bytes([0, 0, 8, 3]) + struct.pack(">III", images, 4, 4)
    data = (header + bytes(images * 16))[: -cut or None]
    name = "train-images-idx3-ubyte"
    (place / (name + ".gz" * zipped)).write_bytes(gzip.compress(data)[:-9] if zipped else data)
    marks = bytes(range(images)) if labels is None else labels
    marks = bytes([0, 0, 8, 1]) + struct.pack(">I", len(marks)) + marks
    (place / "train-labels-idx1-ubyte").write_bytes(marks)
    return opened(f"idx:{place}", "train")


def records(place: Path, examples: list[bytes]) -> Any:
    from array_record.python.array_record_module import ArrayRecordWriter

    place.mkdir(parents=True)
    writer = ArrayRecordWriter(str(place / "train.array_record"), "group_size:1")
    for example in examples:
        writer.write(example)
    writer.close()
    (place / "label.labels.txt").write_text("first\nsecond\n")
    return opened(f"array_record:{place}/{{split}}.array_record", "train")


def proto(image: bytes | None, label: int) -> bytes:
    from tensorflow_datasets.proto import tf_example_pb2

    example: Any = tf_example_pb2.Example()  # pyright: ignore[reportAttributeAccessIssue]
    if image is not None:
        example.features.feature["image"].bytes_list.value.append(image)
    example.features.feature["label"].int64_list.value.append(label)
    return example.SerializeToString()


def odd_record(odd: Callable[[], bytes]):
    """A record among seven good ones, of two classes."""

    def act(place: Path) -> str:
        fine = [
            proto(png(Image.new("RGB", (SIDE, SIDE), colour)), i % 2)
            for i, colour in enumerate(colours())
        ]
        batch = epoch(records(place / "r", [*fine, odd()]), place, IMAGE)
        check(set(batch.label.tolist()) <= {0, 1}, f"labels {batch.label.tolist()}")
        check(len(batch.replaced) == 1, f"unreadable.txt has {batch.replaced}")
        check(not len(apart(batch)), "it was taken for a picture")
        return "another takes its place, counted and named"

    return act


def texts(place: Path, **files: bytes) -> Any:
    (place / "t").mkdir(parents=True)
    for name, data in files.items():
        (place / "t" / f"{name}.txt").write_bytes(data)
    return opened(f"text:{place / 't'}", modality="text")


def empty_text(place: Path) -> str:
    source = texts(place, a=b"hello " * 100, b=b"", c=bytes(range(256)) * 4)
    check(len(source) == 2, f"{len(source)} examples")
    epoch(source, place, dict(modality="text", size=(64,), channels=1))
    return "left out"


def unknown_sound(place: Path) -> Any:
    (place / "a.wav").write_bytes(sound(np.zeros(99)))
    (place / "labels.csv").write_text("file,label\na.wav,dog\nb.wav,cat\n")
    return opened(f"audio:{place}", modality="audio")


def others() -> list[Case]:
    tone = np.sin(np.arange(16_000) / 9) / 2
    audio = dict(modality="audio", size=(32, 16), channels=1, rate=16_000, roll=False)
    sounds = media(
        "audio", audio | {"magnitude": False}, lambda i: (f"{i}.wav", sound(tone / (i + 1)))
    )
    video = dict(modality="video", size=(4, SIDE, SIDE), channels=3, stride=1)
    clips = media(
        "video",
        video | {"crop_scale": (1, 1), "crop_ratio": (1, 1)},
        lambda i: (f"{i}.gif", clip(60 * i)),
    )
    ramp = np.arange(SIDE * SIDE, dtype=np.float32).reshape(SIDE, SIDE, 1)
    with_inf = ramp.copy()
    with_inf[5, 5] = np.inf
    return [
        arrays_case("half.npy", half(saved(ramp)), None),
        arrays_case("empty.npy", b"", None),
        arrays_case("text.npy", b"1, 2, 3\n", None),
        arrays_case("nan.npy", saved(ramp * np.nan), None),
        arrays_case("inf.npy", saved(with_inf), None),
        arrays_case("complex.npy", saved(ramp.astype(complex)), None),
        arrays_case("channels.npy", saved(np.zeros((SIDE, SIDE, 5))), None),
        arrays_case("axes.npy", saved(np.zeros((2, 2, SIDE, SIDE, 1))), None),
        arrays_case("big endian.npy", saved(ramp.astype(">f4")), ramp),
        arrays_case("Fortran order.npy", saved(np.asfortranarray(ramp)), ramp),
        arrays_case("float64.npy", saved(ramp.astype(float)), ramp),
        arrays_case("half.npz", half(npz(image=saved(ramp))), None),
        arrays_case("several.npz", npz(a=saved(ramp), b=saved(ramp)), None),
        Case(
            "array: two gigabytes in a small .npz",
            either(
                arrays_case("bomb.npz", npz_bomb, None).act,
                arrays_case("bomb.npz", npz_bomb, plane(0)).act,
            ),
        ),
        Case("array: a pickle with code", pickled),
        Case("weights: a .pth with code", says(hostile_weights, r"asks for \w+\.mkdir", "not")),
        sounds("half a sound's header", "x.wav", half(sound(tone)[:40]), True),
        sounds("a text called .wav", "x.wav", b"do re mi", True),
        sounds("an empty sound", "x.wav", lambda: sound(np.zeros(0)), True),
        sounds("one sample of sound", "x.wav", lambda: sound(np.zeros(1)), False),
        sounds(
            "a sound with NaN",
            "x.wav",
            lambda: sound(tone * np.nan, subtype="FLOAT"),
            True,
        ),
        clips("a text called .mp4", "x.mp4", b"moving text", True),
        clips("an empty video", "x.mp4", b"", True),
        clips("a video cut off in its header", "x.gif", lambda: clip(1)[:30], True),
        Case("a record that is no example", odd_record(lambda: b"\xff\xff\xff\xff")),
        Case("a record without a picture", odd_record(lambda: proto(None, 1))),
        Case("a record with a bad picture", odd_record(lambda: proto(b"bad", 1))),
        Case(
            "a label above the classes",
            either(odd_record(lambda: proto(png(), 7)), says(lambda p: labels_of(p, 7), "label")),
        ),
        Case(
            "a label below zero",
            either(odd_record(lambda: proto(png(), -5)), says(lambda p: labels_of(p, -5), "label")),
        ),
        Case("MNIST's files, truncated", says(lambda p: idx(p, 9, cut=5), "truncated")),
        Case(
            "MNIST's files, fewer labels", says(lambda p: idx(p, 9, bytes(5)), "9 images.*5 labels")
        ),
        Case("MNIST's files, half a .gz", says(lambda p: idx(p, 9, zipped=True), "gz")),
        Case("MNIST's files, a text", says(lambda p: idx_text(p), "no IDX")),
        Case("a text without a byte", empty_text),
        Case("texts, all empty", says(lambda p: texts(p, a=b"", b=b""), "")),
        Case("labels.csv names no file", says(unknown_sound, "b.wav")),
        Case(
            "array_record: a text",
            says(
                lambda p: (
                    (p / "x.array_record").write_bytes(b"text" * 99),
                    opened(f"array_record:{p}/x.array_record", "train"),
                ),
                "x.array_record",
            ),
        ),
    ]


def labels_of(place: Path, label: int) -> None:
    epoch(records(place / "r", [proto(png(), label)] * 8), place, IMAGE)


def idx_text(place: Path):
    idx(place, 9)
    (place / "train-labels-idx1-ubyte").write_text("labels")
    return opened(f"idx:{place}", "train")


def show(kind: str, case: Case, place: Path) -> None:
    began, ok = time.monotonic(), False
    try:
        with within_seconds():
            happened = case.act(place)
        ok = True
    except Failed as error:
        happened = str(error)
    except Exception as error:  # not a sentence that a user would see
        happened = f"{type(error).__name__}: {error}"
    shutil.rmtree(place, ignore_errors=True)
    found = dict(kind=kind, fault=case.name, happened=" ".join(happened.split())[:300])
    found |= dict(lost=None, ok=ok, seconds=time.monotonic() - began)
    os.write(1, f"{json.dumps(found)}\n".encode())  # at once: other threads write too


def main() -> None:
    about = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(description=about, allow_abbrev=False)
    parser.add_argument("part", choices=["inputs", "configs", "flips"])
    parser.add_argument("--place", type=Path, help="a directory to work in")
    parser.add_argument("--checkpoints", type=Path, help="where the newest one is damaged")
    parser.add_argument("--only", default="", help="regular expression over the names")
    parser.add_argument("--list", action="store_true", help="the names alone")
    options, arguments = parser.parse_known_args()
    kind = options.part.removesuffix("s")
    cases: Any = {
        "inputs": lambda: [*pictures(), *others()],
        "configs": wrong_configs,
        "flips": lambda: flips(arguments, options.checkpoints.resolve()),
    }
    if options.list:
        found = range(1, FLIPS + 1) if kind == "flip" else [c.name for c in cases[options.part]()]
        names = [f"{kind}: {name}" for name in found]
        print("\n".join(name for name in names if re.search(options.only, name)))
        return
    watch_compilations()
    with contextlib.chdir(ROOT):
        for number, case in enumerate(cases[options.part]()):
            if re.search(options.only, f"{kind}: {case.name}"):
                show(kind, case, options.place / f"{kind}_{number}")


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
