"""scripts/experiments/brains.py: crops lie where the atlas says, and share no voxel when tested."""

import numpy as np
import pytest

from scripts.experiments import brains

nibabel = pytest.importorskip("nibabel")


def test_crops_of_scans_with_other_frames_show_the_same_places(tmp_path):
    rng, world = np.random.default_rng(0), np.array([[10.0, -3, 5], [-14, 8, -20], [0, 0, 0]])
    whole = rng.integers(1, 255, (80, 80, 80), dtype=np.uint8)
    start = np.array([-40.0, -41, -42])
    for cut in (0, 7):  # another frame: without its first `cut` voxels along each axis
        affine = np.eye(4)
        affine[:3, 3] = start + cut
        path = str(tmp_path / f"{cut}.nii.gz")
        nibabel.save(nibabel.Nifti1Image(whole[cut:, cut:, cut:], affine), path)
        for crop, middle in zip(brains.cut(path, world), world, strict=True):
            a, b, c = (middle - start).astype(int) - brains.SIDE // 2
            expected = whole[a : a + 24, b : b + 24, c : c + 24]
            np.testing.assert_array_equal(crop, expected)


def test_places_have_the_lobe_of_their_region(tmp_path):
    codes = [2001, 3001, 4101, 5001, 6001, 7001, 8101, 9001]
    rows = [f"{i + 1} Region_{i} {code}" for i, code in enumerate(codes)]
    (tmp_path / "aal.nii.txt").write_text("\n".join(rows) + "\n\n")
    regions = np.random.default_rng(0).integers(0, 9, (20, 20, 20)).astype(np.uint8)
    affine = np.diag([2.0, 2, 2, 1])
    nibabel.save(nibabel.Nifti1Image(regions, affine), tmp_path / "aal.nii.gz")
    places = brains.draw_places(tmp_path / "aal", count=50, seed=0)
    assert np.bincount(places.lobes).tolist() == [50] * 7
    voxels = (places.world / 2).astype(int)
    for region, lobe in zip(regions[tuple(voxels.T)], places.lobes, strict=True):
        assert brains.NAMES[lobe] == brains.LOBES[codes[region - 1] // 1000]


def test_no_crop_that_trains_shares_a_voxel_with_one_that_is_tested(monkeypatch):
    rng, tested = np.random.default_rng(0), []
    places = brains.Places(rng.integers(-90, 90, (900, 3)).astype(float), rng.integers(0, 7, 900))
    share = []

    def accuracy(train, _, test, __):
        away = np.abs(train[:, None] - test[None])
        share.append((away < brains.SIDE).all(-1).any())
        tested.extend(map(tuple, test))
        return 0.5

    monkeypatch.setattr(brains, "accuracy", accuracy)
    assert brains.by_slabs(places.world, places) == pytest.approx(0.5)
    assert sorted(tested) == sorted(map(tuple, places.world))  # each place once
    brains.by_hemispheres(places.world, places)
    assert len(share) > 5 and not any(share)
