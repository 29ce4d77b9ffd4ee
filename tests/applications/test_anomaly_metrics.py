"""applications/anomaly/metrics.py: areas under curves against scikit-learn and by definition."""

import numpy as np
import pytest
import scipy.ndimage
from sklearn.metrics import average_precision_score, roc_auc_score

from mae_jax.applications.anomaly import metrics


def maps(seed: int, sides=(9, 7), count: int = 5, levels: int = 0):
    """Draw maps with ties, if there are levels, and masks with several regions."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        mask = scipy.ndimage.gaussian_filter(rng.normal(size=sides), 1) > 0.2
        scores = rng.normal(size=sides) + mask
        yield (np.round(scores * levels) / levels if levels else scores).astype(np.float32), mask


def counted(pairs, **options) -> metrics.Counts:
    counts = metrics.Counts(**options)
    for scores, mask in pairs:
        counts.add(scores, mask)
    return counts


def slow_pro(pairs, most: float = 0.3) -> float:
    """The definition: for each threshold the mean share of each region, and then the area."""
    pairs, points = list(pairs), [(0.0, 0.0)]
    normal = sum((~mask).sum() for _, mask in pairs)
    regions = []
    for scores, mask in pairs:
        labels, n = scipy.ndimage.label(mask, np.ones((3,) * mask.ndim))
        regions += [scores[labels == i] for i in range(1, n + 1)]
    for threshold in sorted({x for scores, _ in pairs for x in scores.ravel()}, reverse=True):
        false = sum((scores[~mask] >= threshold).sum() for scores, mask in pairs)
        shares = [(region >= threshold).mean() for region in regions]
        points.append((false / normal, np.mean(shares)))
    area = 0.0
    for (x0, y0), (x1, y1) in zip(points, points[1:], strict=False):
        end = min(x1, most)
        if end > x0:
            area += (end - x0) * (y0 + y0 + (y1 - y0) * (end - x0) / (x1 - x0)) / 2
    return area / most


@pytest.mark.parametrize("levels", [0, 2])
@pytest.mark.parametrize("sides", [(9, 7), (5, 4, 6)])
def test_the_areas_are_those_of_the_definitions(sides, levels):
    pairs = list(maps(0, sides, levels=levels))
    labels, scores = (np.concatenate([x[i].ravel() for x in pairs]) for i in (1, 0))
    curve = counted(pairs).curve()
    assert metrics.auroc(curve) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    expected = average_precision_score(labels, scores)
    assert metrics.average_precision(curve) == pytest.approx(expected, abs=1e-12)
    assert metrics.pro(curve) == pytest.approx(slow_pro(pairs), abs=1e-12)
    assert metrics.pro(curve, 1.0) == pytest.approx(slow_pro(pairs, 1.0), abs=1e-12)


def test_pro_of_a_case_by_hand():
    """Two regions, of one value and of four, and ten normal values; touching corners are one."""
    mask = np.array([[1, 0, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 1, 1], [0, 0, 0, 1, 0]], bool)
    scores = np.zeros((4, 5), np.float32)
    scores[0, 0], scores[1, 2], scores[0, 4], scores[0, 3] = 9, 8, 7, 6
    counts = counted([(scores, mask)])
    assert counts.regions == 2
    # overlap is 1/2 after the first value and 5/8 after the second, then 3 of 15 normal ones cost
    curve = counts.curve()
    np.testing.assert_allclose(curve.overlap, [0, 1 / 2, 5 / 8, 5 / 8, 5 / 8, 1])
    np.testing.assert_allclose(curve.false_positives, [0, 0, 0, 1 / 15, 2 / 15, 1])
    y = 5 / 8 + 3 / 8 * (0.3 - 2 / 15) / (13 / 15)  # the line to (1, 1) at .3
    area = 2 / 15 * 5 / 8 + (0.3 - 2 / 15) * (5 / 8 + y) / 2
    assert metrics.pro(curve) == pytest.approx(area / 0.3)


def test_a_perfect_map_and_its_opposite():
    mask = np.zeros((6, 6), bool)
    mask[2:4, 2:4] = True
    for scores, expected in ((mask, 1), (~mask, 0)):
        curve = counted([(scores.astype(np.float32), mask)]).curve()
        assert metrics.auroc(curve) == expected
    perfect = counted([(mask.astype(np.float32), mask)]).curve()
    assert metrics.average_precision(perfect) == metrics.pro(perfect) == 1


def test_parts_merge_to_the_whole_and_order_does_not_matter():
    pairs = list(maps(1))
    whole = counted(pairs).curve()
    parts = metrics.Counts.merged([counted(pairs[3:]), counted(pairs[:3]), metrics.Counts()])
    for one, other in zip(whole, parts.curve(), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-12)


def test_memory_is_bounded_and_the_error_is_that_of_the_resolution():
    pairs = list(maps(2, sides=(40, 50)))
    exact, rounded = counted(pairs), counted(pairs, limit=500)
    assert not exact.resolution and len(exact.curve().precision) > 9000
    assert len(rounded.curve().precision) <= 501 and 0 < rounded.resolution <= 2**-4
    for area in (metrics.auroc, metrics.average_precision, metrics.pro):
        assert area(exact.curve()) != area(rounded.curve())
        assert area(rounded.curve()) == pytest.approx(area(exact.curve()), abs=5e-3)
    both = metrics.Counts.merged([exact, rounded])
    assert both.resolution >= rounded.resolution and both.regions == 2 * exact.regions


def test_values_without_a_score_are_left_out_and_counted():
    (scores, mask), *_ = maps(3)
    scores[:2] = np.nan
    holes, rest = counted([(scores, mask)]), counted([(scores[2:], mask[2:])])
    assert holes.left_out == 14
    assert metrics.pro(holes.curve()) == metrics.pro(rest.curve())
    assert metrics.auroc(holes.curve()) == metrics.auroc(rest.curve())


@pytest.mark.parametrize("value", [False, True])
def test_values_of_one_kind_have_no_areas(value):
    curve = counted(
        [(np.arange(6, dtype=np.float32).reshape(2, 3), np.full((2, 3), value))]
    ).curve()
    assert np.isnan(metrics.auroc(curve)) and np.isnan(metrics.pro(curve))
    assert np.isnan(metrics.auroc(metrics.Counts().curve()))


def test_the_order_of_negative_scores_and_of_zeros():
    scores = np.array([-3, -0.5, -0.0, 0.0, 2], np.float32)
    counts = counted([(scores, np.array([0, 0, 1, 0, 1], bool))])
    assert len(counts.curve().precision) == 5  # none, and four distinct scores
    expected = roc_auc_score([0, 0, 1, 0, 1], scores)
    assert metrics.auroc(counts.curve()) == pytest.approx(expected)
