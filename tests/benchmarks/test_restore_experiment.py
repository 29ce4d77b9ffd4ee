"""The experiment on restoration: holes, figures, and the means over photographs."""

import numpy as np
import pytest
from PIL import Image

from scripts.experiments import photographs, restore

RNG = np.random.default_rng(0)
PHOTOGRAPHS = [RNG.integers(0, 256, (160, 140, 3), dtype=np.uint8) for _ in range(3)]


@pytest.mark.parametrize("name", restore.HOLES)
def test_holes_cover_their_share_and_repeat(name):
    share = 0.25 if name == "center half" else float(name.split(", ")[1])
    hole = restore.HOLES[name](3)
    assert hole.shape == (64, 64) and hole.dtype == bool
    assert hole.mean() == pytest.approx(share, abs=1e-3)
    np.testing.assert_array_equal(hole, restore.HOLES[name](3))
    if name != "center half":
        assert (hole != restore.HOLES[name](4)).any()


def test_no_method_sees_what_is_in_a_hole_and_each_keeps_the_rest():
    cases = restore.with_holes(PHOTOGRAPHS[:1], "16x16, 0.5")
    assert len(cases) == 4
    whole = np.block([[[cases[0].true], [cases[1].true]], [[cases[2].true], [cases[3].true]]])
    np.testing.assert_array_equal(whole, PHOTOGRAPHS[0][16:144, 6:134])
    for case in cases:
        assert case.hole is not None
        assert (case.given[case.hole] == 0).all()
        for name, fill in restore.FILL.items():
            filled = fill(case.given, case.hole)
            np.testing.assert_array_equal(filled[~case.hole], case.true[~case.hole])
            if name != "Telea":  # OpenCV reads gradients at the border of a hole, which is black
                np.testing.assert_array_equal(filled, fill(case.true, case.hole))


def test_figures_by_hand():
    true = np.full((16, 16, 3), 100, np.uint8)
    hole = np.zeros((16, 16), bool)
    hole[4:8, 4:12] = True
    found = np.where(hole[..., None], 110, true).astype(np.uint8)
    figures = restore.figures(true, found, hole)
    assert figures["hole_psnr"] == pytest.approx(10 * np.log10(255**2 / 100))
    assert figures["psnr"] == pytest.approx(10 * np.log10(255**2 / (100 / 8)))
    assert figures["hole_ssim"] < figures["ssim"] < 1
    assert restore.figures(true, true)["ssim"] == 1


def test_a_mean_is_first_over_the_cases_of_a_photograph():
    cases = restore.with_holes(PHOTOGRAPHS, "center half")
    scores = restore.compare({"a": restore.fill_mean, "b": restore.fill_telea}, cases)
    ours = [
        restore.figures(x.true, restore.fill_mean(x.given, x.known), x.hole) for x in cases[4:8]
    ]
    assert scores["a"]["hole_psnr"][1] == pytest.approx(np.mean([x["hole_psnr"] for x in ours]))
    gain = np.subtract(scores["a"]["hole_psnr"], scores["b"]["hole_psnr"])
    text = restore.report({"center half": scores}, "hole_psnr", "b").splitlines()[-1]
    assert text.endswith(f"{gain.mean():+.2f} +- {gain.std(ddof=1) / np.sqrt(3):.2f}")


def test_noise_has_its_strength_and_the_baselines_remove_some():
    flat = [np.full((128, 128, 3), 128, np.uint8)]
    (case,) = restore.with_noise(flat, 15)
    assert np.std(case.given.astype(float)) == pytest.approx(15, rel=0.02)
    for denoise in restore.tuned(flat, 15).values():
        assert np.std(denoise(case.given, case.known).astype(float) - 128) < 3


def test_photographs_are_reduced_by_whole_numbers(tmp_path):
    x = RNG.integers(0, 256, (800, 1210, 3), dtype=np.uint8)
    Image.fromarray(x).save(tmp_path / "x.png")
    small = photographs.reduced(tmp_path / "x.png", 360)
    assert small.size == (605, 400)
    mean = x[:2, :2].reshape(-1, 3).mean(0)
    np.testing.assert_allclose(np.asarray(small)[0, 0], mean, atol=0.51)
    assert photographs.middle(small, 192).size == (192, 192)
