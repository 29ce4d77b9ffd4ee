"""Held-out figures: each example counts once, and the baselines are what they say."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from mae_jax import tasks
from mae_jax.config import command_line
from mae_jax.data import sources
from mae_jax.data.augment import batch as augment
from mae_jax.data.modalities import transforms
from mae_jax.distributed import device_mesh
from mae_jax.evaluators import features, heldout
from mae_jax.models import masking, patches
from mae_jax.tasks import pretrain

KEY = jax.random.key(7)
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)

SMALL = dict(modality="image", size=(32, 32), channels=3, repeats=1, center_crop=0.875, threads=2)


def config(**changes) -> ConfigDict:
    config = ConfigDict(command_line.load("configs/quickstart.py:debug"))
    config.update_from_flattened_dict(changes)
    return config


@functools.cache
def variables():
    return jax.jit(tasks.build(config(), None, MEAN, STD).init)(jax.random.key(0))


def reconstructed(config, mesh):
    return heldout.reconstruction(
        pretrain.model_of(config),
        heldout.view_of(config, MEAN, STD),
        config.mask,
        heldout.opened(config, config.data.test),
        examples=config.evaluate.examples,
        batch_size=config.evaluate.batch_size,
        shown=config.evaluate.pictures,
        mesh=mesh,
        key=KEY,
    )


def probe(config, mesh):
    return features.probe(config, MEAN, STD, pretrain.model_of(config), mesh)


@pytest.fixture
def mesh():
    return device_mesh.make_mesh(-1, 1)


class Damaged:
    """The test pictures, of which some cannot be read."""

    def __init__(self, *bad):
        self.bad, self.source = set(bad), sources.open_source("synthetic", "test")
        self.classes, self.name = self.source.classes, self.source.name

    def __len__(self):
        return len(self.source)

    def __getitem__(self, i):
        return self.source[i] if i not in self.bad else {"image": b"", "label": 0}


def test_unreadable_examples_are_left_out_of_all_figures(mesh, caplog):
    source, some = Damaged(), {0, 9, 10, 31}
    losses, _ = heldout.reconstruction(
        pretrain.model_of(config()),
        heldout.view_of(config(), MEAN, STD),
        config().mask,
        source,
        examples=32,
        batch_size=8,
        shown=4,
        mesh=mesh,
        key=KEY,
    )
    every = losses(variables())
    source.bad = some
    others = losses(variables())
    source.bad = set(range(32)) - some
    these = losses(variables())
    assert [x["examples"] for x in (every, others, these)] == [32, 28, 4]
    for name in ("trained", "visible_mean"):
        mean = (28 * others[name] + 4 * these[name]) / 32
        np.testing.assert_allclose(mean, every[name], rtol=1e-5)
        assert abs(others[name] - every[name]) > 1e-4
    assert "4 of 32 examples are left out of the figures" in caplog.text
    pixels = features.extractor(
        None, [features.Feature()], heldout.view_of(config(), MEAN, STD), mesh
    )
    table = pixels(None, source, None, 8)
    assert table.index.tolist() == sorted(some)
    assert table.labels.tolist() == [source.source[i]["label"] for i in sorted(some)]


def test_heldout_losses_by_hand(mesh):
    """One example at a time, in numpy: the same masks, the same mean, no padding."""
    losses, _ = reconstructed(config(), mesh)
    figures = losses(variables())

    source = sources.open_source("synthetic", "test")
    transform = transforms.eval_transform(SMALL)
    model, hide = pretrain.model_of(config()), pretrain.hiding_of(config())
    apply = jax.jit(lambda x, mask: model.apply(variables(), x, mask).loss)
    ours, baseline = [], []
    for i in range(32):
        image = augment.normalize(jnp.asarray(transform(source[i])["image"])[None], MEAN, STD)
        scores = jax.random.uniform(jax.random.fold_in(KEY, i), (hide.n,))
        mask = masking.from_scores(scores[None], hide.keep)
        ours.append(apply(image, mask))
        x = np.asarray(patches.patchify(image, (8, 8))[0])
        guess = x[mask.keep[0]].mean(0)
        baseline.append(np.square(x[mask.hidden[0]] - guess).mean())
    np.testing.assert_allclose(figures["trained"], np.mean(ours), rtol=1e-5)
    np.testing.assert_allclose(figures["visible_mean"], np.mean(baseline), rtol=1e-5)


@pytest.mark.parametrize("batch_size", [4, 20, 64])
def test_every_example_counts_once_whatever_the_batch(mesh, batch_size):
    whole, _ = reconstructed(config(), mesh)
    other, _ = reconstructed(config(**{"evaluate.batch_size": batch_size}), mesh)
    for name, value in whole(variables()).items():
        assert other(variables())[name] == pytest.approx(value, rel=1e-5)


def test_the_probe_of_pixels_is_scikit_learns(mesh):
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.preprocessing import StandardScaler

    changes = {"probe.train.source": "photos", "probe.test.source": "photos"}
    changes |= {"probe.examples": 90, "evaluate.batch_size": 64}
    figures = probe(config(**changes), mesh)(None)
    assert 0 <= figures["linear"] <= 1

    transform = transforms.eval_transform(SMALL)
    parts = []
    for split in ("train", "test"):
        source = sources.open_source("photos", split)
        chosen = sources.fixed_choice(len(source), 90)
        rows = [transform(source[int(i)]) for i in chosen]
        parts.append(
            [np.stack([r["image"].ravel() / 255 for r in rows]), [r["label"] for r in rows]]
        )
    (x, y), (test_x, test_y) = parts
    scaler = StandardScaler().fit(x)
    weigh = lambda distance: np.exp((1 - distance) / 0.07)
    oracle = KNeighborsClassifier(20, metric="cosine", weights=weigh).fit(scaler.transform(x), y)
    assert figures["knn"] == pytest.approx(oracle.score(scaler.transform(test_x), test_y), abs=0.02)


def test_a_probe_needs_labels(mesh, tmp_path):
    from PIL import Image

    for i in range(4):
        Image.new("RGB", (9, 9)).save(tmp_path / f"{i}.png")
    folder = f"folder:{tmp_path}"
    unlabelled = {"probe.train.source": folder, "probe.test.source": folder}
    with pytest.raises(ValueError, match="must both have two classes"):
        probe(config(**unlabelled), mesh)
    same = {"probe.train.source": "same", "probe.test.source": "same"}
    assert probe(config(**same, **{"data.train.source": folder}), mesh) is None
    none = {"probe.train.source": "", "probe.test.source": ""}
    assert probe(config(**none), mesh) is None


def test_the_picture_shows_what_is_hidden_and_what_is_predicted(mesh):
    """Columns original | masked | reconstruction; visible patches are the same in all three."""
    _, draw = reconstructed(config(), mesh)
    sheet = np.asarray(draw(variables())).astype(int)
    cell = 128 + 4
    left = [4 + i * cell for i in range(3)]
    original, masked, reconstruction = (sheet[24 : 24 + 128, x : x + 128] for x in left)
    grey = (masked == 128).all(-1).reshape(4, 32, 4, 32).all((1, 3))  # patches of 8 pixels, x 4
    assert grey.sum() == 12
    same = (original == reconstruction).all(-1).reshape(4, 32, 4, 32).all((1, 3))
    np.testing.assert_array_equal(same, ~grey)


def test_flips_and_masks_are_drawn_per_sample():
    augmented = tasks.build(config(), None, MEAN, STD).augment
    image = np.tile(np.arange(32, dtype=np.uint8)[None, None, :, None], (64, 32, 1, 3))
    batch = augmented(jax.random.key(0), {"image": jnp.asarray(image)})
    flipped = np.asarray(batch["image"][:, 0, 0, 0] == 31)
    assert 16 < flipped.sum() < 48
    np.testing.assert_array_equal(batch["image"][flipped][:, :, ::-1], image[flipped])
    np.testing.assert_array_equal(batch["image"][~flipped], image[~flipped])
    assert len(np.unique(batch["scores"], axis=0)) == 64


def test_what_is_normalised():
    x = jnp.asarray(np.random.default_rng(0).integers(0, 256, (2, 4, 5, 3), dtype=np.uint8))
    y = augment.normalize(x, MEAN, STD)
    np.testing.assert_allclose(y[..., 1], (np.asarray(x)[..., 1] / 255 - 0.5) / 0.25, atol=1e-5)
    z = augment.normalize(x.astype(jnp.float32), MEAN, STD)  # floats are taken as they are
    np.testing.assert_allclose(z[..., 1], (np.asarray(x)[..., 1] - 0.5) / 0.25, atol=1e-4)
    categories = x.astype(jnp.int32)
    np.testing.assert_array_equal(augment.normalize(categories, MEAN, STD), categories)
