"""scripts/experiments/defects.py: masks are where a picture changed, and tests share no value."""

import numpy as np
import pytest
import scipy.ndimage
from PIL import Image

from mae_jax.applications.anomaly import layout
from scripts.experiments import defects


@pytest.mark.parametrize("name", defects.DEFECTS)
def test_a_picture_changes_at_its_mask_alone(name):
    defect, rng = defects.DEFECTS[name][0], np.random.default_rng(0)
    for _ in range(5):
        picture, other = rng.integers(100, 150, (2, defects.SIDE, defects.SIDE, 3), np.uint8)
        changed, mask = defect(picture, other, rng)
        assert changed.dtype == np.uint8 and 30 < mask.sum() < mask.size / 4
        differs = (changed != picture).any(-1)
        assert differs[mask].mean() > 0.9
        near = scipy.ndimage.maximum_filter(mask, 17)  # a blend has a soft edge
        assert not differs[~near].any()


def test_textures_have_the_layout_of_mvtec(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    draw = lambda low: rng.integers(low, low + 50, (128, 200, 3), np.uint8)
    monkeypatch.setattr(defects, "textures", lambda wallpapers: dict(a=draw(0), b=draw(150)))
    defects.write_textures(tmp_path, tmp_path, train=3, good=2, bad=2)
    examples = layout.examples(str(tmp_path / "a"))
    kinds = [x.kind for x in examples]
    assert kinds == ["good"] * 2 + [k for k in sorted(defects.DEFECTS) for _ in range(2)]
    assert all((x.kind == "good") == (x.mask is None) for x in examples)
    assert len(list((tmp_path / "b" / "train" / "good").iterdir())) == 3
    with Image.open(tmp_path / "a" / "right.png") as right:
        assert right.size == (100, 128)
    tiles = defects.disjoint(tmp_path / "a" / "right.png", 32)
    assert len(tiles) == 3 * 4 and {x.shape for x in tiles} == {(32, 32, 3)}


def test_halves_share_no_pixel():
    texture = np.arange(3 * 7 * 3).reshape(3, 7, 3)
    left, right = defects.halves(texture)
    np.testing.assert_array_equal(np.concatenate([left, right], 1), texture)


def test_slabs_to_test_on_share_no_voxel_with_others():
    scan = np.zeros((5, 200, 4))
    scan[:, 11:190] = 1 + np.arange(179)[None, :, None]
    train, test = defects.slabs(scan)
    assert [x.shape[1] for x in (*train, *test)] == [48, 48, 24, 24]
    rows = [set(np.unique(np.concatenate(x, 1))) for x in (train, test)]
    assert not rows[0] & rows[1] and 0 not in rows[0] | rows[1]


def test_a_lesion_is_where_its_mask_is():
    rng, box = np.random.default_rng(0), np.ones((20, 24, 20), np.float32)
    for _ in range(10):
        x, mask, kind = defects.lesion(box, rng)
        assert 4 / 3 * np.pi * 2.7**3 < mask.sum() < 4 / 3 * np.pi * 5.3**3
        inside, outside = x[mask].mean(), x[~mask]
        assert inside > 1.15 if kind == "brighter" else inside < 0.85
        assert np.abs(outside - 1).mean() < 0.01
    for box, _ in zip(defects.boxes(np.ones((40, 24, 50)), rng), range(3), strict=False):
        assert box.shape == (20, 24, 20)
