"""Infrared bands of a Landsat scene, predicted from its visible bands.

    apt-get download r-cran-stars && dpkg -x r-cran-stars_*.deb unpacked
    python -m scripts.experiments.landsat --workdir=runs/landsat \\
        --data=unpacked/usr/lib/R/site-library/stars/tif/L7_ETMs.tif

One half of the scene (`--train=left`, `right`, `top` or `bottom`) trains a masked autoencoder, once
for each mask and seed. Of the other half all tokens of the infrared bands are then masked. Tiles
overlap, and their predictions are averaged. R2 of each band is over all pixels of that half, beside
regressions that are fitted on the first half. It writes `landsat.json` and `landsat.png`; a run
that is finished there is not repeated. Other arguments, such as `--config.epochs=100`, go to each
run.
"""

import argparse
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont

from mae_jax import embed
from mae_jax.data.modalities import volume
from mae_jax.evaluators import embeddings
from mae_jax.models import masking
from mae_jax.output import files, tables
from mae_jax.weights import load
from scripts.experiments import runs

VISIBLE, INFRARED = slice(0, 3), slice(3, 6)  # bands 1, 2, 3 and 4, 5, 7
WATER = 20  # the brightest that water is in band 7, where land is brighter
OPPOSITE = dict(left="right", right="left", top="bottom", bottom="top")
MASKS = {  # in training
    "one group": dict(name="joint", side=4, ratio=0.5),
    "random .5": dict(name="random", ratio=0.5),
    "random .75": dict(name="random", ratio=0.75),
}
Scene = Float[np.ndarray, "h w 6"]


