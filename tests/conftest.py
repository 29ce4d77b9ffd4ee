import atexit
import gc
import importlib.metadata
import importlib.util
import os
import shutil
import signal
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"
gc.set_threshold(200_000, 50, 50)  # the tests keep much alive, which each collection goes through
# Many tests compile the same step: compile it once, also for the processes that tests start.
if "MAE_JAX_TESTS" not in os.environ:  # pytest-xdist's workers share that of the first process
    os.environ["MAE_JAX_TESTS"] = os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(
        prefix="mae_jax_compiled_"
    )
    atexit.register(shutil.rmtree, os.environ["MAE_JAX_TESTS"], ignore_errors=True)
# Compiling is most of the time: half as much without XLA's costly passes (=0 brings them back).
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# The older emitters of XLA's CPU backend compile a step in half the time. A version of XLA ends the
# process at a flag that it does not know, so only the version that was tried gets the flag.
tried = importlib.metadata.version("jaxlib").startswith("0.10.")
if tried and os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] == "1":
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false")
os.environ["JAX_TRACEBACK_IN_LOCATIONS_LIMIT"] = "0"  # a compiled program without its source lines
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import jax  # noqa: E402
import pytest  # noqa: E402

for number in (signal.SIGINT, signal.SIGHUP):  # a shell's background ignores them: tests send them
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.SIG_DFL)
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_rank_promotion", "raise")


OPTIONAL = {"parity": ("torch", "transformers"), "onnx": ("onnx", "onnxruntime")}
EXTRAS = {"parity": "parity", "onnx": "export"}


def pytest_collection_modifyitems(items):
    """Skip the tests whose mark names packages that are not installed."""
    for mark, packages in OPTIONAL.items():
        if all(importlib.util.find_spec(name) for name in packages):
            continue
        extra = EXTRAS[mark]
        skip = pytest.mark.skip(
            reason=f"needs the extra [{extra}]: pip install -e '.[test,{extra}]'"
        )
        for item in items:
            if item.get_closest_marker(mark):
                item.add_marker(skip)


@pytest.fixture
def key():
    return jax.random.key(0)
