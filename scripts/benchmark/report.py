"""The metrics of a benchmark as text, one function for each part."""

from mae_jax.output import tables


def steps(metrics: dict) -> str:
    """Report the training step or the forward pass alone."""
    forward = metrics["forward_flops_per_image"]
    whole = sum(forward.values())
    step = metrics["part"] == "step"
    mfu, peak = "unknown (give --peak=TFLOPS, or --peak=measure)", "peak"
    if metrics["mfu"]:
        mfu = f"{metrics['mfu']:.1%}"
        peak += " (a large matrix product, in the same rounds)" * metrics["peak_measured"]
    rows = {
        "device": "{devices} x {device}, {cores} cores of the host",
        "parameters": tables.amount(metrics["parameters"], ""),
        "computed in": "{dtype}",
        "batch size": "{batch_size} in {accumulation} part(s)",
        "compilation": "{compile_seconds:.1f} s",
        f"{metrics['part']}, median of {{rounds}} rounds": "{step_milliseconds:,.2f} ms",
        "  fastest round": "{step_milliseconds_fastest:,.2f} ms",
        "  slowest round": "{step_milliseconds_slowest:,.2f} ms",
        "images per second": "{images_per_second:,.1f}",
        "forward pass of one image": tables.amount(whole, "FLOP"),
        **{f"  {name}": f"{value / whole:.1%}" for name, value in forward.items()},
        f"{metrics['part']} of the batch": tables.amount(metrics["flops_per_step"], "FLOP"),
        "  products in its program": tables.amount(metrics["flops_per_step_program"], "FLOP"),
        "achieved": tables.amount(metrics["flops_per_second"], "FLOP/s"),
        peak: tables.amount(metrics["peak_flops_per_second"], "FLOP/s"),
        "MFU": mfu,
        "memory of a device, planned": tables.amount(metrics["memory_planned_bytes"], "B"),
        "memory of a device, most in use": tables.amount(metrics["memory_peak_bytes"], "B"),
    }
    if not step:
        del rows["forward of the batch"]
    text = tables.table([[x.format(**metrics) for x in row] for row in rows.items()])
    return "\n\n".join([text, *against(metrics), *operations(metrics)])


def against(metrics: dict) -> list[str]:
    """Report the other contenders as a table and a sentence; nothing if there are none."""
    if not (others := metrics.get("against")):
        return []
    columns = ["", metrics["part"], "images/s", "times as long", "in each round", "memory"]
    rows = [columns]
    for name, row in {"mae_jax": metrics, **others}.items():
        ratios = row.get("times_as_long_rounds", [])
        rows.append(
            [
                name,
                f"{row['step_milliseconds']:,.2f} ms",
                f"{row['images_per_second']:,.1f}",
                f"{row.get('times_as_long', 1.0):.2f}",
                f"{min(ratios):.2f} to {max(ratios):.2f}" if ratios else "",
                tables.amount(row["memory_peak_bytes"], "B"),
            ]
        )
    parts = metrics["against_forward_flops_per_image"]
    extra = sum(parts.values()) / sum(metrics["forward_flops_per_image"].values()) - 1
    return [
        tables.table(rows),
        f"torch {metrics['torch']}, transformers {metrics['transformers']}: ViTMAEForPreTraining, "
        f"SDPA, AdamW, on {metrics['cores']} threads. Its\nforward pass has {extra:.1%} more "
        "FLOPs, as in the reference: it embeds masked patches too, and its head runs\non visible "
        "ones.",
    ]


def operations(metrics: dict, shown: int = 16) -> list[str]:
    """Report what the time of a step goes to, if `--operations` asked: by kind and by place."""
    texts = []
    for title in ("kind", "place"):
        spent = metrics.get("operations", {}).get(title, {})
        whole = sum(spent.values())
        rows = [["share of the time by " + title, "", ""]]
        for name, part in list(spent.items())[:shown]:
            rows.append(["  " + name, f"{1e3 * part:,.2f} ms", f"{part / whole:.1%}"])
        texts += [tables.table(rows)] * bool(spent)
    return texts


def variants(metrics: dict) -> str:
    """Report several changes of a config, everything relative to the first row."""
    rows = metrics["rows"]
    first = next(iter(rows.values()))
    keys = ("temporary_bytes", "forward_flops_per_image")
    lines = [["", "step", "times as long", "temporary memory", "forward FLOPs"]]
    for name, row in rows.items():
        times = f"{row['step_milliseconds']:,.2f} ms", f"{row['times_as_long']:.2f}"
        others = (f"{row[key] / first[key]:.2f}" if row[key] else "unknown" for key in keys)
        lines.append([name, *times, *others])
    about = "{devices} x {device}, {cores} cores, batch {batch_size}, ratios to the first row"
    return about.format(**metrics) + "\n\n" + tables.table(lines)


def inputs(metrics: dict) -> str:
    """Report the input alone."""
    rows = {
        "input": "{source}, {data_threads} threads on {cores} cores",
        "batch size": "{batch_size}",
        "images per second, median of {rounds} rounds": "{images_per_second:,.1f}",
        "  for each core": "{images_per_second_per_core:,.1f}",
        "time of one core for an image": "{cpu_milliseconds_per_image:.2f} ms",
        "handed over": tables.amount(metrics["bytes_per_second"], "B/s"),
    }
    return tables.table([[x.format(**metrics) for x in row] for row in rows.items()])


def loop(metrics: dict) -> str:
    """Report the loop, the step and the input; the last line names the bottleneck."""
    rows = [["", "images/s", "slowest round", "fastest round"]]
    for name in ("input", "step", "loop"):
        part = metrics[name]
        rates = part.get("rounds_images_per_second")
        if rates is None:
            rates = [1e3 * metrics["batch_size"] / x for x in part["rounds_milliseconds"]]
        speeds = part["images_per_second"], min(rates), max(rates)
        rows.append([name + " alone" * (name != "loop"), *(f"{x:,.1f}" for x in speeds)])
    about = "{devices} x {device}, {cores} cores, batch {batch_size}".format(**metrics)
    if metrics["device"] == "cpu":
        about += "; input and step share the cores, so their times add up"
    return "\n\n".join([about, tables.table(rows), metrics["bottleneck"]])
