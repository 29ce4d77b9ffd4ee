"""A plan as text: where the memory goes, what a step costs, and how long the run will take."""

from mae_jax.output import tables

COLUMNS = {
    "products": "products, at the peak",
    "memory": "bytes moved",
    "links": "bytes sent",
    "cycles": "the compiler's cycles",
}


def text(plan: dict) -> str:
    """The report of a plan, of which `estimate.estimate` gives the metrics."""
    rows = [*_memory(plan), ["", ""], *_step(plan)]
    return "\n\n".join([_about(plan), tables.table(rows), *_notes(plan), *_time(plan)])


def _about(plan: dict) -> str:
    mesh = ", ".join(f"{name} {size}" for name, size in plan["mesh"].items())
    choices = ", ".join(f"{name} {value}" for name, value in plan["choices"].items())
    return (
        f"{plan['devices']} x {plan['device']} ({mesh}), batch {plan['batch_size']:,}, "
        f"{plan['images_per_share']:g} for a share\n"
        f"{plan['parameters'] / 1e6:.1f} M parameters; {choices}"
    )


def _memory(plan: dict) -> list[list[str]]:
    memory, state = plan["memory"], plan["state"]
    sizes = {
        "parameters": state["params"],
        "optimizer state": state["opt_state"],
        "average of the parameters": state["ema"],
        "batch": state["batch"],
    }
    if "temp" in memory:
        sizes["activations and all else that is temporary"] = memory["temp"]
        sizes["program"] = memory["generated_code"]
    elif not plan["compiled"]:
        sizes["gradients, activations before fusing"] = memory["peak"] - sum(state.values())
    rows = [["memory of a device", ""]]
    rows += [[f"  {name}", tables.amount(size)] for name, size in sizes.items() if size]
    rows.append(["  most in use", tables.amount(memory["peak"])])
    if limit := memory["limit"]:
        room = 1 - memory["peak"] / limit
        verdict = f"{abs(room):.0%} {'free' if room >= 0 else 'too much'}"
        rows.append(["  of", f"{tables.amount(limit)}: {verdict}"])
    return rows


def _step(plan: dict) -> list[list[str]]:
    rows = [["a step", ""]]
    for name, title in (("arithmetic", "by arithmetic"), ("program", "in the program")):
        if flops := plan[f"flops_{name}"]:
            amount = tables.amount(flops / plan["batch_size"], "FLOP")
            rows.append([f"  products {title}", f"{amount} an image"])
    if "bytes_moved" not in plan:
        return rows
    of_image = lambda size: f"{tables.amount(size / plan['images_per_share'])} an image"
    if "bytes_accessed" in plan:
        rows.append(["  bytes its instructions touch", of_image(plan["bytes_accessed"])])
    rows.append(["  bytes its memory moves", of_image(plan["bytes_moved"])])
    for kind, row in plan["collectives"].items():
        rows.append([f"  sent by a device, {kind} x {row['times']}", tables.amount(row["sent"])])
    return rows


def _notes(plan: dict) -> list[str]:
    notes = []
    if not plan["compiled"]:
        notes.append(
            "Nothing was compiled; this is arithmetic alone. The activations are what "
            "differentiation keeps\nbefore XLA fuses and recomputes, and the bytes are the least "
            "that must move."
        )
    if not plan["memory"]["fits"]:
        notes.append("DOES NOT FIT; try " + ", or ".join(plan["advice"]))
    return notes


def _time(plan: dict) -> list[str]:
    """The time of a step and of the run, or why there is no estimate of it."""
    if "collectives" not in plan:
        return []
    if "step_seconds" not in plan:
        return ["There is no estimate of the time: the peaks of this device are not known."]
    longest = max(plan["seconds"].values())
    rows = [["time of a step", "estimate", ""]]
    for name, seconds in plan["seconds"].items():
        share = f"{seconds / longest:.0%}"
        rows.append([f"  {COLUMNS[name]}", f"{1e3 * seconds:,.2f} ms", share])
    low, high = plan["step_seconds"]
    rows.append(["at least, at most", f"{1e3 * low:,.1f} to {1e3 * high:,.1f} ms", ""])
    slow, fast = plan["images_per_second"]
    rows.append(["images per second", f"{slow:,.0f} to {fast:,.0f}", ""])
    if "mfu" in plan:
        rows.append(["MFU", "{:.0%} to {:.0%}".format(*plan["mfu"]), ""])
    note = "This is an estimate, nothing was run. It leaves out reading data, evaluating, saving "
    note += "and restarting."
    if "hours" in plan:
        low, high = plan["hours"]
        rows.append([f"the run, {plan['steps']:,} steps", f"{low:,.1f} to {high:,.1f} h", ""])
    else:
        note += "\nThe hours need --examples=N, the number of examples in the data set."
    return [tables.table(rows), note]
