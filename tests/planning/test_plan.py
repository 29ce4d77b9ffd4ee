"""The command: what it says, and what it refuses."""

import json
import subprocess
import sys

import pytest

from mae_jax import plan
from mae_jax.planning import topology


def test_prints_a_report_and_writes_its_metrics(tmp_path, capsys):
    path = tmp_path / "plan.json"
    config = [
        "--config=configs/vit_base.py:debug",
        "--config.batch_size=16",
        "--config.model.depth=1",
    ]
    plan.main([*config, "--topology=h100:8", "--mesh=data=4,fsdp=2", f"--json={path}"])
    metrics = json.loads(path.read_text())
    assert metrics["mesh"] == {"data": 4, "fsdp": 2, "tensor": 1}
    assert f"{metrics['parameters'] / 1e6:.1f} M parameters" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--topology=tpu"], "unknown topology 'tpu': use one of v5e:4x4"),
        (["--topology=h100:0"], "unknown topology 'h100:0'"),
        (["--topology=cpu", "--mesh=rows=2"], "'rows=2' should be such as data=32,fsdp=8"),
        (["--topology=cpu", "--mesh=data=3"], "do not fill the 4 device(s)"),
        (["--topology=h100:8", "--config.batch_size=12"], "batch_size = 12 is not a multiple of 8"),
        (["--topology=h100:8", "--examples=0"], "--examples=0 must be at least 1"),
        (["--topology=cpu", "--config.model.depht=2"], "did you mean model.depth?"),
    ],
)
def test_mistakes_are_one_sentence(arguments, words, capsys):
    with pytest.raises(SystemExit) as exit:
        plan.main(["--config=configs/vit_base.py:debug", *arguments])
    assert exit.value.code == 2
    said = capsys.readouterr()
    assert words in said.err and said.err.count("\n") == 1 and not said.out


def test_without_the_compiler_for_tpus(monkeypatch):
    monkeypatch.setitem(sys.modules, "libtpu", None)
    with pytest.raises(ValueError, match=r"pip install 'mae_jax\[tpu\]'"):
        topology.devices("v5e:2x2")


def test_a_slice_of_tpus():
    """Bytes that a device sends do not grow with the slice beyond the ring's (n - 1) / n."""
    pytest.importorskip("libtpu", reason="the extra `tpu`: the compiler for TPUs")
    found = {}
    for slice in ("v5e:2x2", "v5e:4x4"):  # in a process of its own: jax is set up for it
        command = ["--config=configs/vit_base.py:debug", f"--topology={slice}"]
        command += ["--config.batch_size=32", "--json=/dev/stdout"]
        run = [sys.executable, "-m", "mae_jax.plan", *command]
        out = subprocess.run(run, check=True, capture_output=True, text=True)
        assert out.stderr.count("\n") == 1  # and nothing of libtpu's
        found[slice] = json.loads(out.stdout[out.stdout.index("\n{") :])
    small, large = (x["collectives"]["all-reduce"] for x in found.values())
    assert large["array"] == small["array"]
    assert large["sent"] / small["sent"] == pytest.approx((15 / 16) / (3 / 4), rel=1e-3)
    assert all(x["memory"]["fits"] and x["cycles"] for x in found.values())
