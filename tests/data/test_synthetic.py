import pickle
import subprocess
import sys
import zlib

import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view
from scipy import ndimage, signal, special
from skimage.registration import phase_cross_correlation
from skimage.transform import rescale

from mae_jax.data import sources
from mae_jax.data.sources import samples, synthetic

SOURCES = {
    "pans": (synthetic.pans, (800, 160), (20, 48, 48, 3), np.uint8),
    "tones": (synthetic.tones, (600, 150), (20800,), np.float32),
    "phantoms": (synthetic.phantoms, (400, 100), (24, 24, 24), np.float32),
    "spectra": (synthetic.spectra, (600, 150), (48, 48, 10), np.float32),
}


def values(example):
    image = example["image"]
    return image[0] if isinstance(image, tuple) else image


@pytest.mark.parametrize("kind", SOURCES)
def test_sources_have_the_shapes_they_say(kind):
    source, counts, shape, dtype = SOURCES[kind]
    for split, count in zip(("train", "test"), counts, strict=True):
        part = source(split)
        assert len(part) == count and part.classes == source("train").classes
        for i in (0, 7, count - 1, -1):
            array = values(part[i])
            assert (array.shape, array.dtype) == (shape, dtype)
            assert np.isfinite(array).all() and array.std() > 0.003
        assert len({part.name(i) for i in range(count)}) == count
        with pytest.raises(IndexError):
            part[count]
    with pytest.raises(ValueError, match=f"data '{kind}' has no split 'val': use train or test"):
        sources.open_source(kind, "val", sources.KINDS[kind].modalities[0])


@pytest.mark.parametrize("kind", SOURCES)
def test_examples_are_fixed_and_differ(kind):
    train, test = (SOURCES[kind][0](split) for split in ("train", "test"))
    first = [values(train[i]).tobytes() for i in range(16)]
    copy = pickle.loads(pickle.dumps(train))
    assert [values(copy[i]).tobytes() for i in reversed(range(16))] == first[::-1]
    both = first + [values(test[i]).tobytes() for i in range(16)]
    assert len(set(both)) == len(both)


def test_examples_are_the_same_in_another_process():
    code = (
        "import zlib; from mae_jax.data.sources import synthetic as g\n"
        "for f in (g.pans, g.tones, g.phantoms, g.spectra):\n"
        "  x = f('test')[5]['image']; x = x[0] if isinstance(x, tuple) else x\n"
        "  print(zlib.crc32(x.tobytes()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    here = [zlib.crc32(values(source("test")[5]).tobytes()) for source, *_ in SOURCES.values()]
    assert [int(line) for line in done.stdout.split()] == here, done.stderr


@pytest.mark.parametrize("kind, count", [("pans", 20), ("phantoms", 25), ("spectra", 15)])
def test_labels_are_balanced(kind, count):
    source = SOURCES[kind][0]("test")
    labels = [source[i]["label"] for i in range(len(source))]
    assert np.bincount(labels).tolist() == [count] * len(source.classes)


def test_the_splits_share_no_pixel_of_a_photo():
    for name in samples.PHOTOS:
        whole = samples.photo(name)
        parts = [samples.photo_part(name, split) for split in ("train", "test")]
        np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole)


@pytest.mark.parametrize("kind", ["pans", "spectra"])
@pytest.mark.parametrize("split", ["train", "test"])
def test_only_the_part_of_the_split_is_seen(kind, split, monkeypatch):
    real = samples.photo

    def marked(name):
        photo = np.zeros_like(real(name))
        cut = int(photo.shape[1] * 0.7)
        photo[:, cut:] = 255
        return photo

    monkeypatch.setattr(samples, "photo", marked)
    source = SOURCES[kind][0](split)
    for i in range(0, len(source), 5):
        array = values(source[i])
        if kind == "pans":
            assert (array == (255 if split == "test" else 0)).all()
        else:
            assert array.std(axis=(0, 1)).max() < 0.02  # one mixture and noise


def moves(clip):
    """Row and column steps of the content from frame to frame [19 2], in pixels."""
    gray = clip.mean(-1)
    gray = (gray - gray.mean()) * np.outer(*[np.hanning(48)] * 2)
    pairs = zip(gray, gray[1:], strict=False)
    return np.array([phase_cross_correlation(a, b, upsample_factor=8)[0] for a, b in pairs])


