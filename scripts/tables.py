"""The figures of a benchmark as text."""

from mae_jax.output import tables


def step(figures: dict) -> str:
    """Of the training step or of the forward pass alone."""
    forward = figures["forward_flops_per_image"]
    whole = sum(forward.values())
    step = figures["part"] == "step"
    mfu, peak = "unknown (give --peak=TFLOPS, or --peak=measure)", "peak"
    if figures["mfu"]:
        mfu = f"{figures['mfu']:.1%}"
        peak += " (a large matrix product, in the same rounds)" * figures["peak_measured"]
    rows = {
        "device": "{devices} x {device}, {cores} cores of the host",
        "parameters": tables.amount(figures["parameters"], ""),
        "computed in": "{dtype}",
        "batch size": "{batch_size} in {accumulation} part(s)",
        "compilation": "{compile_seconds:.1f} s",
        f"{figures['part']}, median of {{rounds}} rounds": "{step_milliseconds:,.2f} ms",
        "  fastest round": "{step_milliseconds_fastest:,.2f} ms",
        "  slowest round": "{step_milliseconds_slowest:,.2f} ms",
        "images per second": "{images_per_second:,.1f}",
        "forward pass of one image": tables.amount(whole, "FLOP"),
        **{f"  {name}": f"{value / whole:.1%}" for name, value in forward.items()},
        f"{figures['part']} of the batch": tables.amount(figures["flops_per_step"], "FLOP"),
        "  products in its program": tables.amount(figures["flops_per_step_program"], "FLOP"),
        "achieved": tables.amount(figures["flops_per_second"], "FLOP/s"),
        peak: tables.amount(figures["peak_flops_per_second"], "FLOP/s"),
        "MFU": mfu,
        "memory of a device, planned": tables.amount(figures["memory_planned_bytes"], "B"),
        "memory of a device, most in use": tables.amount(figures["memory_peak_bytes"], "B"),
    }
    if not step:
        del rows["forward of the batch"]
    text = tables.table([[x.format(**figures) for x in row] for row in rows.items()])
    return "\n\n".join([text, *against(figures), *operations(figures)])


def against(figures: dict) -> list[str]:
    """The other contenders, as a table and a sentence for each; nothing if there are none."""
    if not (others := figures.get("against")):
        return []
    columns = ["", figures["part"], "images/s", "times as long", "in each round", "memory"]
    rows = [columns]
    for name, row in {"mae_jax": figures, **others}.items():
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
    parts = figures["against_forward_flops_per_image"]
    extra = sum(parts.values()) / sum(figures["forward_flops_per_image"].values()) - 1
    return [
        tables.table(rows),
        f"torch {figures['torch']}, transformers {figures['transformers']}: ViTMAEForPreTraining, "
        f"SDPA, AdamW, on {figures['cores']} threads. Its\nforward pass has {extra:.1%} more "
        "FLOPs, which is its own way: it embeds hidden patches too, and its head\nruns on visible "
        "ones.",
    ]


def operations(figures: dict, shown: int = 16) -> list[str]:
    """What the time of a step goes to, if that was asked for: by kind, and the largest places."""
    texts = []
    for title in ("kind", "place"):
        spent = figures.get("operations", {}).get(title, {})
        whole = sum(spent.values())
        rows = [["share of the time by " + title, "", ""]]
        for name, part in list(spent.items())[:shown]:
            rows.append(["  " + name, f"{1e3 * part:,.2f} ms", f"{part / whole:.1%}"])
        texts += [tables.table(rows)] * bool(spent)
    return texts


def decoders(figures: dict) -> str:
    """Of the decoders: everything relative to the first row."""
    rows = figures["rows"]
    first = next(iter(rows.values()))
    lines = [["decoder, decoded", "step", "times as long", "temporary memory", "forward FLOPs"]]
    for name, row in rows.items():
        lines.append(
            [
                name,
                f"{row['step_milliseconds']:,.2f} ms",
                f"{row['times_as_long']:.2f}",
                ratio(row["temporary_bytes"], first["temporary_bytes"]),
                ratio(row["forward_flops_per_image"], first["forward_flops_per_image"]),
            ]
        )
    about = "{devices} x {device}, {cores} cores, batch {batch_size}, ratios to the first row"
    return about.format(**figures) + "\n\n" + tables.table(lines)


def ratio(value: float | None, first: float | None) -> str:
    return f"{value / first:.2f}" if value and first else "unknown"


def inputs(figures: dict) -> str:
    """Of the input alone."""
    rows = {
        "input": "{source}, {data_threads} threads on {cores} cores",
        "batch size": "{batch_size}",
        "images per second, median of {rounds} rounds": "{images_per_second:,.1f}",
        "  for each core": "{images_per_second_per_core:,.1f}",
        "time of one core for an image": "{cpu_milliseconds_per_image:.2f} ms",
        "handed over": tables.amount(figures["bytes_per_second"], "B/s"),
    }
    return tables.table([[x.format(**figures) for x in row] for row in rows.items()])


def loop(figures: dict) -> str:
    """Of the loop, the step and the input; the last line names the bottleneck."""
    rows = [["", "images/s", "slowest round", "fastest round"]]
    for name in ("input", "step", "loop"):
        part = figures[name]
        rates = part.get("rounds_images_per_second")
        if rates is None:
            rates = [1e3 * figures["batch_size"] / x for x in part["rounds_milliseconds"]]
        speeds = part["images_per_second"], min(rates), max(rates)
        rows.append([name + " alone" * (name != "loop"), *(f"{x:,.1f}" for x in speeds)])
    about = "{devices} x {device}, {cores} cores, batch {batch_size}".format(**figures)
    if figures["device"] == "cpu":
        about += "; input and step share the cores, so their times add up"
    return "\n\n".join([about, tables.table(rows), figures["bottleneck"]])
