import functools
import pickle
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import soundfile
from scipy import stats

from mae_jax.data import pipeline
from mae_jax.data.bad_examples import Unreadable
from mae_jax.data.modalities import audio, transforms
from mae_jax.data.sources import audio_files

RATES = [8000, 16000, 22050, 44100, 48000]


def noise(samples, channels=None, seed=0, scale=0.1):
    shape = samples if channels is None else (samples, channels)
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32) * scale


def tone(hertz, rate, seconds=1.0):
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)


def part(start, seconds):
    return lambda samples, rate: (round(start * rate), round(seconds * rate))


def write(path, wave, rate=16000, subtype=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = {"aif": "AIFF"}.get(path.suffix[1:])  # which soundfile does not know by this name
    soundfile.write(path, wave, rate, subtype=subtype, format=kind)
    return str(path)


@pytest.fixture
def reads(monkeypatch):
    """What is read of any file from here on: [(first sample, samples)]."""
    found, read = [], soundfile.SoundFile.read

    def spy(self, *args, **options):
        start = self.tell()
        out = read(self, *args, **options)
        found.append((start, len(out)))
        return out

    monkeypatch.setattr(soundfile.SoundFile, "read", spy)
    return found


# The filter bank


@pytest.mark.parametrize("rate, mels", [(16000, 23), (16000, 64), (8000, 40), (48000, 128)])
def test_log_mel_is_kaldis(rate, mels):
    kaldi = pytest.importorskip("kaldi_native_fbank")
    options = kaldi.FbankOptions()
    options.frame_opts.samp_freq = rate
    options.frame_opts.dither = 0
    options.frame_opts.window_type = "hanning"
    options.mel_opts.num_bins = mels  # it refuses 128 at 16 kHz, where some stay empty
    options.htk_compat = True
    online = kaldi.OnlineFbank(options)
    wave = noise(rate + 77) + 0.3
    online.accept_waveform(rate, wave.tolist())
    online.input_finished()
    expected = np.stack([online.get_frame(i) for i in range(online.num_frames_ready)])
    np.testing.assert_allclose(audio.log_mel(wave, rate, mels), expected, atol=5e-4)


@pytest.mark.parity
@pytest.mark.parametrize(
    "wave", [noise(32000) + 0.2, tone(700, 16000), noise(20001, scale=1e-4), np.zeros(4000)]
)
def test_log_mel_is_that_of_asts_feature_extractor(wave):
    from transformers import audio_utils as utils

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of empty filters
        bank = utils.mel_filter_bank(
            257, 128, 20, 8000, 16000, None, "kaldi", triangularize_in_mel_space=True
        )
    window = utils.window_function(400, "hann", periodic=False)
    expected = utils.spectrogram(
        wave, window, 400, 160, 512, power=2.0, center=False, preemphasis=0.97, mel_filters=bank,
        log_mel="log", mel_floor=2.0**-23, remove_dc_offset=True,
    ).T  # fmt: skip
    actual = audio.log_mel(wave)
    assert actual.dtype == np.float32 and actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, atol=1e-5)


@pytest.mark.parametrize("samples, frames", [(1, 1), (399, 1), (400, 1), (559, 1), (560, 2)])
def test_as_many_frames_as_fit(samples, frames):
    assert audio.log_mel(noise(samples)).shape == (frames, 128)


def test_silence_is_the_floor():
    assert (audio.log_mel(np.zeros(800)) == np.float32(audio.PADDING)).all()
    np.testing.assert_allclose(audio.PADDING, -15.9424, atol=1e-4)


# Decoding


@pytest.mark.parametrize("hertz", [500, 1000, 3000])
@pytest.mark.parametrize("channels", [1, 2, 6])
@pytest.mark.parametrize("rate", RATES)
def test_a_tone_is_in_its_bin_at_any_rate(tmp_path, rate, channels, hertz):
    wave = np.repeat(tone(hertz, rate)[:, None], channels, 1)
    wave[:, 0] *= channels  # the others cancel no part of it
    mel = lambda f: 1127 * np.log(1 + f / 700)
    expected = (mel(hertz) - mel(20)) / (mel(8000) - mel(20)) * 129 - 1
    decoded = audio.decode(write(tmp_path / "a.wav", wave / channels, rate))
    features = audio.log_mel(decoded)[2:-2]
    assert np.abs(features.argmax(-1) - expected).max() <= 1


