"""Measure everything that is worth knowing on a GPU machine, in under ten minutes.

    python -m scripts.benchmark.gpu --json=gpu.json
    python -m scripts.benchmark.gpu --json=gpu.json --tiny    # tiny networks; a minute on a CPU

The steps of ViT-B and ViT-L in bfloat16 are timed beside Hugging Face's ViTMAE, eager and compiled,
and the implementations of attention beside one another; each row has its memory. Every part is a
process of its own (`python -m scripts.benchmark ...`), so one that fails costs no other, and the
file is written after each of them. It needs one GPU and the extras `cuda` and `parity`; without
PyTorch the steps are measured alone.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from mae_jax.output import files, tables

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 570  # for all parts together
PARTS = {
    "vit_base": ["--config=configs/vit_base.py", "--config.batch_size=256", "--operations"],
    "vit_large": ["--config=configs/vit_large.py", "--config.batch_size=128"],
    "attention": ["--config=configs/vit_base.py", "--config.batch_size=256", "--part=attention"],
}


def arguments(part: str, tiny: bool) -> list[str]:
    """Return the arguments of `scripts.benchmark` for a part."""
    chosen = [*PARTS[part], "--config.model.dtype=bfloat16"]
    if "--part=attention" not in chosen and importlib.util.find_spec("torch"):
        chosen.append("--against=torch")
    if tiny:
        chosen = [f"{x}:debug" if x.endswith(".py") else x for x in chosen]
        chosen += ["--config.batch_size=4", "--config.model.depth=1", "--rounds=2", "--steps=1"]
        chosen += ["--config.model.decoder_depth=1"]
    return chosen


def measure(part: str, tiny: bool, deadline: float) -> dict:
    """Run a part in a process of its own; return its metrics, or its error and what it said."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "metrics.json"
        command = [sys.executable, "-m", "scripts.benchmark", f"--json={path}"]
        # Compiling for a CPU takes longer than all else.
        quick = {"TORCHDYNAMO_DISABLE": "1", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
        try:
            done = subprocess.run(
                [*command, *arguments(part, tiny)],
                cwd=ROOT,
                env=os.environ | (quick if tiny else {}),
                capture_output=True,
                text=True,
                timeout=max(1, deadline - time.monotonic()),
            )
        except subprocess.TimeoutExpired:
            return {"error": "there was no time left"}
        print(done.stdout, end="", flush=True)
        print(done.stderr, end="", file=sys.stderr, flush=True)
        if done.returncode:
            return {"error": done.stderr[-2000:]}
        return json.loads(path.read_text()) | {"messages": done.stderr}


def report(parts: dict[str, dict]) -> str:
    """Return one table of all that was timed."""
    rows = [["", "step", "images/s", "times as long", "memory", "MFU"]]
    for part, metrics in parts.items():
        if "error" in metrics:
            last = metrics["error"].strip().splitlines()[-1:]
            rows.append([f"{part}: {''.join(last)}", *[""] * 5])
            continue
        timed = metrics.get("rows") or {"mae_jax": metrics, **metrics.get("against", {})}
        for name, row in timed.items():
            memory = row.get("memory_peak_bytes") or row.get("memory_planned_bytes")
            speed = f"{row['step_milliseconds']:,.2f} ms", f"{row['images_per_second']:,.1f}"
            times, mfu = f"{row.get('times_as_long', 1.0):.2f}", row.get("mfu")
            use = tables.amount(memory), f"{mfu:.1%}" if mfu else ""
            rows.append([f"{part}: {name}", *speed, times, *use])
    return tables.table(rows)


def main() -> None:
    """Run all parts; the exit status is 1 if one of them failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=files.writable, required=True, help="where all of it goes")
    parser.add_argument("--tiny", action="store_true", help="tiny networks, to try the script")
    options = parser.parse_args()
    parts, deadline = {}, time.monotonic() + SECONDS
    for part in PARTS:
        begin = time.monotonic()
        parts[part] = measure(part, options.tiny, deadline)
        parts[part]["seconds"] = time.monotonic() - begin
        files.write_json(options.json, parts)
    print(f"\n{report(parts)}\n\nwrote {options.json}")
    sys.exit(any("error" in metrics for metrics in parts.values()))


if __name__ == "__main__":
    main()
