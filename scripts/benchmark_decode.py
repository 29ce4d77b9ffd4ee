"""Images per second of one core, from a JPEG's bytes to a 224 training crop, by decoder.

    pip install simplejpeg opencv-python-headless  # optional: what is missing is left out
    python scripts/benchmark_decode.py

What the loader does is the first row; the others differ in the decoder alone.
"""

import io
import statistics
import time

import numpy as np
from PIL import Image

from mae_jax import metrics
from mae_jax.data import images, shipped

SIZE, SCALE, RATIO = (224, 224), (0.2, 1.0), (3 / 4, 4 / 3)


def jpegs(count: int = 32) -> list[bytes]:
    """500 x 375 pieces of the photographs that scikit-image and scikit-learn ship, quality 90."""
    rng, encoded = np.random.default_rng(0), []
    for i in range(count):
        photo = Image.fromarray(shipped._photo(*list(shipped._PHOTOS.values())[i % 10]))
        x, y = rng.integers(0, 40, 2)
        piece = photo.resize((560, 430)).crop((x, y, x + 500, y + 375))
        buffer = io.BytesIO()
        piece.save(buffer, "JPEG", quality=90)
        encoded.append(buffer.getvalue())
    return encoded


def decoders() -> dict:
    """Name -> function from bytes to an RGB array."""
    found = {"Pillow (the loader)": lambda data: images.decode(data, 3)}
    try:
        import simplejpeg  # pyright: ignore[reportMissingImports]

        found["simplejpeg"] = lambda data: simplejpeg.decode_jpeg(data)
    except ImportError:
        pass
    try:
        import cv2  # pyright: ignore[reportMissingImports]

        cv2.setNumThreads(1)
        found["OpenCV"] = lambda data: cv2.imdecode(np.frombuffer(data, np.uint8), 1)[..., ::-1]
    except ImportError:
        pass
    return found


def crop(image: np.ndarray) -> np.ndarray:
    return images.random_resized_crop(image, SIZE, SCALE, RATIO, np.random.default_rng(0))


def rate(work, encoded: list[bytes]) -> float:
    """Pictures per second, the median of seven rounds."""
    rates = []
    for _ in range(7):
        begin = time.perf_counter()
        for data in encoded:
            work(data)
        rates.append(len(encoded) / (time.perf_counter() - begin))
    return statistics.median(rates)


def main() -> None:
    encoded = jpegs()
    rows = [["decoder", "decode", "decode + crop"]]
    for name, decode in decoders().items():
        decoding = rate(decode, encoded)
        both = rate(lambda data, decode=decode: crop(decode(data)), encoded)
        rows.append([name, f"{decoding:.0f}", f"{both:.0f}"])
    print(metrics.table(rows))


if __name__ == "__main__":
    main()