@pytest.mark.parametrize("rate", [*RATES, 44101])
def test_resampling_keeps_duration_and_wave(rate):
    for samples in (rate, rate // 3 + 5):
        wave = audio.decode((noise(samples), rate))
        assert wave.dtype == np.float32 and len(wave) == -(-samples * 16000 // rate)
    wave = audio.decode((tone(1000, rate), rate))
    np.testing.assert_allclose(wave[50:-50], tone(1000, 16000)[50:-50], atol=3e-3)


def test_frequencies_above_half_the_rate_are_gone():
    wave = audio.decode((tone(15000, 44100), 44100))
    assert np.abs(wave[50:-50]).max() < 2e-3


@pytest.mark.parametrize("kind", audio_files.EXTENSIONS)
def test_every_kind_of_file(tmp_path, kind):
    wave = tone(440, 16000, 2)
    decoded = audio.decode(write(tmp_path / f"a.{kind}", wave))
    middle = slice(4000, 28000)
    np.testing.assert_allclose(decoded[middle], wave[middle], atol=0.02)


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
def test_integers_are_scaled(tmp_path, subtype):
    wave = tone(440, 16000)
    decoded = audio.decode(write(tmp_path / "a.wav", wave, subtype=subtype))
    np.testing.assert_allclose(decoded, wave, atol=1 / 100)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.float16, np.float64])
def test_arrays_like_files(tmp_path, dtype):
    wave = np.stack([tone(440, 44100), 0.3 * tone(900, 44100)], 1)
    half = {np.uint8: 2**7, np.int16: 2**15, np.int32: 2**31}.get(dtype, 1)
    values = (wave * half + half * (dtype == np.uint8)).astype(dtype)
    expected = audio.decode(write(tmp_path / "a.wav", wave, 44100, "FLOAT"))
    np.testing.assert_allclose(audio.decode((values, 44100)), expected, atol=1 / 100)
    np.testing.assert_array_equal(
        audio.decode((values, 44100), choose=part(0.25, 0.5)),
        audio.decode((values[11025:33075], 44100)),
    )


def test_mono_without_offset():
    left, right = noise(1000, seed=1), noise(1000, seed=2)
    expected = (left + right) / 2
    decoded = audio.decode((np.stack([left, right], 1) + 0.25, 16000))
    np.testing.assert_allclose(decoded, expected - expected.mean(), atol=1e-6)


@pytest.mark.parametrize("kind", ["wav", "flac", "ogg", "mp3"])
@pytest.mark.parametrize("rate", [16000, 44100])
def test_a_part_is_that_of_the_whole(tmp_path, reads, kind, rate):
    path = write(tmp_path / f"a.{kind}", noise(20 * rate), rate)
    whole = audio.decode(path)
    middle = audio.decode(path, choose=part(7, 3))
    assert reads == [(0, 20 * rate), (7 * rate, 3 * rate)]
    expected = whole[7 * 16000 : 10 * 16000]
    inner = slice(10, -10) if rate != 16000 else slice(None)
    difference = (middle - expected)[inner]
    np.testing.assert_allclose(difference, difference.mean(), atol=1e-6)
    np.testing.assert_allclose(
        audio.log_mel(middle)[1:-1], audio.log_mel(expected)[1:-1], atol=1e-3
    )
    assert len(audio.decode(path, choose=part(19.5, 3))) == 8000


# Windows

NEED = 160 * 31 + 400  # samples of 32 frames


def train(sound, rng, **changes):
    data = dict(size=(32, 64), rate=16000, roll=False, magnitude=False, repeats=1) | changes
    (features,) = audio.train_views(sound, data, rng)
    return features


