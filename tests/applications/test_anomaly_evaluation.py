"""applications/anomaly: evaluation on MVTec's layout and on arrays, beside baselines."""

import argparse
import json
import math

import cv2
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
import tiny_models
from flax import struct
from PIL import Image
from sklearn.metrics import roc_auc_score

from mae_jax.applications.anomaly import (
    baselines,
    evaluation,
    figures,
    layout,
    run_evaluate,
    scorers,
)
from mae_jax.applications.anomaly.calibration import Calibration
from mae_jax.applications.anomaly.detector import Detector
from mae_jax.applications.anomaly.layout import Example
from mae_jax.data import sources
from mae_jax.evaluators import loaded_model
from mae_jax.models import build


@struct.dataclass
class Level:
    """A scorer without a network: the mean of each patch, times a sign."""

    sign: float

    def __call__(self, model, params, inputs, coordinates):
        x, sides = inputs.values.mean(-1), []
        for n, p in zip(x.shape[1:], model.patch, strict=True):
            sides += [n // p, p]
        maps = x.reshape(-1, *sides).mean(tuple(range(2, 2 + len(sides), 2)))
        return scorers.Scored(self.sign * maps, jnp.ones(len(x), bool))


def detector_of(model, size, **data) -> Detector:
    """A detector with two scorers, of which the threshold is the fifth largest of 19 scores."""
    statistics = dict(size=size, mean=(0.5,), std=(0.25,), channels=1)
    loaded = loaded_model.of(model, {}, **statistics, **data)
    made = {"bright": Level(1.0), "dark": Level(-1.0)}
    scores = np.linspace(0, 1, 19)[:, None] * np.array([[1.0, -1.0]])
    return Detector(loaded, made, Calibration.of(tuple(made), scores, 0.25), {})


@pytest.fixture(scope="module")
def detector() -> Detector:
    return detector_of(tiny_models.model("autoencoder"), (16, 16))


def picture(rng, mask=None, change: int = 0) -> np.ndarray:
    x = rng.integers(90, 160, (24, 20))
    return np.clip(x + (0 if mask is None else change * mask), 0, 255).astype(np.uint8)


def square(y: int, x: int, side: int = 9) -> np.ndarray:
    mask = np.zeros((24, 20), bool)
    mask[y : y + side, x : x + side] = True
    return mask


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    rng = np.random.default_rng(0)
    found = [Example(f"good/{i}", "good", picture(rng)) for i in range(6)]
    for kind, change in (("bright", 60), ("faint", 12)):
        for i in range(4):
            mask = square(*rng.integers(0, 11, 2))
            found.append(Example(f"{kind}/{i}", kind, picture(rng, mask, change), mask))
    return found


@pytest.fixture(scope="module")
def root(tmp_path_factory, examples):
    """The same examples as files: good ones without masks, and masks under both names."""
    root = tmp_path_factory.mktemp("bolts")
    for i, x in enumerate(examples):
        name, ending = x.name.split("/")[1], "_mask.png" if i % 2 else ".png"
        for folder in (root / "test" / x.kind, root / "ground_truth" / x.kind):
            folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(x.value).save(root / "test" / x.kind / f"{name}.png")
        if x.mask is not None:
            mask = Image.fromarray(x.mask * np.uint8(255))
            mask.save(root / "ground_truth" / x.kind / f"{name}{ending}")
    (root / "test" / ".cache").mkdir()
    (root / "test" / "bright" / "notes.txt").write_text("no picture")
    (root / "train" / "good").mkdir(parents=True)
    rng = np.random.default_rng(1)
    for i in range(5):
        Image.fromarray(picture(rng)).save(root / "train" / "good" / f"{i}.png")
    return root


def good_source(count: int = 5) -> sources.Examples:
    rng = np.random.default_rng(1)
    pictures = [picture(rng) for _ in range(count)]
    return sources.Examples(count, lambda i: dict(image=pictures[i], label=-1), (), title="good")


def test_figures_are_those_of_scikit_learn(detector, examples):
    found = evaluation.evaluate(detector, examples, good_source())
    scores, masks = [], []
    for x in examples:
        scores.append(detector.score(x.value))
        masks.append(np.zeros((24, 20), bool) if x.mask is None else x.mask)
    maps = {
        name: [figures.enlarged(s.maps[name], (4, 4), (24, 20)) for s in scores]
        for name in ("bright", "combined")
    }
    of_kind = [i for i, x in enumerate(examples) if x.kind in ("good", "faint")]
    for name, whole in maps.items():
        of_pictures = [s.scores[name] for s in scores]
        labels = [x.kind != "good" for x in examples]
        row = found.details["scorers"][name]
        assert row["image_auroc"] == pytest.approx(roc_auc_score(labels, of_pictures))
        expected = roc_auc_score(np.ravel(masks), np.ravel(whole))
        assert row["pixel_auroc"] == found.metrics[f"{name}_pixel_auroc"] == pytest.approx(expected)
        row = found.details["by_kind"][name]["faint"]
        pick = lambda x: np.ravel([x[i] for i in of_kind])
        assert row["image_auroc"] == pytest.approx(roc_auc_score(pick(labels), pick(of_pictures)))
        assert row["pixel_auroc"] == pytest.approx(roc_auc_score(pick(masks), pick(whole)))
    rows = [row[0] for row in found.rows]
    head = ["all kinds", "bright", "dark", "rank average", "combined", "nearest input"]
    assert rows[:6] == head and rows[-2:] == ["bright", "faint"]
    assert "5 of 5 good examples" in found.text


def test_the_rank_average_is_that_of_all_pictures_and_patches(detector, examples):
    found = evaluation.evaluate(detector, examples)
    scores = [detector.score(x.value) for x in examples]
    ranks = sum(scipy.stats.rankdata([s.scores[name] for s in scores]) for name in detector.scorers)
    labels = [x.kind != "good" for x in examples]
    expected = roc_auc_score(labels, ranks)
    assert found.metrics["rank_average_image_auroc"] == pytest.approx(expected)
    stacked = [np.stack([s.maps[name] for s in scores]) for name in detector.scorers]
    ranks = sum(scipy.stats.rankdata(x).reshape(x.shape) for x in stacked)
    whole = [figures.enlarged(x, (4, 4), (24, 20)) for x in ranks.astype(np.float32)]
    masks = [np.zeros((24, 20), bool) if x.mask is None else x.mask for x in examples]
    expected = roc_auc_score(np.ravel(masks), np.ravel(whole))
    assert found.metrics["rank_average_pixel_auroc"] == pytest.approx(expected, abs=1e-4)
    assert "blur" in found.text and "nearest patch" not in found.text and "--good" in found.text


def test_false_alarms_are_counted_beside_the_promise(detector, examples):
    found = evaluation.evaluate(detector, examples).details["false_alarms"]["bright"]
    good = [detector.score(x.value).scores["bright"] for x in examples if x.kind == "good"]
    limit = detector.thresholds["bright"]
    assert found["above"] == sum(x > limit for x in good) and found["good"] == 6
    assert found["promised"] == 0.25 and found["threshold"] == limit


def test_what_cannot_count_is_told(detector, examples):
    bright = [x for x in examples if x.kind == "bright"]
    levels = bright[3].mask * np.uint8(3)
    levels[0, 0] = 1
    changed = [
        bright[0]._replace(mask=None),
        bright[1]._replace(mask=bright[1].mask[1:]),
        bright[2]._replace(value=b"no picture"),
        bright[3]._replace(mask=levels),
        bright[3]._replace(name="bright/empty", mask=np.zeros((24, 20))),
    ]
    good = [x for x in examples if x.kind == "good"]
    text = evaluation.evaluate(detector, good + changed).text
    assert "bright/0: no mask" in text
    assert "bright/1 (mask (23, 20), input (24, 20)): its mask has another size" in text
    assert "cannot read 'bright/2'" in text and "4 anomalies" in text
    assert "bright/3: its mask has several values" in text
    assert "bright/empty: its mask is empty" in text
    with pytest.raises(ValueError, match="none of 1 examples can be read: cannot read .bright/2."):
        evaluation.evaluate(detector, changed[2:3])


def test_without_masks_only_pictures_are_judged(detector, examples):
    bare = [x._replace(mask=None) for x in examples]
    found = evaluation.evaluate(detector, bare)
    assert found.metrics["bright_image_auroc"] > 0.9
    assert "bright_pixel_auroc" not in found.metrics and "bright_pro" not in found.metrics
    assert "bright/0 and 7 others: no mask" in found.text


def test_volumes_with_mask_arrays():
    fields = tiny_models.TINY | tiny_models.DECODER | dict(patch=(2, 2, 2), norm_pix=False)
    detector = detector_of(build.model("MaskedAutoencoder", fields), (4, 4, 4))
    rng, examples = np.random.default_rng(0), []
    for i in range(6):
        x, mask = rng.normal(size=(5, 8, 6)).astype(np.float32), np.zeros((5, 8, 6), bool)
        if i % 2:
            mask[1:4, 2:6, 1:4] = True
            x[mask] += 3
        kind = "lesion" if i % 2 else "good"
        examples.append(Example(f"{kind}/{i}", kind, x, mask if i % 2 else None))
    good = sources.Examples(2, lambda i: dict(image=examples[2 * i].value, label=-1), ())
    found = evaluation.evaluate(detector, examples, good).details["scorers"]
    for name in ("bright", "nearest patch", "PCA"):
        assert found[name]["image_auroc"] == 1 and found[name]["pixel_auroc"] > 0.75, name
    assert found["dark"]["pixel_auroc"] < 0.25


def test_the_command(detector, root, tmp_path, monkeypatch):
    monkeypatch.setattr(Detector, "load", lambda path, threads: detector)
    parser = argparse.ArgumentParser()
    run_evaluate.add_options(parser)
    places = [f"--json={tmp_path}/found.json", f"--pictures-to={tmp_path}/pages"]
    options = parser.parse_args(["--detector=bolts", f"--data={root}", *places])
    text = run_evaluate.run(options)
    assert "6 good examples and 8 anomalies of 2 kind(s)" in text
    written = json.loads((tmp_path / "found.json").read_text())
    assert f"{written['bright_pro']:.3f}" in text and written["by_kind"]["dark"]["faint"]
    with Image.open(tmp_path / "pages" / "bright.png") as page:
        assert page.width > 5 * 120 and page.height > 4 * 144  # an input, a mask and three maps


def test_examples_of_files_are_those_of_arrays(detector, root, examples):
    found = layout.examples(str(root))
    assert [x.name for x in found] == [f"{x.name}.png" for x in examples]
    assert [x.kind for x in found][:7] == ["good"] * 6 + ["bright"]
    one = evaluation.evaluate(detector, found).details["scorers"]
    assert one == evaluation.evaluate(detector, examples).details["scorers"]


def test_missing_folders_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder .*test"):
        layout.examples(str(tmp_path))
    (tmp_path / "test" / "scratch").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="'good'"):
        layout.examples(str(tmp_path))
    (tmp_path / "test" / "good").mkdir()
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "test" / "good" / "0.png")
    with pytest.raises(FileNotFoundError, match="with anomalies"):
        layout.examples(str(tmp_path))


