"""scripts/benchmark/torch_mae.py: what our step is compared with does the same work."""

import jax
import numpy as np
import pytest

from mae_jax.config import command_line
from mae_jax.planning import flops
from scripts.benchmark import step, torch_mae

pytestmark = pytest.mark.parity


def configured(*changes):
    return command_line.configured("configs/vit_base.py:debug", changes)


@pytest.fixture(scope="module")
def tiny():
    return configured()


def test_torch_does_the_same_work(tiny):
    """As torch counts it, to the last FLOP, with the same parameters and another network."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    oracle = torch_mae.network(tiny)
    tables = [x for x in oracle.parameters() if not x.requires_grad]
    assert len(tables) == 2 and all(x.abs().max() > 0.5 for x in tables)
    loss = torch_mae.loss_of(tiny, oracle, "cpu")
    batch = torch.zeros(2, 3, 64, 64, dtype=torch.uint8)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        value = loss(batch)
        forward = counter.get_total_flops()
        value.backward()
    theirs = torch_mae.forward_flops(tiny)
    assert forward == 2 * sum(theirs.values())
    assert counter.get_total_flops() == flops.step_flops(theirs, 2)

    params = step.training_program(tiny)[1].abstract.params
    assert torch_mae.trained(oracle) == sum(x.size for x in jax.tree.leaves(params))


def test_torch_trains_in_a_step_and_only_then():
    import torch

    config = configured("--config.optimizer.base_learning_rate=0.1")

    ramp = np.arange(64, dtype=np.uint8)[:, None]  # down the rows: it looks the same flipped
    images = np.broadcast_to(ramp[None, :, :, None], (8, 64, 64, 3))
    losses = {}
    threads = torch.get_num_threads()
    for part in ("step", "forward"):
        contender = torch_mae.contender(config, images, part, compiled=False, device="cpu")
        losses[part] = [float(contender.wait(contender.dispatch())) for _ in range(12)]
    torch.set_num_threads(threads)
    assert losses["step"][-1] < 0.9 * losses["step"][0]
    assert np.std(losses["forward"]) > 0  # of the masks
    assert losses["forward"][-1] == pytest.approx(losses["forward"][0], rel=0.05)


@pytest.mark.parametrize(
    "change",
    ["model.decoder=cross", "mask.decode=0.5", "accumulation=2", "data.size=(64, 32)"],
)
def test_torch_is_not_compared_with_other_work(tiny, change, monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    assert torch_mae.device_of(tiny) == "cpu"
    with pytest.raises(ValueError, match=change.partition("=")[0]):
        torch_mae.device_of(configured(f"--config.{change}"))


def test_compares_with_torch_also_without_its_compiler(tiny, monkeypatch, capsys):
    import torch

    def broken(*arguments, **options):
        raise RuntimeError("no C++ compiler\nand much more")

    monkeypatch.setattr(torch, "compile", broken)
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    images, threads = np.zeros((8, 64, 64, 3), np.uint8), torch.get_num_threads()
    contenders = torch_mae.contenders(tiny, images, "step", torch_mae.device_of(tiny))
    torch.set_num_threads(threads)
    assert [contender.name for contender in contenders] == ["torch, eager"]
    assert (
        capsys.readouterr().err == "torch.compile does not work on this machine: no C++ compiler\n"
    )
