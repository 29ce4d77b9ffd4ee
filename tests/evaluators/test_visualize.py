import numpy as np

from mae_jax.evaluators import visualize


def test_columns_of_gray_and_many_channels():
    gray = np.full((2, 8, 12, 1), 200, np.uint8)
    many = np.zeros((2, 8, 12, 5), np.uint8)
    sheet = np.asarray(visualize.sheet({"gray": gray, "many": many}))
    area = 2 * (8 * 11) * (12 * 11)  # two pictures, each pixel enlarged to 11 x 11
    for value, x in ((200, 4), (0, 4 + 12 * 11 + 4)):
        assert (sheet[24:, x : x + 12 * 11] == value).all(-1).sum() == area
