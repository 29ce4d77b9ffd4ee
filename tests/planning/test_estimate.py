"""The plan of a run, against arithmetic and against what training does."""

import contextlib
import json

import jax
import pytest

from mae_jax import tasks
from mae_jax.config import command_line
from mae_jax.data import pipeline, sources
from mae_jax.distributed import device_mesh, partitioning
from mae_jax.planning import devices, estimate, report


def planned(place, examples=None, *changes):
    config = command_line.configured("configs/vit_base.py:debug", [*TINY, *changes])
    return estimate.estimate(config, place, examples)


TINY = ["--config.model.depth=1"]


@pytest.fixture(scope="module")
def plan():
    """Of a tiny network, compiled for the four devices of the tests."""
    return planned("cpu")


def test_a_plan_agrees_with_arithmetic(plan):
    assert plan["flops_program"] == pytest.approx(plan["flops_arithmetic"], rel=0.02)
    parameters = 4 * plan["parameters"]
    assert plan["state"]["params"] == parameters
    assert plan["state"]["opt_state"] == pytest.approx(2 * parameters, abs=16)
    reduced = plan["collectives"]["all-reduce"]  # the gradients, and a loss
    assert reduced["array"] == pytest.approx(parameters, rel=0.01)
    assert reduced["sent"] == pytest.approx(2 * 3 / 4 * reduced["array"], rel=1e-6)
    memory = plan["memory"]
    assert memory["fits"]
    assert memory["peak"] > memory["temp"] + sum(plan["state"].values())
    assert plan["examples"] == 64


def test_the_report_of_a_plan(plan):
    text = report.text(plan)
    assert "sent by a device, all-reduce" in text
    assert "the peaks of this device are not known" in text
    assert "DOES NOT FIT" not in text
    assert json.loads(json.dumps(plan)) == plan


@pytest.mark.parametrize("magnitude", [0.0, 9.0])
def test_the_batch_of_a_plan_is_that_of_training(magnitude):
    changes = [f"--config.regularize.randaugment={magnitude}"]
    config = command_line.configured("configs/finetune_quickstart.py:debug", changes)
    mesh, train = device_mesh.make_mesh(), config.data.train
    source = estimate.find_source(config, None)
    shapes = estimate.batch_shapes(config, partitioning.batched(mesh), source)
    examples = sources.open_source(train.source, train.split)
    task = tasks.build(config, examples, (0.5,) * 3, (0.5,) * 3)
    with contextlib.closing(
        pipeline.training_batches(examples, task.transform, pipeline.Order(config.batch_size, 0))
    ) as batches:
        batch = partitioning.place(next(batches), mesh)
    form = lambda x: (x.shape, x.dtype, x.sharding)
    assert jax.tree.map(form, shapes) == jax.tree.map(form, batch)
    assert ("color" in batch) == bool(magnitude)


def test_a_plan_for_gpus_that_are_not_here():
    whole = planned("h100:8", 10_000)
    wide = ["--config.mesh.fsdp=8", "--config.model.width=768", "--config.model.heads=12"]
    sharded = planned("h100:8", 10_000, *wide)
    assert not whole["compiled"]
    assert whole["mesh"] == {"data": 8, "fsdp": 1, "tensor": 1}
    assert whole["steps"] == 10_000 // 8
    assert whole["choices"]["dtype"] == "bfloat16"  # not that of the CPU that plans
    assert sharded["state"]["params"] < 0.25 * 4 * sharded["parameters"]  # small ones are whole
    text = report.text(whole)
    assert "Nothing was compiled; this is arithmetic alone." in text
    assert "This is an estimate, nothing was run." in text
    least, most = whole["step_seconds"]
    assert 0 < least <= most
    terms = whole["seconds"]
    assert (least, most) == pytest.approx((max(terms.values()), sum(terms.values())))


def test_a_plan_that_does_not_fit_says_what_would():
    """Of activations: fewer samples at a time or less kept, and nothing of the state."""
    large = "--config.batch_size=8388608"
    plan = planned("l4:8", 10**7, large)
    assert not plan["memory"]["fits"]
    assert not any("shard" in flag or "fsdp" in flag for flag in plan["advice"])
    assert any("accumulation" in flag or "remat" in flag for flag in plan["advice"])
    assert "DOES NOT FIT; try --config" in report.text(plan)
    last = plan["advice"][-1]  # arithmetic of the same kind says that it does
    assert planned("l4:8", 10**7, large, last)["memory"]["peak"] < plan["memory"]["peak"]


def test_where_nothing_suffices_alone_each_flag_is_named_once():
    config = command_line.configured("configs/vit_base.py:debug", [])
    plan = dict(memory=dict(peak=1e12, limit=1e9), kept=1e11, images_per_share=1)
    plan["state"] = dict(params=1e6, opt_state=2e6, ema=0)
    flags = estimate.advice(config, plan, 8, lambda remat: 10**10)
    together = "--config.optimizer.shard --mesh=fsdp=8 --config.model.remat=inputs together"
    assert flags == [f"{together}, or a smaller --config.batch_size"]


def test_what_the_compiler_says_of_too_little_memory():
    said = "Ran out of memory in memory space hbm. Used 17.2G of 15.75G hbm. Exceeded by 1.5G."
    assert estimate.out_of_memory(said) == (17.2 * 2**30, 15.75 * 2**30)
    said = "for HLO temporaries (1.00T) exceeds available HBM (15.75G). HLO module: jit_step."
    assert estimate.out_of_memory(said) == (2**40, 15.75 * 2**30)
    assert estimate.out_of_memory("something else") is None


def test_time_is_between_the_slowest_resource_and_the_cycles_of_the_compiler():
    config = command_line.configured("configs/vit_base.py", ["--config.batch_size=256"])
    offers = devices.Device(flops=1e12, bandwidth=1e9, memory=1e9, links=1e9, clock=1e9)
    plan = dict(flops_program=2e12, flops_arithmetic=1e12, devices=2, bytes_moved=3e9, cycles=None)
    plan |= dict(collectives={"all-reduce": {"sent": 2e9}}, examples=2560)
    times = estimate.times(config, plan, offers)
    assert times["seconds"] == {"products": 1.0, "memory": 3.0, "links": 2.0}
    assert times["step_seconds"] == [3.0, 6.0]
    assert times["images_per_second"] == [256 / 6, 256 / 3]
    assert times["mfu"] == [1 / 12, 1 / 6]  # of two devices, the work by arithmetic
    assert times["steps"] == 800 * 10 and times["hours"] == [8000 * x / 3600 for x in (3.0, 6.0)]
    assert estimate.times(config, plan | dict(cycles=7e9), offers)["step_seconds"] == [3.0, 9.0]
