"""What surrounds the step in a benchmark: either decoder."""

import statistics

import jax
import jax_mae  # this and the next two are beside this file
import rounds
import torch_mae

from mae_jax import flops
from mae_jax.tasks import pretrain

SHARES = (1.0, 0.75, 0.25)  # of the hidden patches that are predicted


def decoders(config, options) -> dict:
    """Steps with the self- and the cross-decoder, with less and less of the hidden patches decoded.

    The cross-decoder has half as many blocks again, as CrossMAE has 12 for 8: about the same FLOPs.
    """
    depth, cross = config["model"]["decoder_depth"], config["model"]["decoder_cross"]
    depths = {"self": round(depth / 1.5), "cross": depth}
    if not cross:
        depths = {"self": depth, "cross": round(depth * 1.5)}
    programs, rows = {}, {}
    for decoder, blocks in depths.items():
        for share in SHARES:
            config["model"] |= dict(decoder_cross=decoder == "cross", decoder_depth=blocks)
            config["mask"] |= dict(decode=share)
            name = f"{decoder}, {blocks} blocks, {share:.0%}"
            programs[name] = program = jax_mae.program(config, name=name)
            model, hide = pretrain.model_of(config), pretrain.hiding_of(config)
            parts = flops.forward_flops(
                model, hide.n, hide.keep, config["data"]["channels"], hide.decode
            )
            analysis = program.compiled.memory_analysis()
            rows[name] = {
                "decoder": decoder,
                "decode": share,
                "memory_planned_bytes": jax_mae.memory(program.compiled)["memory_planned_bytes"],
                "temporary_bytes": analysis.temp_size_in_bytes if analysis else None,
                "forward_flops_per_image": sum(parts.values()),
            }
    contenders = [program.contender for program in programs.values()]
    seconds, _ = rounds.alternate(contenders, options.rounds, options.steps)
    first = next(iter(rows))
    for name, row in rows.items():
        row |= rounds.figures(seconds[name], config["batch_size"])
        row["times_as_long"] = statistics.median(rounds.ratios(seconds[name], seconds[first]))
    return {
        "part": "decoders",
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "threads": torch_mae.cores(),
        "jax": jax.__version__,
        "batch_size": config["batch_size"],
        "rounds": options.rounds,
        "steps": options.steps,
        "rows": rows,
    }