def clips_of(sound, clips=1, size=(32, 64)):
    return np.stack([*audio.eval_views(sound, dict(size=size, rate=16000), clips)])


@pytest.mark.parametrize("rate", [16000, 44100])
def test_train_reads_a_window_and_reaches_both_ends(tmp_path, reads, rate):
    length = 3 * NEED * rate // 16000
    path, rng = write(tmp_path / "a.wav", noise(length), rate), np.random.default_rng(0)
    for _ in range(300):
        train(path, rng)
    starts, counts = np.array(reads).T
    assert set(counts) == {-(-NEED * rate // 16000)}
    assert starts.min() < length / 100 and (starts + counts).max() > length * 0.99
    assert stats.kstest(starts / (length - counts[0]), "uniform").pvalue > 0.01
    reads.clear()
    features = train(path, np.random.default_rng(5))
    whole, _ = soundfile.read(path)
    wave = audio.decode((whole[reads[0][0] :][: reads[0][1]], rate))
    np.testing.assert_allclose(features[..., 0], audio.log_mel(wave, mels=64), atol=1e-3)


def test_the_generator_alone_decides(tmp_path):
    path = write(tmp_path / "a.flac", noise(44100 * 3), 44100)
    make = lambda seed: train(
        path, np.random.default_rng(seed), size=(128, 128), roll=True, magnitude=True
    )
    assert make(1).dtype == np.float32 and make(1).shape == (128, 128, 1)
    np.testing.assert_array_equal(make(1), make(1))
    assert (make(1) != make(2)).any()


def test_an_hour_costs_a_window(tmp_path, reads):
    path = tmp_path / "a.wav"
    with soundfile.SoundFile(path, "w", 8000, 1, "PCM_U8") as file:
        for _ in range(60):
            file.write(np.zeros(8000 * 60, np.float32))
    train(path, np.random.default_rng(0))
    clips_of(path, 3)
    assert sum(count for _, count in reads) == 4 * NEED / 2


def test_roll_is_uniform():
    frames = 198
    click = np.zeros(160 * (frames - 1) + 400, np.float32)
    click[:8] = 1
    make = functools.partial(train, (click, 16000), size=(frames, 16), roll=True)
    at = [make(np.random.default_rng(i))[..., 0].sum(-1).argmax() for i in range(300)]
    assert stats.kstest(np.array(at) / frames, "uniform").pvalue > 0.01
    wave = noise(7920) - noise(7920).mean()  # 48 frames
    rng = np.random.default_rng(3)
    rng.integers(1)  # there is one window
    expected = audio.log_mel(np.roll(wave, rng.integers(7920)), mels=16)
    actual = train((wave, 16000), np.random.default_rng(3), size=(48, 16), roll=True)
    np.testing.assert_allclose(actual[..., 0], expected, atol=1e-3)


def test_magnitude_is_beta():
    wave = noise(NEED)
    make = functools.partial(train, (wave, 16000), size=(32, 40), magnitude=True)
    quiet = make(np.random.default_rng(0), magnitude=False)
    gains = []
    for i in range(300):
        shift = make(np.random.default_rng(i)) - quiet
        np.testing.assert_allclose(shift, shift[0, 0, 0], atol=1e-4)
        gains.append(np.exp(shift.mean() / 2))  # energies are squares
    assert stats.kstest(np.array(gains) - 0.5, stats.beta(10, 10).cdf).pvalue > 0.01


def test_clips_are_evenly_spread(tmp_path, reads):
    path = write(tmp_path / "a.wav", noise(NEED + 10000))
    for clips, starts in [(1, [5000]), (2, [0, 10000]), (5, [0, 2500, 5000, 7500, 10000])]:
        reads.clear()
        features = clips_of(path, clips)
        assert features.shape == (clips, 32, 64, 1) and features.dtype == np.float32
        assert reads == [(start, NEED) for start in starts]
    wave = audio.decode(path, choose=part(0, NEED / 16000))
    np.testing.assert_allclose(features[0, ..., 0], audio.log_mel(wave, mels=64), atol=1e-3)


@pytest.mark.parametrize("samples, frames", [(5, 1), (300, 1), (2000, 11), (NEED - 1, 31)])
def test_a_short_sound_is_followed_by_padding(samples, frames):
    sound = (noise(samples), 16000)
    expected = audio.log_mel(audio.decode(sound), mels=64)
    clips = clips_of(sound, 2)
    for features in (train(sound, np.random.default_rng(0)), *clips):
        assert features.shape == (32, 64, 1)
        np.testing.assert_array_equal(features[:frames, :, 0], expected)
        assert (features[frames:] == np.float32(audio.PADDING)).all()


# Bad sounds


@pytest.mark.parametrize("value", [0.0, 0.7])
def test_a_constant_sound_is_silent(tmp_path, value):
    path = write(tmp_path / "a.wav", np.full(44100, value), 44100)
    rng = np.random.default_rng(0)
    options = dict(roll=True, magnitude=True)
    for features in (train(path, rng, **options), clips_of(path)):
        assert (features == np.float32(audio.PADDING)).all()


def unreadable(tmp_path):
    yield "missing", tmp_path / "missing.wav"
    yield "folder", tmp_path
    for kind in audio_files.EXTENSIONS:
        (tmp_path / f"empty.{kind}").write_bytes(b"")
        (tmp_path / f"text.{kind}").write_bytes(b"this is not a sound, but some text\n" * 9)
        yield f"empty {kind}", tmp_path / f"empty.{kind}"
        yield f"text {kind}", tmp_path / f"text.{kind}"
        yield f"stub {kind}", tmp_path / f"stub.{kind}"
        write(tmp_path / f"stub.{kind}", noise(16000))
        (tmp_path / f"stub.{kind}").write_bytes((tmp_path / f"stub.{kind}").read_bytes()[:20])
    yield "no samples", write(tmp_path / "none.wav", np.zeros(0))
    for value in (np.nan, np.inf, 1e30):
        wave = noise(1000)
        wave[3] = value
        yield f"{value} in a file", write(tmp_path / f"{value}.wav", wave, subtype="FLOAT")
        yield f"{value}", (wave, 16000)
    yield "overflow", (np.full(999, 1e300), 16000)
    yield "slow", write(tmp_path / "slow.wav", noise(99), 7)
    yield "fast", write(tmp_path / "fast.wav", noise(99), 2**30)
    yield "no rate", (noise(99), 0)
    yield "bool", (np.ones(99, bool), 16000)
    yield "int64", (np.ones(99, np.int64), 16000)
    yield "complex", (np.ones(99, complex), 16000)
    yield "scalar", (np.float32(1), 16000)
    yield "cube", (np.ones((9, 9, 9)), 16000)
    yield "channels first", (np.ones((2, 16000)), 16000)
    yield "empty array", (np.zeros((0, 2)), 16000)
    yield "no channels", (np.zeros((5, 0)), 16000)


def test_unreadable_sounds(tmp_path):
    for what, sound in unreadable(tmp_path):
        for read in (
            audio.decode,
            lambda sound: train(sound, np.random.default_rng(0)),
            clips_of,
        ):
            with pytest.raises(Unreadable) as error:
                read(sound)
            message = str(error.value)
            assert message and "\n" not in message and str(tmp_path) not in message, what


@pytest.mark.parametrize("kind", audio_files.EXTENSIONS)
def test_a_truncated_file_gives_what_is_there_or_is_unreadable(tmp_path, kind):
    path = tmp_path / f"a.{kind}"
    write(path, noise(160000))
    head = audio.decode(path, choose=part(0, 1))
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    np.testing.assert_allclose(audio.decode(path, choose=part(0, 1)), head, atol=1e-3)
    for i in range(20):
        try:
            assert np.isfinite(train(path, np.random.default_rng(i))).all()
        except Unreadable as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize("total", [b"\x00\x00\x00\x00\x00", b"\x0f\xff\xff\xff\xff"])
def test_a_header_that_lies(tmp_path, total):
    path = tmp_path / "a.flac"
    write(path, noise(16000))
    data = bytearray(path.read_bytes())
    data[21] = data[21] & 0xF0 | total[0]  # the 36 bits of STREAMINFO that count samples
    data[22:26] = total[1:]
    path.write_bytes(data)
    with pytest.raises(Unreadable, match="does not say how long"):
        train(path, np.random.default_rng(0))


def test_without_soundfile(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(ImportError, match=r"needs soundfile: pip install 'mae_jax\[audio\]'"):
        audio.decode(tmp_path / "a.wav")
    assert len(audio.decode((noise(50), 16000))) == 50


# Files


def fill(root, *names):
    for k, name in enumerate(names):
        write(root / name, noise(3000 + 10 * k, seed=k))
    return str(root)


def listing(source):
    """The class of each file, or its classes if it may have several."""
    labels, classes = [source[i]["label"] for i in range(len(source))], source.classes
    named = lambda k: [classes[c] for c in np.flatnonzero(k)] if np.ndim(k) else classes[k]
    return {
        name: None if np.ndim(label) == 0 and label < 0 else named(label)
        for name, label in zip(source.names, labels, strict=True)
    }


def test_folders_are_splits_and_classes(tmp_path):
    path = fill(tmp_path, "train/dog/a.wav", "train/cat/b.FLAC", "val/dog/c.ogg", "val/emu/d.mp3")
    (tmp_path / "train/dog/a.txt").write_text("no sound")
    train, test = audio_files.sounds(path, "train"), audio_files.sounds(path, "test")
    assert listing(train) == {"train/cat/b.FLAC": "cat", "train/dog/a.wav": "dog"}
    assert listing(test) == {"val/dog/c.ogg": "dog", "val/emu/d.mp3": "emu"}
    assert train.classes == test.classes == ("cat", "dog", "emu")
    assert train[1] == {"image": str(tmp_path / "train/dog/a.wav"), "label": 1}
    assert train.name(1) == "train/dog/a.wav" and len(train) == 2


def test_one_in_ten_is_held_out(tmp_path):
    path = fill(tmp_path, *(f"{k}.wav" for k in range(40)))
    train, test = audio_files.sounds(path, "train"), audio_files.sounds(path, "test")
    assert train.classes == () and train[0]["label"] == -1
    assert len(train) + len(test) == 40 and 0 < len(test) < 12
    assert not set(train.names) & set(test.names)


def test_the_content_of_a_file_is_read_like_the_file(tmp_path):
    path = write(tmp_path / "a.flac", noise(9000))
    content = Path(path).read_bytes()
    np.testing.assert_array_equal(audio.decode(content, 8000), audio.decode(path, 8000))
    with pytest.raises(Unreadable, match="not a readable sound"):
        audio.decode(b"nonsense")


def test_one_label_each(tmp_path):
    path = fill(tmp_path, "x/a.wav", "x/b, c.wav", "y/d.wav", "y/e.wav")
    text = 'file,label\r\n./x/a.wav,dog;rain\r\n"x/b, c.wav", cat\r\n\r\ny/d.wav,\r\n'
    (tmp_path / "labels.csv").write_text(text, "utf-8-sig")
    source = audio_files.sounds(path, "all")
    assert listing(source) == {"x/a.wav": "dog;rain", "x/b, c.wav": "cat", "y/d.wav": None}
    assert source.classes == ("cat", "dog;rain")
    assert source[0]["label"] == 1 and source[2]["label"] == -1


def test_any_number_of_labels(tmp_path):
    path = fill(tmp_path, "train/a.wav", "train/b.wav", "train/c.wav", "test/d.wav", "test/e.wav")
    lines = ["file,labels", "test/d.wav,wind", "train/a.wav,dog; rain", "train/b.wav,"]
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    train, test = audio_files.sounds(path, "train"), audio_files.sounds(path, "test")
    assert listing(train) == {"train/a.wav": ["dog", "rain"], "train/b.wav": []}
    assert listing(test) == {"test/d.wav": ["wind"]}
    assert train.classes == ("dog", "rain", "wind")
    assert train[0]["label"].dtype == np.uint8
    assert [train[i]["label"].tolist() for i in (0, 1)] == [[1, 1, 0], [0, 0, 0]]


def test_a_table_is_split_like_a_folder(tmp_path):
    path = fill(tmp_path, *(f"{k}.wav" for k in range(60)))
    splits = {split: audio_files.sounds(path, split).names for split in ("train", "test")}
    rows = [f"{k}.wav,{'even' if k % 2 == 0 else 'odd'}" for k in range(60) if k % 3]
    (tmp_path / "labels.csv").write_text("\n".join(["file,label", *rows]))
    for split, files in splits.items():
        source = audio_files.sounds(path, split)
        assert source.names == tuple(f for f in files if int(f[:-4]) % 3)
        assert source.classes == ("even", "odd")
    (tmp_path / "labels.csv").write_text(f"file,label\n{splits['train'][0]},a\n")
    with pytest.raises(ValueError, match="labels.csv names no sounds of split 'test': use 'all'"):
        audio_files.sounds(path, "test")


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "starts with '': write 'file,label'"),
        ("a.wav,dog\n", "starts with 'a.wav,dog': write 'file,label'"),
        ("file,label\na.wav,dog,cat\n", "3 columns instead of 2 in line 2: .* double quotes"),
        ("file,label\na.wav\n", "1 columns instead of 2 in line 2"),
        ("file,label\na.wav,x\n./a.wav,y\n", "names 'a.wav' twice"),
        ("file,label\nb.wav,x\nc.wav,y\na.wav,z\n", "names 'b.wav' and 1 more, but there is no"),
        (
            "file,label\nlabels.csv,x\n",
            "names 'labels.csv', but there is no such file among the sounds",
        ),
    ],
)
def test_mistakes_in_a_table(tmp_path, text, message):
    path = fill(tmp_path, "a.wav", "z.wav")
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        audio_files.sounds(path, "train")


