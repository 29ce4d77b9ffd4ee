import gzip
import hashlib
import io
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from mae_jax.data import sources
from mae_jax.data.image_io import decode
from mae_jax.data.prepare import shards
from mae_jax.data.prepare import writer as prepare


def encoded(picture: Image.Image, kind: str = "JPEG", **options) -> bytes:
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


def smooth(height, width, channels=3):
    y, x = np.mgrid[:height, :width]
    planes = [127 + 120 * np.sin(y / (15 + c) + x / (17 + c) + c) for c in range(channels)]
    return np.stack(planes, -1).astype(np.uint8)


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(Image.fromarray(smooth(60, 90)), exif=exif)


PICTURES = {
    "cat/color.jpg": encoded(Image.fromarray(smooth(90, 120))),
    "cat/small.png": encoded(Image.fromarray(smooth(30, 50)), "PNG"),
    "cat/turned.jpg": turned(),
    "dog/alpha.png": encoded(Image.fromarray(smooth(70, 60, 4)), "PNG"),
    "dog/gray.jpg": encoded(Image.fromarray(smooth(50, 80)).convert("L")),
    "emu/deep.png": encoded(Image.fromarray(smooth(64, 64)[..., 0].astype(np.uint16) * 257), "PNG"),
    "emu/tall.webp": encoded(Image.fromarray(smooth(200, 41)), "WEBP", lossless=True),
}


def fill(root: Path, pictures=PICTURES) -> str:
    for name, data in pictures.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return f"folder:{root}"


def run(*arguments) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "mae_jax.data.prepare", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def read(out: Path, split: str):
    return sources.open_source(f"array_record:{out}/{{split}}-*.array_record", split)


def contents(out: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in out.iterdir()}


def test_without_options_the_files_are_kept_byte_for_byte(tmp_path):
    spec, out = fill(tmp_path / "in"), tmp_path / "out"
    source = sources.open_source(spec, "all")
    said = prepare.prepare(spec, out, "all", files=3)
    prepared = read(out, "all")
    assert prepared.classes == source.classes == ("cat", "dog", "emu")
    assert [prepared[i] for i in range(7)] == [source[i] for i in range(7)]
    assert len(list(out.glob("all-*-of-00003.array_record"))) == 3
    assert "7 pictures in 3 shard(s)" in said and "every record reads back" in said
    line = said.splitlines()[-1]  # what the config needs
    found = {}
    exec(line.replace("data.train", "found"), {}, found)
    assert len(sources.open_source(**{"spec": found["found"]["source"], "split": "all"})) == 7


def test_larger_pictures_are_resized_and_look_the_same(tmp_path):
    spec, out = fill(tmp_path / "in"), tmp_path / "out"
    with pytest.raises(
        ValueError, match="its uint16 values fit no JPEG: prepare without --shorter"
    ):
        prepare.prepare(spec, out, "all", shorter_side=40)
    (tmp_path / "in/emu/deep.png").unlink()
    source, out = sources.open_source(spec, "all"), tmp_path / "without"
    prepare.prepare(spec, out, "all", shorter_side=40)
    prepared, kinds = read(out, "all"), {}
    for i in range(len(source)):
        name, stored = source.name(i), prepared[i]["image"]
        with Image.open(io.BytesIO(stored)) as picture:
            kinds[name.partition("/")[2]] = (picture.format, picture.mode, *picture.size)
            assert not picture.getexif()
        assert (stored == PICTURES[name]) == (name == "cat/small.png")
        assert prepared[i]["label"] == source[i]["label"]
        for channels in (1, 3, 4):
            full = decode.decode(PICTURES[name], channels)
            size = decode.decode(stored, channels).shape[:2]
            assert name == "cat/small.png" or min(size) == 40
            shown = Image.fromarray(full.squeeze(-1) if channels == 1 else full)
            expected = np.asarray(shown.resize(size[::-1], Image.Resampling.BICUBIC), float)
            actual = decode.decode(stored, channels).reshape(expected.shape)
            assert np.abs(actual - expected).mean() < 2.5
    assert kinds == {
        "color.jpg": ("JPEG", "RGB", 53, 40),
        "small.png": ("PNG", "RGB", 50, 30),
        "turned.jpg": ("JPEG", "RGB", 40, 60),
        "alpha.png": ("PNG", "RGBA", 40, 47),
        "gray.jpg": ("JPEG", "L", 64, 40),
        "tall.webp": ("JPEG", "RGB", 40, 195),
    }


