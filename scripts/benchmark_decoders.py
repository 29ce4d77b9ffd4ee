"""Time and memory of a training step with either decoder and a share of the hidden patches decoded.

    python scripts/benchmark_decoders.py --batch-size=8 --steps=4 --json=decoders.json

Both decoders as their configs have them: 8 blocks of self-attention, 12 of cross-attention. All in
one run on generated pictures; the first variant is timed once more at the end, to show how much the
machine itself moved.
"""

import argparse
import gc
import json
import statistics
from pathlib import Path

import benchmark  # beside this file
import jax

from mae_jax import config as configs
from mae_jax import metrics
from mae_jax.tasks import pretrain

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = {"self": "vit_base", "cross": "cross_vit_base"}


def measured(name: str, decode: float, batch_size: int, steps: int) -> dict:
    """One decoder at one share."""
    config = configs.load(f"{ROOT}/configs/{CONFIGS[name]}.py")
    config["mask"] |= dict(decode=decode)
    config |= dict(batch_size=batch_size)
    step, state, batch = benchmark.build(config)
    compiled = step.lower(state, batch).compile()
    times, _ = benchmark.time_steps(compiled, state, batch, steps)
    model, hide = pretrain.model_of(config), pretrain.hiding_of(config)
    parts = benchmark.forward_flops(model, hide.n, hide.keep, 3, hide.decode)
    planned, analysis = benchmark.memory(compiled), compiled.memory_analysis()
    return {
        "decoder": name,
        "decode": decode,
        "step_milliseconds": 1e3 * statistics.median(times),
        "memory_planned_bytes": planned["memory_planned_bytes"],
        "temporary_bytes": analysis.temp_size_in_bytes if analysis else 0,
        "forward_flops_per_image": sum(parts.values()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--json")
    options = parser.parse_args()

    variants = [(name, share) for name in CONFIGS for share in (1.0, 0.75, 0.25)]
    rows = []
    for name, share in [*variants, variants[0]]:
        rows.append(measured(name, share, options.batch_size, options.steps))
        print(rows[-1], flush=True)
        gc.collect()
    first = rows[0]
    table = [["decoder", "decoded", "step", "temporary memory", "FLOPs"]]
    for row in rows:
        ratios = [
            f"{row[key] / first[key]:.2f}"
            for key in ("step_milliseconds", "temporary_bytes", "forward_flops_per_image")
        ]
        table.append([row["decoder"], f"{row['decode']:.0%}", *ratios])
    print(f"\n{jax.devices()[0].device_kind}, ratios to the first row")
    print(metrics.table(table))
    if options.json:
        about = {"device": jax.devices()[0].device_kind, "batch_size": options.batch_size}
        Path(options.json).write_text(json.dumps(about | {"rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