def test_mistakes_in_a_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="'audio:.*there is no folder .*missing"):
        audio_files.sounds(f"{tmp_path}/missing", "train")
    with pytest.raises(FileNotFoundError, match="no sounds in .*wav, flac"):
        audio_files.sounds(str(tmp_path), "train")
    with pytest.raises(ValueError, match="no split 'dev'"):
        audio_files.sounds(fill(tmp_path, "a.wav"), "dev")
    with pytest.raises(ValueError, match="too few sounds for split 'test': use 'all'"):
        audio_files.sounds(str(tmp_path), "test")


def test_picklable_and_the_same_in_threads(tmp_path):
    source = audio_files.sounds(fill(tmp_path, *(f"{k}.flac" for k in range(8))), "all")
    again = pickle.loads(pickle.dumps(source))
    assert again.names == source.names and again[3] == source[3]
    make = lambda i: train(
        source[i % 8]["image"], np.random.default_rng(i), size=(16, 32), rate=8000, roll=True
    )
    with ThreadPoolExecutor(8) as pool:
        for i, features in enumerate(pool.map(make, range(64))):
            np.testing.assert_array_equal(features, make(i))


def test_batches_of_sounds(tmp_path, caplog):
    path = fill(tmp_path, "a.wav", "b.wav", "c.wav")
    (tmp_path / "labels.csv").write_text("file,labels\na.wav,x;y\nb.wav,y\nc.wav,\n")
    source = audio_files.sounds(path, "all")
    load = transforms.eval_transform(dict(modality="audio", size=(16, 32), rate=16000))
    (batch,) = pipeline.evaluation_batches(source, load, batch_size=3)
    assert batch["image"].shape == (3, 16, 32, 1) and batch["image"].dtype == np.float32
    assert batch["label"].tolist() == [[1, 1], [0, 1], [0, 0]]
    (tmp_path / "b.wav").write_bytes(b"")
    (batch,) = pipeline.evaluation_batches(source, load, batch_size=3)
    assert batch["valid"].tolist() == [True, False, True]
    assert "1 of 3 examples are left out: cannot read 'b.wav': not a" in caplog.text