def test_arrays_become_png(tmp_path):
    rng, count = np.random.default_rng(0), 20
    pixels = rng.integers(0, 256, (count, 6, 5), np.uint8)
    labels = rng.integers(0, 10, count).astype(np.uint8)
    for part in ("train", "t10k"):
        header = bytes([0, 0, 8, 3]) + np.array(pixels.shape, ">u4").tobytes()
        file = tmp_path / f"{part}-images-idx3-ubyte.gz"
        file.write_bytes(gzip.compress(header + pixels.tobytes()))
        header = bytes([0, 0, 8, 1]) + np.array(labels.shape, ">u4").tobytes()
        (tmp_path / f"{part}-labels-idx1-ubyte").write_bytes(header + labels.tobytes())
    prepare.prepare(f"idx:{tmp_path}", tmp_path / "out", "train", files=2)
    prepare.prepare(f"idx:{tmp_path}", tmp_path / "out", "test")  # beside the other split
    for split in ("train", "test"):
        prepared = read(tmp_path / "out", split)
        assert len(prepared) == count and len(prepared.classes) == labels.max() + 1
        for i in range(count):
            np.testing.assert_array_equal(decode.decode(prepared[i]["image"], 1)[..., 0], pixels[i])
            assert prepared[i]["label"] == labels[i]
    with pytest.raises(ValueError, match="2 channels are no files"):
        shards.encode(np.zeros((4, 4, 2), np.uint8), None, 95)


def test_splits_with_odd_names():
    assert prepare.file_name("train[:10%]") == "train_10"
    assert prepare.file_name("validation") == "validation"


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """The source of 800 pictures, and what an uninterrupted run makes of it."""
    root = tmp_path_factory.mktemp("many")
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (40, 120, 160, 3), np.uint8)
    data = [encoded(Image.fromarray(picture)) for picture in noise]
    spec = fill(root / "in", {f"{k % 5}/{k:03d}.jpg": data[k % 40] for k in range(800)})
    prepare.prepare(spec, root / "out", "all", shorter_side=50, files=32)
    return spec, contents(root / "out")


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_resumed_after_a_kill_gives_the_same_bytes(many, tmp_path, end):
    spec, expected = many
    out, options = tmp_path / "out", ("--split=all", "--shorter-side=50", "--shards=32")
    command = [sys.executable, "-m", "mae_jax.data.prepare", spec, f"--out={out}", *options]
    with subprocess.Popen([*command, "--threads=1"], stderr=subprocess.PIPE, text=True) as first:
        deadline = time.time() + 60
        while len(list(out.glob("all-*"))) < 3 and time.time() < deadline:
            time.sleep(0.001)
        first.send_signal(end)
        error = first.communicate()[1]
    written = {p.name: p.stat().st_mtime_ns for p in out.glob("all-*.array_record")}
    assert 3 <= len(written) < 32
    if end == signal.SIGINT:
        assert first.returncode == 130 and "Traceback" not in error
        assert error.splitlines()[-1].startswith("stopped: the same command continues")
        assert not list(out.glob(".*"))
    with pytest.raises(ValueError, match="of 32 shards are missing, such as all-000"):
        prepare.check(out, "all")

    second = run(spec, f"--out={out}", *options)
    assert second.returncode == 0, second.stderr
    assert "of 32 shards exist" in second.stderr
    assert contents(out) == expected
    manifest = json.loads((out / "all.json").read_text())
    kept = {name for name, when in written.items() if (out / name).stat().st_mtime_ns == when}
    assert len(kept) >= len(written) - 1  # but for one that the manifest did not know yet
    assert sum(entry["records"] for entry in manifest["files"].values()) == 800


