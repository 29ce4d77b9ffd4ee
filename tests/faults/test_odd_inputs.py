"""Odd arrays, sounds, videos, records and texts, read as training reads them."""

import gzip
import os
import pickle
import struct
import zipfile

import numpy as np
import pytest
from odd_files import clip, half, npy, npz, npz_bomb, plain, png, record, wav
from reading import COLOURS, IMAGE, REPLACED, SIDE, apart, either, opened, read, says, write
from runs import cases

from mae_jax.weights import load

pytestmark = [pytest.mark.faults("bad input"), pytest.mark.usefixtures("soon")]


# --- arrays ---

ARRAYS = dict(modality="volume", size=(SIDE, SIDE), channels=1, zoom=(1.0, 1.0))
RAMP = np.arange(SIDE * SIDE, dtype=np.float32).reshape(SIDE, SIDE, 1)
RAMP_WITH_INF = np.where(RAMP == 5, np.float32(np.inf), RAMP)


def array(name, data, expected=None):
    """An odd array among seven of one value each: what it becomes, or None if it is replaced."""

    def check(place):
        folder = place / "a"
        folder.mkdir()
        for i in range(7):
            np.save(folder / f"{i}.npy", np.full((SIDE, SIDE, 1), i, np.float32))
        write(folder, name, data)
        batch = read(opened(f"arrays:{folder}", modality="volume"), place, ARRAYS)
        values = batch.image
        assert len(values) == 8 and np.isfinite(values.astype(float)).all()
        constant = {float(x.flat[0]) for x in values if np.ptp(x) == 0}
        if expected is None:
            assert len(batch.replaced) == 1
            assert constant == set(range(7)), "it was taken for an array"
            return REPLACED
        assert set(range(7)) <= constant
        assert not batch.replaced
        assert any(np.array_equal(x, expected) for x in values)
        return "converted exactly"

    return check


class Hostile:
    """Its pickle makes a directory where it is loaded."""

    def __init__(self, place):
        self.place = str(place / "ran")

    def __reduce__(self):
        return os.mkdir, (self.place,)


def pickled_array(place):
    data = npy(np.array([Hostile(place)], object), allow_pickle=True)
    happened = array("x.npy", data)(place)
    assert not (place / "ran").exists(), "code from a file was run"
    return f"{happened}, not run"


def pickled_weights(place):
    with zipfile.ZipFile(place / "x.pth", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"model": Hostile(place)}, protocol=2))
    text = says(lambda p: load.load(p / "x.pth"), r"\w+\.mkdir", "not")(place)
    assert not (place / "ran").exists(), "code from a file was run"
    return text


# --- sounds and videos ---

TONE = np.sin(np.arange(16_000) / 9) / 2
AUDIO = dict(modality="audio", size=(32, 16), channels=1, rate=16_000, roll=False, magnitude=False)
VIDEO = IMAGE | dict(modality="video", size=(4, SIDE, SIDE), stride=1)


def media(kind, data, good, name, odd, replaced=True):
    """An odd file among three good ones, whose place another takes or not."""

    def check(place):
        folder = place / "m"
        folder.mkdir()
        for i in range(3):
            write(folder, *good(i))
        write(folder, name, odd)
        source = opened(f"{kind}:{folder}", modality=data["modality"])
        assert len(source) == 4
        batch = read(source, place, data)
        assert np.isfinite(batch.image.astype(float)).all()
        assert len(batch.replaced) == replaced
        return REPLACED if replaced else "converted"

    return check


def sound(odd, replaced=True):
    good = lambda i: (f"{i}.wav", lambda: wav(TONE / (i + 1)))
    return media("audio", AUDIO, good, "x.wav", odd, replaced)


def video(name, odd):
    return media("video", VIDEO, lambda i: (f"{i}.gif", lambda: clip(60 * i)), name, odd)


def unknown_sound(place):
    (place / "a.wav").write_bytes(wav(np.zeros(99)))
    (place / "labels.csv").write_text("file,label\na.wav,dog\nb.wav,cat\n")
    return opened(f"audio:{place}", modality="audio")


# --- records, MNIST's files, texts ---


def records(place, examples):
    from array_record.python.array_record_module import ArrayRecordWriter

    folder = place / "r"
    folder.mkdir()
    writer = ArrayRecordWriter(str(folder / "train.array_record"), "group_size:1")
    for example in examples:
        writer.write(example)
    writer.close()
    (folder / "label.labels.txt").write_text("first\nsecond\n")
    return opened(f"array_record:{folder}/{{split}}.array_record", "train")


def odd_record(odd):
    """A record among seven good ones, of two classes."""

    def check(place):
        good = [record(png(plain(color)), i % 2) for i, color in enumerate(COLOURS)]
        batch = read(records(place, [*good, odd()]), place, IMAGE)
        assert set(batch.label.tolist()) <= {0, 1}
        assert len(batch.replaced) == 1
        assert not len(apart(batch)), "it was taken for a picture"
        return REPLACED

    return check


