"""Pictures: decoding, cropping and resizing on the host."""

from typing import Any


def configure_libraries() -> None:
    """Set up Pillow and OpenCV for this process; commands call it before they read data.

    The pipeline reads examples in threads of its own, so OpenCV uses one thread. Pillow allocates
    large blocks, which the system gets back, instead of small ones that stay with each thread.
    """
    import cv2
    from PIL import Image

    cv2.setNumThreads(1)
    logs: Any = cv2.utils.logging
    logs.setLogLevel(logs.LOG_LEVEL_SILENT)  # damaged files are reported by their names
    Image.core.set_block_size(2**26)