def test_maps_are_enlarged_linearly_between_the_middles_of_patches():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(5, 4)).astype(np.float32)
    expected = cv2.resize(x, (8, 20), interpolation=cv2.INTER_LINEAR)[:18]
    np.testing.assert_allclose(figures.enlarged(x, (4, 2), (18, 8)), expected, atol=1e-5)
    x[1, 2] = np.nan
    found = figures.enlarged(x, (4, 2), (18, 8))
    assert np.isnan(found[4:8, 4:6]).all() and np.isnan(found).sum() == 8
    line = figures.enlarged(np.array([1.0, 3.0], np.float32), (4,), (8,))
    np.testing.assert_allclose(line, [1, 1, 1.25, 1.75, 2.25, 2.75, 3, 3])
    flat = figures.enlarged(np.full((2, 3, 2), 7, np.float32), (2, 3, 4), (4, 9, 7))
    assert flat.shape == (4, 9, 7) and (flat == 7).all()


def test_baselines_find_a_change_and_know_what_they_have_seen():
    rng, rows = np.random.default_rng(0), np.sin(np.arange(30) / 2)[:, None, None]
    draw = lambda: (rows * rng.normal() + np.zeros((30, 22, 1))).astype(np.float32)
    good, patch = [draw() for _ in range(8)], (4, 4)
    known = [
        baselines.NearestPatch(patch, count=10_000),
        baselines.PrincipalComponents(patch, (16, 16), count=8),
        baselines.Blur(patch),
    ]
    changed = good[0].copy()
    changed[13:19, 9:15] += 4
    for baseline in known:
        for x in good:
            baseline.learn(x)
        map = baseline(changed).map
        assert map.shape == (8, 6) and np.isfinite(map).all()
        assert np.unravel_index(map.argmax(), map.shape) in {(3, 2), (4, 2), (3, 3), (4, 3)}
    assert known[1](draw()).map.max() < 1e-6  # all rows are multiples of one
    x, scale = changed[..., 0], scipy.ndimage.gaussian_filter(changed[..., 0], 2)
    expected = np.abs(x - scale)[:28, :20].reshape(7, 4, 5, 4).mean((1, 3))
    np.testing.assert_allclose(known[2](changed).map[:7, :5], expected, atol=1e-6)


def test_the_nearest_input_by_hand():
    baseline, good = baselines.NearestInput(), np.random.default_rng(0).normal(size=(5, 6, 7, 2))
    for x in good:
        baseline.learn(x.astype(np.float32))
    assert baseline(good[3].astype(np.float32)).score == 0
    other = (good[2] + 0.1).astype(np.float32)
    expected = min(math.sqrt(((x - other) ** 2).mean()) for x in good)
    assert baseline(other).score == pytest.approx(expected, rel=1e-5)
