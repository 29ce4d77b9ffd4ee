import numpy as np

from mae_jax.evaluators import visualize


def test_columns_of_gray_and_many_channels():
    gray = np.full((2, 8, 12, 1), 200, np.uint8)
    many = np.zeros((2, 8, 12, 5), np.uint8)
    sheet = np.asarray(visualize.sheet({"gray": gray, "many": many}))
    area = 2 * (8 * 11) * (12 * 11)  # two pictures, each pixel enlarged to 11 x 11
    for value, x in ((200, 4), (0, 4 + 12 * 11 + 4)):
        assert (sheet[24:, x : x + 12 * 11] == value).all(-1).sum() == area


def test_signals_are_curves_whose_masked_parts_are_red():
    original = np.zeros((2, 40, 6))
    original[..., 3] = np.sin(np.arange(40))
    masked = np.zeros(original.shape, bool)
    masked[1, 20:30] = True
    draw = lambda guess: np.asarray(
        visualize.reconstruction(
            original, masked, np.where(masked, guess, original), "signal", [0.0] * 6, [1.0] * 6
        ).convert("RGB")
    ).astype(int)
    page, moved = draw(0.0), draw(0.5)
    red = lambda x: (x[..., 0] > 200) & (x[..., 1:].max(-1) < 100)
    assert page.shape[1] > 3 * page.shape[0]  # four of six channels, two rows
    top = slice(60, page.shape[0] // 2)  # below the legend
    assert red(page)[page.shape[0] // 2 :].any() and not red(page)[top].any()
    assert (page != moved).any()