def write_halves(path: str, folder: Path, train: str) -> tuple[str, str]:
    """Write the halves of a GeoTIFF with their transforms, and return them: train, test."""
    import rasterio
    from rasterio import windows

    Window: Any = windows.Window

    with rasterio.open(path) as scene:
        w, h = scene.width, scene.height
        halves = {
            "left": Window(0, 0, w // 2, h),
            "right": Window(w // 2, 0, w - w // 2, h),
            "top": Window(0, 0, w, h // 2),
            "bottom": Window(0, h // 2, w, h - h // 2),
        }
        written = []
        for split, name in (("train", train), ("test", OPPOSITE[train])):
            window, place = halves[name], folder / split / f"{name}.tif"
            profile: dict[str, Any] = dict(width=window.width, height=window.height)
            profile |= dict(transform=scene.window_transform(window), crs=scene.crs, driver="GTiff")
            profile |= dict(count=scene.count, dtype=scene.dtypes[0])
            place.parent.mkdir(parents=True, exist_ok=True)
            with rasterio.open(place, "w", **profile) as file:
                file.write(scene.read(window=window))
            written.append(str(place))
    return written[0], written[1]


def read_band(path: str, number: int) -> np.ndarray:
    """Return a band of a GeoTIFF as it is stored; the sixth is Landsat's band 7."""
    import rasterio

    with rasterio.open(path) as file:
        return file.read(number)


class Predictor:
    """The infrared bands of a scene of any size, by the model of a work directory."""

    def __init__(self, workdir: Path, step: int = 2, batch_size: int = 1024):
        self.info = load.find(workdir)
        self.model, self.params = self.info.model, load.parameters(self.info)
        self.step, self.batch_size, self.patch = step, batch_size, self.model.patch[0]
        self._predict = jax.jit(self._predict_batch)

    def read(self, path: str) -> Scene:
        """Return the values of a scene as the network sees them."""
        assert self.info.config
        opened = volume.open_values(path, self.info.config["data"])
        x = opened.read([slice(0, side) for side in opened.sides])
        return ((x - np.array(self.info.mean)) / np.array(self.info.std)).astype(np.float32)

    def __call__(self, scene: Scene) -> Float[np.ndarray, "h w 3"]:
        """Return the mean over tiles of the predictions, of which the network sees no infrared."""
        height, width = self.info.size or (0, 0)
        rows, columns = (
            sorted({*range(0, side - tile, self.step), side - tile})
            for side, tile in zip(scene.shape, (height, width), strict=False)
        )
        places = list(itertools.product(rows, columns))
        total, count = np.zeros_like(scene[..., INFRARED]), np.zeros((*scene.shape[:2], 1))
        for first in range(0, len(places), self.batch_size):
            chosen = places[first : first + self.batch_size]
            filled = [*chosen, *chosen[:1] * (self.batch_size - len(chosen))]  # of one size
            tiles = np.stack([scene[y : y + height, x : x + width] for y, x in filled])
            found = np.asarray(self._predict(tiles))[: len(chosen)]
            for (y, x), tile in zip(chosen, found, strict=True):
                total[y : y + height, x : x + width] += tile
                count[y : y + height, x : x + width] += 1
        return (total / count).astype(np.float32)

    def _predict_batch(self, x: jax.Array) -> jax.Array:
        grid = self.model.grid(x.shape[1:-1])
        n = int(np.prod(grid))
        group = jnp.arange(n) // (n // 2)  # 0 of a visible token, 1 of an infrared one
        mask = masking.from_scores(jnp.broadcast_to(group[None] * 1.0, (len(x), n)), n // 2)
        out: Any = self.model.apply({"params": self.params}, x.at[..., INFRARED].set(0), mask)
        return self.model.target.to_inputs(out.prediction, x, mask)[..., INFRARED]


def around(x: Float[np.ndarray, "h w c"], side: int) -> Float[np.ndarray, "n d"]:
    """Return the values of the `side` x `side` pixels around each pixel."""
    padded = np.pad(x, ((side // 2,) * 2, (side // 2,) * 2, (0, 0)), mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (side, side), (0, 1))
    return windows.reshape(x.shape[0] * x.shape[1], -1)


def baselines(train: Scene, test: Scene) -> dict[str, Float[np.ndarray, "h w 3"]]:
    """Return predictions of the infrared bands that are fitted on the pixels of `train`."""
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.linear_model import LinearRegression
    from sklearn.neighbors import KNeighborsRegressor

    forest: dict[str, Any] = dict(n_estimators=100, min_samples_leaf=5, random_state=0, n_jobs=2)
    makers: dict[str, tuple[Callable[[], Any], int]] = {
        "linear regression": (LinearRegression, 1),
        "linear regression, 5x5 pixels": (LinearRegression, 5),
        "50 nearest neighbours": (lambda: KNeighborsRegressor(50, n_jobs=2), 1),
        "random forest": (lambda: RandomForestRegressor(**forest), 1),
        "random forest, 5x5 pixels": (
            lambda: RandomForestRegressor(**forest, max_features=1 / 3),
            5,
        ),
    }
    target = train[..., INFRARED].reshape(-1, 3)
    found = {"mean": np.broadcast_to(target.mean(0), test[..., INFRARED].shape)}
    for name, (make, side) in makers.items():
        regression = make().fit(around(train[..., VISIBLE], side), target)
        predicted = regression.predict(around(test[..., VISIBLE], side))
        found[name] = predicted.reshape(found["mean"].shape)
    return found


def r2(predicted: np.ndarray, true: np.ndarray, chosen: np.ndarray) -> Float[np.ndarray, "3"]:
    """Return 1 - squared error / squared deviation of each band over the chosen pixels."""
    predicted, true = predicted[chosen].astype(np.float64), true[chosen].astype(np.float64)
    return 1 - ((predicted - true) ** 2).sum(0) / ((true - true.mean(0)) ** 2).sum(0)


def write_features(checkpoint: Path, scene: str, to: Path) -> Float[np.ndarray, "h w 3"]:
    """Write three components of dense features of a scene, check their place, and return them.

    Raises:
      ValueError: the cells of the file are not patches of the scene.
    """
    import rasterio

    options = [f"--checkpoint={checkpoint}", f"--data=geotiff:{scene}", f"--to={to}", "--dense"]
    options += ["--components=3", "--overwrite"]
    print(embeddings.write(embed.parser().parse_args(options)))
    with rasterio.open(scene) as source, rasterio.open(to) as written:
        step = source.width // written.width
        a, b, c, d, e, f = source.transform[:6]
        cells = rasterio.Affine(step * a, step * b, c, step * d, step * e, f)
        if written.crs != source.crs or not written.transform.almost_equals(cells, 1e-6):
            raise ValueError(f"{to} has the transform {written.transform}, not {cells}")
        print(f"scene {source.bounds}, features {written.bounds}, {step} pixels a cell")
        return np.moveaxis(written.read(), 0, -1)


def scores(predicted: np.ndarray, true: np.ndarray, land: np.ndarray) -> list[float]:
    """Return R2 of each band over all pixels, and over those of land."""
    everywhere = np.ones_like(land)
    return [x for chosen in (everywhere, land) for x in r2(predicted, true, chosen).tolist()]


def stretched(x: np.ndarray, like: np.ndarray) -> np.ndarray:
    """Return uint8 colors, of which 0 and 255 are the 2nd and 98th percentile of `like`."""
    low, high = np.percentile(like.reshape(-1, 3), [2, 98], axis=0)
    return np.rint(255 * ((x - low) / (high - low)).clip(0, 1)).astype(np.uint8)


def sheet(pictures: dict[str, np.ndarray], gap: int = 6, top: int = 18) -> Image.Image:
    """Draw uint8 pictures of one height side by side under their titles."""
    height = max(x.shape[0] for x in pictures.values())
    width = sum(x.shape[1] + gap for x in pictures.values())
    page = Image.new("RGB", (width, height + top), "white")
    draw, font, left = ImageDraw.Draw(page), ImageFont.load_default(12), 0
    for title, x in pictures.items():
        draw.text((left + x.shape[1] / 2, top / 2), title, fill="black", anchor="mm", font=font)
        page.paste(Image.fromarray(x), (left, top))
        left += x.shape[1] + gap
    return page.quantize(256, Image.Quantize.MAXCOVERAGE)


def report(rows: dict[str, list[list[float]]]) -> str:
    """Return a table of the mean R2 of each row, with the deviation over its seeds."""
    head = [f"band {band}{place}" for place in ("", ", land") for band in ("4", "5", "7")]
    table = [["R2", *head]]
    for name, seeds in rows.items():
        mean, deviation = np.mean(seeds, 0), np.std(seeds, 0, ddof=len(seeds) > 1)
        cells = zip(mean, deviation, strict=True)
        if len(seeds) > 1:
            table.append([name, *(f"{m:.3f} +- {d:.3f}" for m, d in cells)])
        else:
            table.append([name, *(f"{m:.3f}" for m in mean)])
    return tables.table(table)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--data", required=True, help="L7_ETMs.tif")
    add("--workdir", required=True)
    add("--config", default="configs/landsat.py")
    add("--train", default="left", choices=list(OPPOSITE), help="the half that trains")
    add("--masks", default="one group", help=f"some of {', '.join(MASKS)}, with commas between")
    add("--seeds", type=int, default=1)
    options, others = parser.parse_known_args()  # others are --config.key=value
    workdir, masks = Path(options.workdir), options.masks.split(",")
    train, test = write_halves(options.data, workdir / "halves", options.train)
    land = read_band(test, 6) > WATER
    shared = [f"--config={options.config}", f"--config.data.train.source=geotiff:{workdir}/halves"]
    rows: dict[str, list[list[float]]] = {}
    pictures: dict[str, np.ndarray] = {}
    for mask, seed in itertools.product(masks, range(options.seeds)):
        run = workdir / f"{mask.replace(' ', '_')}_{seed}"
        changes = [f"--config.mask.{key}={value}" for key, value in MASKS[mask].items()]
        runs.last_record([*shared, f"--config.seed={seed}", *others, *changes], run)
        predictor = Predictor(run)
        scene = predictor.read(test)
        predicted, true = predictor(scene), scene[..., INFRARED]
        found = scores(predicted, true, land)
        rows.setdefault(f"masked autoencoder, {mask}", []).append(found)
        print(f"{mask}, seed {seed}: {np.round(found, 3).tolist()}", flush=True)
        if not pictures:
            colors = scene[..., 2::-1]
            pictures["visible, seen"] = stretched(colors, colors)
            pictures["infrared, true"] = stretched(true, true)
            pictures["infrared, predicted"] = stretched(predicted, true)
            features = write_features(run, options.data, workdir / "features.tif")
            large = stretched(features, features).repeat(predictor.patch, 0)
            pictures["features of the scene"] = large.repeat(predictor.patch, 1)
    fitted = baselines(predictor.read(train), scene)
    rows |= {name: [scores(predicted, true, land)] for name, predicted in fitted.items()}
    files.write_json(str(workdir / "landsat.json"), rows)
    sheet(pictures).save(workdir / "landsat.png")
    print(report(rows))


if __name__ == "__main__":
    main()