def test_the_motion_of_pans_is_their_label():
    source = synthetic.pans("train")
    found = {name: [] for name in source.classes}
    for i in range(80):
        example = source[i]
        found[source.classes[example["label"]]].append(moves(example["image"]))
    steps = {name: np.median(moved, axis=1) for name, moved in found.items()}  # [10 2] each
    # phase_cross_correlation gives the shift that takes the second frame back to the first
    for name, axis, sign in [("left", 1, -1), ("right", 1, 1), ("up", 0, -1), ("down", 0, 1)]:
        along, across = steps[name][:, axis] * sign, steps[name][:, 1 - axis]
        assert ((along > 0.4) & (along < 2.5) & (np.abs(across) < 0.3)).mean() >= 0.8, name
    for name in ("still", "zoom in", "zoom out"):
        assert (np.abs(steps[name]) < 0.5).mean() >= 0.9, name
    both = [np.mean([(m[:, 1] > 0.4).any() and (m[:, 1] < -0.4).any()]) for m in found["sway"]]
    assert np.mean(both) >= 0.8


def test_the_zoom_of_pans_is_their_label():
    source = synthetic.pans("train")
    nearer = {"zoom in": [], "zoom out": []}
    for i in range(160):
        name = source.classes[i % 8]
        if name in nearer:
            clip = source[i]["image"]
            wide, near = (clip[0], clip[-1]) if name == "zoom in" else (clip[-1], clip[0])
            errors = []
            for a, b in ((wide, near), (near, wide)):  # one of them enlarged is the other
                grown = rescale(a, 1.35, channel_axis=-1, preserve_range=True)
                margin = (grown.shape[0] - 48) // 2
                grown = grown[margin : margin + 48, margin : margin + 48]
                errors.append(np.abs(grown - b).mean())
            nearer[name].append(errors[0] < errors[1])
    assert np.mean(nearer["zoom in"]) >= 0.8 and np.mean(nearer["zoom out"]) >= 0.8


def test_a_single_frame_does_not_tell_the_motion():
    """Row, column and width of a random view are alike in all classes, read off a ramp."""
    height, width = 320, 280
    ramp = np.zeros((height, width, 3), np.uint8)
    ramp[..., 0] = np.arange(height)[:, None] * 255 // height
    ramp[..., 1] = np.arange(width) * 255 // width
    rng, views = np.random.default_rng(0), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(samples, "photo_part", lambda name, split: ramp)
        source = synthetic.pans("train")
        for i in range(800):
            frame = source[i]["image"][rng.integers(20)].astype(float)
            across = frame[..., 1].mean(0)
            views.append([frame[..., 0].mean(), across.mean(), across[-1] - across[0]])
    views = np.array(views).reshape(100, 8, 3)
    mean, spread = views.mean((0, 1)), views.std((0, 1))
    assert (np.abs(views.mean(0) - mean) < 4 * spread / 10).all()  # four standard errors
    np.testing.assert_allclose(views.std(0) / spread, 1, atol=0.3)


@pytest.fixture(scope="module")
def sounds():
    source = synthetic.tones("train")
    return [source[i] for i in range(240)]


def test_tones_have_one_to_three_instruments(sounds):
    labels = np.stack([sound["label"] for sound in sounds])
    assert labels.dtype == np.uint8 and labels.shape == (240, 8)
    assert set(labels.sum(1)) == {1, 2, 3}
    assert (labels[np.arange(240), np.arange(240) % 8] == 1).all()
    assert (np.abs(labels.mean(0) - 0.25) < 0.12).all()  # (1 + 2 / 2) of 8
    for sound in sounds:
        wave, rate = sound["image"]
        assert rate == 16000 and np.abs(wave).max() <= 1


def spectrum(sound):
    """Power [257, frames] in steps of 10 ms and 31 Hz."""
    return signal.spectrogram(sound["image"][0], 16000, nperseg=512, noverlap=352)[2]


def solos(sounds, name):
    label = synthetic.INSTRUMENTS.index(name)
    return [s for s in sounds if s["label"].sum() == 1 and s["label"][label]]