def odd_label(label):
    """A label that no class has: another example takes its place, or one sentence says so."""
    all_odd = lambda p: read(records(p, [record(png(), label)] * 8), p, IMAGE)
    return either(odd_record(lambda: record(png(), label)), says(all_odd, "label"))


def text_as_records(place):
    (place / "x.array_record").write_bytes(b"text" * 99)
    return opened(f"array_record:{place}/x.array_record", "train")


def idx(place, cut=0, zipped=False, labels=bytes(range(9))):
    """Nine pictures as MNIST's files."""
    data = bytes([0, 0, 8, 3]) + struct.pack(">III", 9, 4, 4) + bytes(9 * 16)
    data = gzip.compress(data)[:-9] if zipped else data[: len(data) - cut]
    (place / f"train-images-idx3-ubyte{'.gz' * zipped}").write_bytes(data)
    header = bytes([0, 0, 8, 1]) + struct.pack(">I", len(labels))
    (place / "train-labels-idx1-ubyte").write_bytes(header + labels)
    return opened(f"idx:{place}", "train")


def idx_text(place):
    idx(place)
    (place / "train-labels-idx1-ubyte").write_text("labels")
    return opened(f"idx:{place}", "train")


def texts(place, *files):
    (place / "t").mkdir()
    for i, data in enumerate(files):
        (place / "t" / f"{i}.txt").write_bytes(data)
    return opened(f"text:{place / 't'}", modality="text")


def empty_text(place):
    source = texts(place, b"hello " * 100, b"", bytes(range(256)) * 4)
    assert len(source) == 2
    read(source, place, dict(modality="text", size=(64,), channels=1))
    return "left out"


CASES = {
    "array: half.npy": array("half.npy", half(npy(RAMP))),
    "array: empty.npy": array("empty.npy", b""),
    "array: text.npy": array("text.npy", b"1, 2, 3\n"),
    "array: nan.npy": array("nan.npy", npy(RAMP * np.float32(np.nan))),
    "array: inf.npy": array("inf.npy", npy(RAMP_WITH_INF)),
    "array: complex.npy": array("complex.npy", npy(RAMP.astype(complex))),
    "array: channels.npy": array("channels.npy", npy(np.zeros((SIDE, SIDE, 5)))),
    "array: axes.npy": array("axes.npy", npy(np.zeros((2, 2, SIDE, SIDE, 1)))),
    "array: big endian.npy": array("big endian.npy", npy(RAMP.astype(">f4")), RAMP),
    "array: Fortran order.npy": array("Fortran order.npy", npy(np.asfortranarray(RAMP)), RAMP),
    "array: float64.npy": array("float64.npy", npy(RAMP.astype(float)), RAMP),
    "array: half.npz": array("half.npz", half(npz(image=npy(RAMP)))),
    "array: several.npz": array("several.npz", npz(a=npy(RAMP), b=npy(RAMP))),
    "array: two gigabytes in a small .npz": either(
        array("bomb.npz", npz_bomb), array("bomb.npz", npz_bomb, np.zeros((SIDE, SIDE, 1)))
    ),
    "array: a pickle with code": pickled_array,
    "weights: a .pth with code": pickled_weights,
    "half a sound's header": sound(lambda: half(wav(TONE)[:40])),
    "a text called .wav": sound(b"do re mi"),
    "an empty sound": sound(lambda: wav(np.zeros(0))),
    "one sample of sound": sound(lambda: wav(np.zeros(1)), replaced=False),
    "a sound with NaN": sound(lambda: wav(TONE * np.nan, subtype="FLOAT")),
    "a text called .mp4": video("x.mp4", b"moving text"),
    "an empty video": video("x.mp4", b""),
    "a video cut off in its header": video("x.gif", lambda: clip(1)[:30]),
    "a record that is no example": odd_record(lambda: b"\xff\xff\xff\xff"),
    "a record without a picture": odd_record(lambda: record(None, 1)),
    "a record with a bad picture": odd_record(lambda: record(b"bad", 1)),
    "a label above the classes": odd_label(7),
    "a label below zero": odd_label(-5),
    "MNIST's files, truncated": says(lambda p: idx(p, cut=5), "truncated"),
    "MNIST's files, fewer labels": says(lambda p: idx(p, labels=bytes(5)), "9 images.*5 labels"),
    "MNIST's files, half a .gz": says(lambda p: idx(p, zipped=True), "gz"),
    "MNIST's files, a text": says(idx_text, "no IDX"),
    "a text without a byte": empty_text,
    "texts, all empty": says(lambda p: texts(p, b"", b"")),
    "labels.csv names no file": says(unknown_sound, "b.wav"),
    "array_record: a text": says(text_as_records, "x.array_record"),
}


@cases("check", CASES)
def test_odd_input(check, tmp_path, happened):
    happened(check(tmp_path))
