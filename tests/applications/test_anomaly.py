"""Detectors: what is unlike good examples has high scores, and few good examples do."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_models
from scipy import ndimage

from mae_jax.applications import anomaly, fitted_folder
from mae_jax.applications.anomaly import calibration, coreset, score_maps, scorers
from mae_jax.applications.anomaly.calibration import COMBINED, Calibration
from mae_jax.applications.anomaly.fitting import Settings
from mae_jax.data import sources
from mae_jax.data.bad_examples import Unreadable
from mae_jax.distributed import device_mesh
from mae_jax.evaluators import loaded_model
from mae_jax.evaluators.features import Feature
from mae_jax.models import build

# All batches have 4 tiles, on 4 devices, and are compiled once.
SETTINGS = Settings(false_alarms=0.2, memory=40, tiles=anomaly.Tiles(0.5, 4))
SHALLOW = (
    "MaskedAutoencoder",
    tiny_models.TINY | tiny_models.DECODER | dict(depth=1, decoder_depth=1, norm_pix=False),
)
DATA = dict(size=(16, 16), mean=(0.5,) * 3, std=(0.25,) * 3)
DEFECT = (slice(8, 16), slice(8, 16))  # of the values; cells 2 and 3 of both sides


def texture(seed: int, sides=(16, 22)) -> np.ndarray:
    return np.random.default_rng(seed).integers(90, 150, (*sides, 3)).astype(np.uint8)


def damaged(seed: int) -> np.ndarray:
    x = texture(seed)
    x[DEFECT] = 200
    return x


def source(inputs) -> sources.Source:
    return sources.Examples(len(inputs), lambda i: dict(image=inputs[i], label=-1), (), "input")


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    params = jax.tree.map(lambda x: 0.2 * x, tiny_models.random_params(build.model(*SHALLOW)))
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    tiny_models.export(path, *SHALLOW, params)
    return loaded_model.of(str(path), **DATA)


@pytest.fixture(scope="module")
def detector(loaded):
    return anomaly.fit(loaded, [texture(i) for i in range(12)], settings=SETTINGS)


@pytest.fixture(scope="module")
def folder(detector, tmp_path_factory):
    path = str(tmp_path_factory.mktemp("detector") / "x")
    detector.save(path)
    return path


def test_a_defect_has_the_highest_score_where_it_lies(detector):
    inputs = [*map(texture, range(20, 24)), damaged(24)]
    found = [x for _, x in detector.scan(source(inputs))]
    for name, limit in detector.thresholds.items():
        scores = [x.scores[name] for x in found]
        assert np.argmax(scores) == 4 and scores[4] > limit
        highest = found[4].maps[name]
        assert highest.shape == (4, 6)  # the last patch reaches beyond the end
        row, column = np.unravel_index(np.argmax(highest), highest.shape)
        assert row in (2, 3) and column in (2, 3)


def test_scores_do_not_depend_on_batches_or_devices(detector):
    inputs = [texture(30), damaged(31), texture(32, (40, 33)), texture(33)]
    run = lambda x: [[*s.scores.values()] for _, s in x.scan(source(inputs))]
    expected, alone = run(detector), [*detector.score(inputs[1]).scores.values()]
    np.testing.assert_allclose(alone, expected[1], rtol=1e-4, atol=1e-4)
    one = detector.loaded._replace(mesh=device_mesh.make_mesh(devices=jax.devices()[:1]))
    one = one._replace(params=jax.device_put(one.params, jax.devices()[0]))
    other = dataclasses.replace(detector, loaded=one).in_batches(3)
    np.testing.assert_allclose(run(other), expected, rtol=2e-4, atol=1e-4)


def test_a_saved_detector_has_the_same_scores(detector, folder):
    again = anomaly.Detector.load(folder)
    x = damaged(40)
    found, expected = again.score(x), detector.score(x)
    assert found.scores == expected.scores and again.thresholds == detector.thresholds
    for name, values in expected.maps.items():
        np.testing.assert_array_equal(found.maps[name], values)


def test_a_detector_of_another_version_or_damaged_is_refused(folder, tmp_path):
    fitted = fitted_folder.read(folder, "detector")
    for change, message in (({"version": 99}, "version 99"), ({"feature": {"x": 1}}, "damaged")):
        path = str(tmp_path / message)
        fitted_folder.write(path, "detector", fitted._replace(about=fitted.about | change))
        with pytest.raises(ValueError, match=message):
            anomaly.Detector.load(path)
    arrays = {name: x for name, x in fitted.arrays.items() if name != "memory.std"}
    fitted_folder.write(str(tmp_path / "x"), "detector", fitted._replace(arrays=arrays))
    with pytest.raises(ValueError, match="damaged"):
        anomaly.Detector.load(str(tmp_path / "x"))


def test_an_unreadable_input_does_not_stop_others(detector):
    inputs = [texture(50), texture(51)[:3], texture(52)]
    found = [x for _, x in detector.scan(source(inputs))]
    assert isinstance(found[1], Unreadable) and "smaller than a patch" in str(found[1])
    assert all(isinstance(found[i], anomaly.Scores) for i in (0, 2))
    with pytest.raises(Unreadable):
        detector.score(inputs[1])


def test_settings_that_do_not_fit_are_refused_before_any_work(loaded):
    for count, changes, message in (
        (7, {}, "needs 8 good examples"),
        (1, {}, "there are 1"),
        (12, dict(false_alarms=1.0), "between 0 and 1"),
        (12, dict(held_out=0.0), "--held-out"),
        (12, dict(block=1), "--block=1"),
        (12, dict(memory=0), "--memory=0"),
        (12, dict(memory=10**6, max_memory=0.5), "--memory=520833 or less"),
    ):
        settings = SETTINGS._replace(**changes)
        with pytest.raises(ValueError, match=message):
            anomaly.fit(loaded, [texture(0)] * count, settings=settings)


def test_the_memory_is_told_before_it_is_built(loaded, caplog):
    class Stop(Exception):
        pass

    def load(i):
        raise Stop

    with caplog.at_level("INFO", "mae_jax"), pytest.raises(Stop):
        anomaly.fit(loaded, sources.Examples(12, load, (), "x"), settings=SETTINGS)
    assert "40 features of 24 numbers take 3.84 kB" in caplog.text


@pytest.mark.parametrize("share", [0.01, 0.05, 0.1, 0.2, 1 / 3])
def test_a_threshold_has_the_exact_rank(share):
    n = calibration.needed(share)
    scores = np.random.default_rng(0).permutation(np.arange(1.0, n + 1))
    assert calibration.threshold(scores, share) == math.ceil((n + 1) * (1 - share) - 1e-9)
    assert calibration.threshold(scores, share) <= n
    if n > 2:
        with pytest.raises(ValueError, match=f"needs the scores of {n} good"):
            calibration.threshold(scores[:-1], share)


def test_false_alarms_are_as_rare_as_promised():
    """Over 20 draws of skewed scores: each scorer and the combination, within two errors."""
    share, rates = 0.05, []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        draw = lambda n, rng=rng: np.stack([rng.lognormal(size=n), rng.gamma(2, 5, n)], 1)
        found = Calibration.of(["a", "b"], draw(99), share)
        new = draw(4000).astype(np.float32)
        columns = np.column_stack([new, found.combine(new)])
        rates.append((columns > np.array([*found.thresholds.values()])).mean(0))
    error = np.std(rates, axis=0, ddof=1) / np.sqrt(len(rates))
    assert (np.abs(np.mean(rates, axis=0) - share) < 2 * error).all()
    assert (error < 0.01).all()  # so that the test could fail


def test_the_combination_goes_on_beyond_the_calibration():
    found = Calibration.of(["a", "b"], np.random.default_rng(0).normal(size=(50, 2)), 0.1)
    x = np.linspace(0, 100, 9, dtype=np.float32)[:, None].repeat(2, 1)
    assert (np.diff(found.combine(x)) > 1).all()
    np.testing.assert_allclose(found.combine(jnp.asarray(x)), found.combine(x), rtol=1e-6)
    assert (Calibration.of(["a"], np.ones((5, 1)), 0.5).scale == 1).all()


def test_a_coreset_covers_more_than_a_random_choice():
    x = np.random.default_rng(0).normal(size=(500, 6)).astype(np.float32) ** 3
    chosen = coreset.greedy(x, 150, seed=1)
    assert len(set(chosen.tolist())) == 150
    np.testing.assert_array_equal(chosen, coreset.greedy(x, 150, seed=1))
    assert (chosen != coreset.greedy(x, 150, seed=2)).any()
    gap = lambda index: np.square(x[:, None] - x[None, index]).sum(-1).min(1).max()
    random = np.random.default_rng(3).choice(500, 150, replace=False)
    assert gap(chosen) < 0.5 * gap(random)
    distance = np.square(x[:, None] - x[None, chosen[:149]]).sum(-1).min(1)
    assert distance.argmax() == chosen[149]  # the farthest of those before
    np.testing.assert_array_equal(coreset.greedy(x[:9], 150, seed=1), np.arange(9))


def test_a_coreset_of_wide_vectors_covers_them_too():
    x = np.random.default_rng(0).normal(size=(300, 200)).astype(np.float32)
    x[:10] *= 5  # far from all others, and so from each other
    assert set(range(10)) <= set(coreset.greedy(x, 30, seed=0).tolist())


def test_a_reservoir_does_not_depend_on_blocks():
    x = np.random.default_rng(0).normal(3, 2, size=(1000, 2)).astype(np.float32)
    samples = []
    for block in (1000, 7):
        found = coreset.Reservoir(50, 2, seed=4)
        for first in range(0, 1000, block):
            found.add(x[first : first + block])
        samples.append(found.sample)
        mean, std = found.moments()
        np.testing.assert_allclose(mean, x.mean(0), rtol=1e-5)
        np.testing.assert_allclose(std, x.std(0), rtol=1e-5)
    np.testing.assert_array_equal(*samples)
    few = coreset.Reservoir(50, 2, seed=4)
    few.add(x[:20])
    np.testing.assert_array_equal(few.sample, x[:20])


def test_a_reservoir_is_a_uniform_sample():
    counts, numbers = np.zeros(40), np.arange(40, dtype=np.float32)[:, None]
    for seed in range(2000):
        found = coreset.Reservoir(10, 1, seed)
        found.add(numbers)
        counts[found.sample[:, 0].astype(int)] += 1
    assert np.abs(counts - 500).max() < 4.5 * math.sqrt(2000 * 0.25 * 0.75)


def test_distances_equal_those_of_numpy():
    rng = np.random.default_rng(0)
    x, memory = (rng.normal(size=s).astype(np.float32) for s in ((2, 30, 8), (1100, 8)))
    x[1, 3] = memory[1099]
    found = np.asarray(jax.jit(scorers.nearest)(x, memory))
    wide = np.sqrt(np.square(x[:, :, None].astype(float) - memory).mean(-1)).min(-1)
    np.testing.assert_allclose(found, wide, rtol=1e-5, atol=1e-7)
    assert found[1, 3] == 0


def test_a_local_mean_leaves_out_what_is_missing():
    x = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)
    kernel = np.ones((3, 3))
    count = ndimage.convolve(np.ones_like(x), kernel, mode="constant")
    expected = ndimage.convolve(x, kernel, mode="constant") / count
    np.testing.assert_allclose(score_maps.local_mean(x, (0, 1)), expected, rtol=1e-5, atol=1e-6)
    x[2, 2] = np.nan
    found = score_maps.local_mean(x, (0, 1))
    assert np.isnan(found[2, 2]) and np.isfinite(found).sum() == 29
    np.testing.assert_allclose(found[1, 1], np.nanmean(x[:3, :3]), rtol=1e-5)
    np.testing.assert_allclose(score_maps.local_mean(jnp.asarray(x), (0, 1)), found, rtol=1e-5)


def test_a_score_is_the_mean_of_the_highest_patches():
    x = np.random.default_rng(0).permutation(250).astype(np.float32).reshape(1, 10, 25)
    assert score_maps.score(x) == (249 + 248 + 247) / 3  # 1 % of 250 is 2.5, and 3 whole ones
    x[x >= 200] = np.nan
    assert score_maps.score(x) == (199 + 198) / 2 == score_maps.score(jnp.asarray(x))
    assert np.isnan(score_maps.score(np.full((1, 3), np.nan, np.float32)))


def test_masks_share_out_the_tokens_of_all_channel_groups():
    model = build.model(SHALLOW[0], SHALLOW[1] | dict(channel_groups=((0, 1), (2,))))
    made = scorers.reconstruction(model, (16, 16), 0.75, 0)
    assert made.order.shape == (4, 1, 32) and made.keep == 8
    with pytest.raises(ValueError, match="another --size"):
        scorers.reconstruction(build.model(*SHALLOW), (4, 67 * 4), 0.75, 0)


def test_a_classifier_has_one_scorer_which_is_told(caplog):
    kind, fields = tiny_models.MODELS["encoder"]
    model = build.model(kind, fields | dict(depth=1))
    params = jax.tree.map(lambda x: 0.2 * x, tiny_models.random_params(model))
    inputs = [texture(i, (16, 16)) for i in range(8)]
    with caplog.at_level("INFO", "mae_jax"):
        found = anomaly.fit(model, inputs, params, SETTINGS, **DATA)
    assert [*found.scorers] == ["memory"] and "no decoder" in caplog.text
    assert found.score(damaged(9)).scores[COMBINED] > found.thresholds[COMBINED]
    with pytest.raises(ValueError, match="no checkpoint"):
        found.save("nowhere")


def test_volumes_with_missing_values():
    model = build.model(SHALLOW[0], SHALLOW[1] | dict(patch=(4,) * 3))
    params = tiny_models.random_params(model, (8,) * 3, 1)
    params = jax.tree.map(lambda x: 0.2 * x, params)
    data = dict(size=(8,) * 3, mean=(0.5,), std=(0.25,), nodata="nan")

    def volume(seed):
        x = np.random.default_rng(seed).random((8, 8, 12, 1)).astype(np.float32)
        x[:4, :4, :4] = np.nan
        return x

    found = anomaly.fit(model, [volume(i) for i in range(8)], params, SETTINGS, **data)
    bad = volume(9)
    bad[4:, 4:, 4:8] = 3
    good, bad = found.score(volume(10)), found.score(bad)
    for name, limit in found.thresholds.items():
        assert bad.scores[name] > max(limit, good.scores[name])
        assert bad.maps[name].shape == (2, 2, 3)
        np.testing.assert_array_equal(np.isnan(bad.maps[name]).nonzero(), [[0], [0], [0]])
    assert np.isnan(found.score(np.full((8, 8, 8, 1), np.nan, np.float32)).scores[COMBINED])


def test_scores_that_are_not_finite_are_told(detector):
    broken = jax.tree.map(lambda x: x * np.nan, detector.loaded.params)
    broken = dataclasses.replace(detector, loaded=detector.loaded._replace(params=broken))
    with pytest.raises(Unreadable, match="not finite"):
        broken.score(texture(0))


def test_the_default_block_is_two_thirds_up():
    assert [scorers.default_block(depth) for depth in (1, 2, 12, 24)] == [0, 0, 7, 15]
    assert Feature(7, "patches", False).norm is False
