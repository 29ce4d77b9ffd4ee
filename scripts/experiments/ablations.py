"""The mask ablations of He et al. 2021 (figure 5, table 1f) at a small scale.

    python -m scripts.experiments.ablations --workdir=runs/ablations

It pre-trains once for each mask ratio with random masks, and once more for block and grid masks at
.75, all for the same number of steps, and probes the frozen features linearly. Other arguments,
such as `--config.epochs=5`, go to each run. It writes `ablations.json` and `ablations.png`; a run
that is finished there is not repeated.
"""

import argparse
from pathlib import Path

from mae_jax.evaluators import visualize
from mae_jax.output import files, tables
from scripts.experiments import runs


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--config", default="configs/fashion_mnist.py")
    parser.add_argument("--ratios", default="0.25,0.4,0.5,0.6,0.75,0.9")
    parser.add_argument("--masks", default="block,grid")
    options, others = parser.parse_known_args()  # others are --config.key=value
    workdir = Path(options.workdir)
    cases = [("random", float(ratio)) for ratio in options.ratios.split(",")]
    cases += [(name, 0.75) for name in options.masks.split(",") if name]
    rows = []
    for name, ratio in cases:
        changes = [f"--config.mask.name={name}", f"--config.mask.ratio={ratio}"]
        arguments = [f"--config={options.config}", *others, *changes]
        last = runs.last_record(arguments, workdir / f"{name}_{ratio}")
        row = {key: last[f"{key}_trained"] for key in ("linear", "knn", "loss")}
        row |= {"linear_untrained": last["linear_untrained"]}
        row |= {"loss_mean": last["loss_visible_mean"]}
        rows.append({"mask": name, "ratio": ratio} | row)
        print(f"{name} {ratio}: {row}", flush=True)
    files.write_json(str(workdir / "ablations.json"), rows)
    values = lambda key, name: [r[key] for r in rows if r["mask"] == name]
    lines = {name: (values("ratio", name), values("linear", name)) for name, _ in cases}
    picture = visualize.curve(lines, "linear probe", "test accuracy", "mask ratio")
    picture.save(workdir / "ablations.png")
    table = [["mask", "ratio", "linear", "kNN", "loss / mean"]]
    for r in rows:
        share, ratio = f"{r['loss'] / r['loss_mean']:.3f}", f"{r['ratio']:.2f}"
        table.append([r["mask"], ratio, f"{r['linear']:.4f}", f"{r['knn']:.4f}", share])
    print("\n" + tables.table(table))


if __name__ == "__main__":
    main()