def test_a_flipped_bit_is_found_named_and_mended(tmp_path):
    spec, out = fill(tmp_path / "in"), tmp_path / "out"
    prepare.prepare(spec, out, "all", files=3)
    before, shard = contents(out), out / "all-00001-of-00003.array_record"
    for place in (100, len(shard.read_bytes()) // 2, -1):
        damaged = bytearray(shard.read_bytes())
        damaged[place] ^= 4
        shard.write_bytes(damaged)
        with pytest.raises(ValueError, match=f"'all': {shard.name}: its bytes are damaged: the"):
            prepare.check(out, "all")
        prepare.prepare(spec, out, "all", files=3)
        assert contents(out) == before
    (out / "all.json").write_text("{}")
    with pytest.raises(ValueError, match="all.json' is damaged: remove it to write everything"):
        prepare.check(out, "all")
    (out / "all.json").unlink()
    prepare.prepare(spec, out, "all", files=3)
    assert contents(out) == before
    shard.unlink()
    with pytest.raises(ValueError, match=f"1 of 3 shards are missing, such as {shard.name}: the"):
        prepare.check(out, "all")


def test_what_the_disk_does_to_records_is_found_even_with_its_checksum(tmp_path):
    """As if a record had been damaged before the file's checksum was taken."""
    spec, out = fill(tmp_path / "in"), tmp_path / "out"
    prepare.prepare(spec, out, "all")
    file, manifest = (
        out / "all-00000-of-00001.array_record",
        json.loads((out / "all.json").read_text()),
    )
    source = sources.open_source(spec, "all")
    records = [shards.record(source, i, None, 95)[0] for i in range(7)]
    for wrong, why in (
        (records[:-1], "holds 6 records instead of 7"),
        ([*records[:-1], records[0]], "not those that were written"),
        ([*records[:-1], records[-1].replace(b"RIFF", b"RAFF")], "cannot be read: not a picture"),
    ):
        entry = manifest["files"][file.name] | {"sha256": shards.write(file, wrong)["sha256"]}
        changed = manifest | {"files": {file.name: entry}}
        (out / "all.json").write_text(json.dumps(changed))
        with pytest.raises(ValueError, match=why):
            prepare.check(out, "all")


def test_bad_pictures_are_left_out_up_to_a_share(tmp_path):
    broken = {"dog/broken.jpg": b"nonsense", "emu/half.jpg": PICTURES["cat/color.jpg"][:600]}
    spec, out = fill(tmp_path / "in", PICTURES | broken), tmp_path / "out"
    refused = run(spec, "--split=all", f"--out={out}")
    assert refused.returncode == 2 and refused.stdout == ""
    assert refused.stderr.splitlines()[-1] == (
        "error: too many pictures cannot be read (1, where 0 may be left out), the last is "
        "'dog/broken.jpg': not a picture in a known format: repair or remove them, or raise "
        "--max-bad, the share that may be left out"
    )
    assert not list(out.glob("*.array_record")) and not list(out.glob(".*"))
    with pytest.raises(ValueError, match="the last is 'emu/half.jpg'"):
        prepare.prepare(spec, out, "all", max_bad=0.2)  # one of nine
    for shard_count in (1, 4):
        out = tmp_path / f"out{shard_count}"
        said = prepare.prepare(spec, out, "all", max_bad=0.25, files=shard_count)
        assert "7 pictures (2 left out, named in all.json)" in said
        assert "'emu/half.jpg': not a readable picture" in (out / "all.json").read_text()
        assert [read(out, "all")[i]["image"] for i in range(7)] == list(PICTURES.values())


def test_another_source_or_other_options_are_refused(tmp_path):
    spec, out = fill(tmp_path / "in"), tmp_path / "out"
    prepare.prepare(spec, out, "all", files=3)
    before = contents(out)
    other = fill(tmp_path / "other")
    for arguments, options, why in (
        ((spec, out, "all"), {}, "with shards 3, not 1"),
        ((spec, out, "all"), {"files": 3, "shorter_side": 40}, "shorter_side None, not 40 and qua"),
        ((other, out, "all"), {"files": 3}, f"source {spec!r}, not {other!r}: use another --out"),
        (("digits", out, "test"), {}, "other classes than the source"),
    ):
        with pytest.raises(ValueError, match=why):
            prepare.prepare(*arguments, **options)
    fill(tmp_path / "in", {"cat/new.jpg": PICTURES["cat/turned.jpg"]})
    (tmp_path / "in/cat/turned.jpg").unlink()
    with pytest.raises(ValueError, match="has shards of 'all' with other pictures: use another"):
        prepare.prepare(spec, out, "all", files=3)
    assert contents(out) == before


@pytest.mark.parametrize(
    "arguments, why",
    [
        (["folder:nowhere", "--out=x"], "error: data 'folder:nowhere': there is no folder"),
        (["pans", "--out=x"], "error: data 'pans' is of data.modality = 'video', not 'image'"),
        (["digits", "--split=val", "--out=x"], "has no split 'val': use train or test"),
        (["digits", "--out=x", "--shards=5000"], "error: --shards=5000, but there are only 1442"),
        (["--out=x", "--check"], "error: there is no 'x/train.json': nothing was prepared there"),
        (["--out=x"], "error: say what to prepare"),
        (["digits", "--out=x", "--quality=101"], "101 is not in 1 to 100"),
        (["digits", "--out=/dev/null/x"], "Not a directory"),
    ],
)
def test_mistakes_are_one_sentence(tmp_path, monkeypatch, capsys, arguments, why):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["prepare", *arguments])
    with pytest.raises(SystemExit) as end:
        prepare.main()
    assert end.value.code == 2
    assert why in capsys.readouterr().err.splitlines()[-1]


class PreparedAnimals(tfds.core.GeneratorBasedBuilder):
    """Encoded pictures, so that writing them needs no TensorFlow."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "label": tfds.features.ClassLabel(names=["cat", "dog", "emu"]),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for k in range(10):
            data = encoded(Image.fromarray(smooth(20 + k, 30)))
            yield k, {"image": io.BytesIO(data), "label": k % 3}


def test_tfds_sets_and_parts_of_them(tmp_path):
    tfds.core.add_data_dir(tmp_path / "tfds")
    PreparedAnimals(data_dir=tmp_path / "tfds", file_format="array_record").download_and_prepare()
    spec, split = "tfds:prepared_animals", "train[:40%]"
    said = prepare.prepare(spec, tmp_path / "out", split)
    assert 'split="train_40")' in said
    source, prepared = sources.open_source(spec, split), read(tmp_path / "out", "train_40")
    assert prepared.classes == source.classes and len(prepared) == 4
    assert [prepared[i] for i in range(4)] == [source[i] for i in range(4)]
    assert "4 pictures" in prepare.check(tmp_path / "out", split)
