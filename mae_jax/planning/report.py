"""A plan as text: where the memory goes, what a step costs, and how long the run will take."""

from mae_jax.output import tables

COLUMNS = {
    "products": "products, at the peak",
    "memory": "bytes moved",
    "links": "bytes sent",
    "cycles": "the compiler's cycles",
}
ARITHMETIC_ALONE = (
    "Nothing was compiled; this is arithmetic alone. The activations are what differentiation "
    "keeps\nbefore XLA fuses and recomputes, and the bytes are the least that must move."
)


def text(plan: dict) -> str:
    """Return the report of a plan of `estimate.estimate`."""
    mesh = ", ".join(f"{name} {size}" for name, size in plan["mesh"].items())
    choices = ", ".join(f"{name} {value}" for name, value in plan["choices"].items())
    head = (
        f"{plan['devices']} x {plan['device']} ({mesh}), batch {plan['batch_size']:,}, "
        f"{plan['images_per_share']:g} in each share of it\n"
        f"{plan['parameters'] / 1e6:.1f} M parameters; {choices}"
    )
    texts = [head, tables.table([*_memory(plan), ["", ""], *_step(plan)])]
    if not plan["compiled"]:
        texts.append(ARITHMETIC_ALONE)
    if not plan["memory"]["fits"]:
        texts.append("DOES NOT FIT; try " + ", or ".join(plan["advice"]))
    return "\n\n".join([*texts, *_time(plan)])


def _memory(plan: dict) -> list[list[str]]:
    memory, state = plan["memory"], plan["state"]
    sizes = {
        "parameters": state["params"],
        "optimizer state": state["opt_state"],
        "average of the parameters": state["ema"],
        "batch": state["batch"],
        "activations and all else that is temporary": memory.get("temp"),
        "program": memory.get("generated_code"),
    }
    if not plan["compiled"]:
        sizes["gradients, activations before fusing"] = memory["peak"] - sum(state.values())
    rows = [["memory of a device", ""]]
    rows += [[f"  {name}", tables.amount(size)] for name, size in sizes.items() if size]
    rows.append(["  most in use", tables.amount(memory["peak"])])
    if limit := memory["limit"]:
        free = 1 - memory["peak"] / limit
        verdict = f"{abs(free):.0%} {'free' if free >= 0 else 'too much'}"
        rows.append(["  of", f"{tables.amount(limit)}: {verdict}"])
    return rows


def _step(plan: dict) -> list[list[str]]:
    per_image = lambda x, unit="B": f"{tables.amount(x, unit)} an image"
    rows = [["a step", ""]]
    for name, title in (("arithmetic", "by arithmetic"), ("program", "in the program")):
        if flops := plan[f"flops_{name}"]:
            rows.append([f"  products {title}", per_image(flops / plan["batch_size"], "FLOP")])
    for name, title in (
        ("bytes_accessed", "bytes its instructions touch"),
        ("bytes_moved", "bytes its memory moves"),
    ):
        if name in plan:
            rows.append([f"  {title}", per_image(plan[name] / plan["images_per_share"])])
    for kind, row in plan.get("collectives", {}).items():
        rows.append([f"  sent by a device, {kind} x {row['times']}", tables.amount(row["sent"])])
    return rows


def _time(plan: dict) -> list[str]:
    """Return the time of a step and of the run, or why there is no estimate of the time."""
    if "collectives" not in plan:
        return []
    if "step_seconds" not in plan:
        return ["There is no estimate of the time: the peaks of this device are not known."]
    longest = max(plan["seconds"].values())
    rows = [["time of a step", "estimate", ""]]
    for name, seconds in plan["seconds"].items():
        share = f"{seconds / longest:.0%}"
        rows.append([f"  {COLUMNS[name]}", f"{1e3 * seconds:,.2f} ms", share])
    ranges = {
        "at least, at most": ("step_seconds", 1e3, "{:,.1f} to {:,.1f} ms"),
        "images per second": ("images_per_second", 1, "{:,.0f} to {:,.0f}"),
        "MFU": ("mfu", 1, "{:.0%} to {:.0%}"),
        f"the run, {plan.get('steps', 0):,} steps": ("hours", 1, "{:,.1f} to {:,.1f} h"),
    }
    for title, (name, scale, form) in ranges.items():
        if name in plan:
            rows.append([title, form.format(*(scale * x for x in plan[name])), ""])
    note = "This is an estimate, nothing was run. It leaves out reading data, evaluating, saving "
    note += "and restarting."
    if "hours" not in plan:
        note += "\nThe hours need --examples=N, the number of examples in the data set."
    return [tables.table(rows), note]