def test_instruments_sound_like_their_names(sounds):
    def track(sound):  # the loudest frequency of the loud frames
        power = spectrum(sound)
        loud = power.sum(0) > 0.1 * power.sum(0).max()
        return power.argmax(0)[loud] * 31.25, power.sum(0)[loud]

    for name in synthetic.INSTRUMENTS:
        assert len(solos(sounds, name)) >= 4
    for sound in solos(sounds, "sine"):
        pitch, power = track(sound)
        assert np.ptp(pitch) < 40 and power.max() < 2 * np.median(power)
    for sound in solos(sounds, "rise"):
        assert (np.diff(track(sound)[0]) >= 0).mean() > 0.95 and np.ptp(track(sound)[0]) > 250
    for sound in solos(sounds, "fall"):
        assert (np.diff(track(sound)[0]) <= 0).mean() > 0.95 and np.ptp(track(sound)[0]) > 250
    for sound in solos(sounds, "tremolo"):
        pitch, power = track(sound)
        assert np.ptp(pitch) < 40 and 2 <= len(signal.find_peaks(power)[0]) <= 7
    for sound in solos(sounds, "noise"):
        power = spectrum(sound).mean(1)
        assert power[128:].sum() > 0.3 * power.sum()  # half of the band
    for sound in solos(sounds, "square"):
        power = spectrum(sound).mean(1)
        k = power.argmax()
        assert 0.05 < power[3 * k - 2 : 3 * k + 3].max() / power[k] < 0.2  # 1/9
        assert power[2 * k - 1 : 2 * k + 2].max() / power[k] < 0.01
    for name in ("pluck", "bell"):
        for sound in solos(sounds, name):
            power = np.convolve(sound["image"][0] ** 2, np.ones(800), "valid")
            assert power[power.argmax() + 3200] < 0.4 * power.max()  # 0.2 s later


def test_noise_is_heard_where_it_is_labelled(sounds):
    high = np.array([np.log(spectrum(s)[224:].sum(0).max()) for s in sounds])  # above 7 kHz
    labelled = np.array([s["label"][synthetic.INSTRUMENTS.index("noise")] for s in sounds]) == 1
    alone = ~labelled & (np.array([s["label"][6] for s in sounds]) == 0)  # bells reach up there
    assert high[labelled].min() > high[alone].max()


def test_phantoms_show_their_kind():
    source = synthetic.phantoms("train")
    border, hollow, deep = {}, {}, {}
    for kind in range(4):
        bright = [ndimage.median_filter(source[i]["image"], 2) > 0.35 for i in range(kind, 120, 4)]
        name = source.classes[kind]
        faces = [b.sum() - b[1:-1, 1:-1, 1:-1].sum() for b in bright]
        border[name] = np.median(faces)
        hollow[name] = np.median([(ndimage.binary_fill_holes(b) & ~b).sum() for b in bright])
        deep[name] = np.median([ndimage.distance_transform_edt(b).max() for b in bright])
    assert max(border, key=border.__getitem__) == "tubes"
    assert max(hollow, key=hollow.__getitem__) == "shells" and hollow["ellipsoids"] == 0
    assert max(deep, key=deep.__getitem__) == "ellipsoids"
    assert deep["ellipsoids"] > 1.3 * deep["plates"]


def test_spectra_are_mixtures_of_four_materials():
    curves, source = synthetic.materials(), synthetic.spectra("train")
    assert curves.shape == (4, 10) and curves.min() > 0 and curves.max() <= 1
    assert np.corrcoef(curves)[np.triu_indices(4, 1)].max() < 0.5
    assert np.abs(np.diff(curves, n=2, axis=1)).max() < 0.6  # smooth
    for i in range(10):
        pixels = source[i]["image"].reshape(-1, 10)
        shares, *_ = np.linalg.lstsq(curves.T, pixels.T, rcond=None)
        rest = pixels - shares.T @ curves
        np.testing.assert_allclose(rest.std(), 0.01 * np.sqrt(6 / 10), rtol=0.05)
        np.testing.assert_allclose(shares.sum(0), 1, atol=0.15)
        assert shares.min() > -0.1


def test_spectra_show_a_window_of_their_photo():
    source = synthetic.spectra("test")
    for i in range(10):
        photo = samples.photo_part(source.classes[i], "test").astype(float)
        red, green, blue = np.moveaxis(ndimage.uniform_filter(photo, (3, 3, 0)) / 255, -1, 0)
        logits = np.stack([red, green, blue, 1 - np.maximum(np.maximum(red, green), blue)], -1)
        expected = special.softmax(6 * logits, axis=-1) @ synthetic.materials()
        windows = sliding_window_view(expected, (48, 48), axis=(0, 1))[..., 4:-4:8, 4:-4:8]
        found = source[i]["image"][4:-4:8, 4:-4:8].transpose(2, 0, 1)  # [10 5 5]
        errors = np.sqrt(((windows - found) ** 2).mean((2, 3, 4)))
        assert errors.min() < 0.015, source.classes[i]  # the noise, and the blur's rounding
