"""The mask ablations of He et al. 2021 (figure 5, table 1f) at a small scale.

    python scripts/ablations.py --workdir=runs/ablations

Pre-trains once for each mask ratio with random masks, and once more for block and grid masks at
.75, all with the same number of steps, and probes the frozen features linearly. Other arguments,
such as `--config.epochs=5`, go to each run. Writes `ablations.json` and `ablations.png`; a run that
is finished there is not repeated.
"""

import argparse
import json
from pathlib import Path

from mae_jax.config import command_line
from mae_jax.evaluators import visualize
from mae_jax.output import tables
from mae_jax.train import train
from mae_jax.training import metric_writer

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--config", default=f"{ROOT}/configs/fashion_mnist.py")
    parser.add_argument("--ratios", default="0.25,0.4,0.5,0.6,0.75,0.9")
    parser.add_argument("--masks", default="block,grid")
    options, others = parser.parse_known_args()  # others are --config.key=value
    workdir = Path(options.workdir)

    runs = [("random", float(ratio)) for ratio in options.ratios.split(",")]
    runs += [(name, 0.75) for name in options.masks.split(",") if name]
    rows = []
    for name, ratio in runs:
        place = workdir / f"{name}_{ratio}"
        changes = [f"--config.mask.name={name}", f"--config.mask.ratio={ratio}"]
        spec = [f"--config={options.config}", f"--workdir={place}", *others, *changes]
        config, _ = command_line.parse(
            [*spec, "--config.probe.linear", "--config.evaluate.every=0"]
        )
        train(config, place)
        last = metric_writer.read(place)[-1]
        found = {"mask": name, "ratio": ratio}
        found |= {key: last[f"{key}_trained"] for key in ("linear", "knn", "loss")}
        found |= {
            "linear_untrained": last["linear_untrained"],
            "loss_mean": last["loss_visible_mean"],
        }
        rows.append(found)
        print(f"{name} {ratio}: {found}", flush=True)

    (workdir / "ablations.json").write_text(json.dumps(rows, indent=2) + "\n")
    lines = {
        name: ([r["ratio"] for r in rows if r["mask"] == name],
               [r["linear"] for r in rows if r["mask"] == name])
        for name in dict.fromkeys(name for name, _ in runs)
    }  # fmt: skip
    visualize.curve(lines, "linear probe", "test accuracy", "mask ratio").save(
        workdir / "ablations.png"
    )
    table = [["mask", "ratio", "linear", "kNN", "loss / mean"]]
    for r in rows:
        share = f"{r['loss'] / r['loss_mean']:.3f}"
        table.append(
            [r["mask"], f"{r['ratio']:.2f}", f"{r['linear']:.4f}", f"{r['knn']:.4f}", share]
        )
    print("\n" + tables.table(table))


if __name__ == "__main__":
    main()
