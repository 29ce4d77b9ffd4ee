"""Imports run downwards only, and the rooms that must stay light stay light."""

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
LAYERS = [  # a module may import from the rows above its own, and not from its own row
    ["data.resizing", "data.colour", "hlo", "topology", "attention_tpu", "sharding", "board"],
    ["fingerprint", "interruption", "lifeline"],
    ["attention", "patches", "positions", "optimizer", "data.images", "names"],
    ["masking", "step", "metrics", "pictures", "data.augment", "data.records", "probes"],
    ["layers", "hiding", "checkpoint", "data.shipped", "data.folders", "data.randaugment"],
    ["vit", "fields", "torch_files", "data.video", "data.audio", "data.volumes", "data.texts"],
    ["data.generated", "data.damage", "contradictions"],
    ["mae", "data.sources", "config"],
    ["data.pipeline", "data.shards", "flops"],
    ["data.inputs", "data.prepare"],
    ["tasks.task", "tasks.heldout", "workdir", "loop"],
    ["tasks.features"],
    ["tasks.pretrain", "tasks.classify"],
    ["stored"],
    ["stored_runs"],
    ["pretrained"],
    ["train", "evaluate", "convert", "estimate"],
    ["plan"],
]


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mae_jax"):
            package = node.module.removeprefix("mae_jax").removeprefix(".")
            for alias in node.names:
                name = f"{package}.{alias.name}".removeprefix(".")
                found.add(name if file_of(name).exists() else package)
    return found - {""}


def file_of(name: str) -> Path:
    return ROOT / "mae_jax" / (name.replace(".", "/") + ".py")


def test_imports_run_downwards():
    rank = {name: row for row, names in enumerate(LAYERS) for name in names}
    files = [p for p in (ROOT / "mae_jax").rglob("*.py") if p.name != "__init__.py"]
    for path in files:
        name = path.relative_to(ROOT / "mae_jax").with_suffix("").as_posix().replace("/", ".")
        assert name in rank, f"say in LAYERS where {name} belongs"
        for other in imported(path):
            assert rank[other] < rank[name], f"{name} imports {other}, which is not below it"


def test_configs_are_plain_values():
    for path in (ROOT / "configs").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            assert not isinstance(node, ast.Import), path
            if isinstance(node, ast.ImportFrom):
                assert node.module == "configs", path


def test_the_model_and_the_step_need_only_jax_flax_optax():
    """A GPU machine may have no more than these: scripts/benchmark.py runs there."""
    code = (
        "import sys\n"
        "for name in ('grain', 'tensorflow_datasets', 'ml_collections', 'tensorboardX',"
        " 'array_record', 'sklearn', 'skimage', 'matplotlib'): sys.modules[name] = None\n"
        "import mae_jax.step, mae_jax.tasks.pretrain, mae_jax.config, mae_jax.optimizer\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_data_workers_do_not_import_jax():
    code = (
        "import sys, mae_jax.data.sources, mae_jax.data.pipeline, mae_jax.data.prepare\n"
        "assert 'jax' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
