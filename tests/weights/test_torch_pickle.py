"""Files of PyTorch are read to the bit, and nothing in them is run."""

import collections
import os
import pickle
import zipfile
from argparse import Namespace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from mae_jax.weights import torch_pickle


def write_pickle(path, content) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", content)
    return path


@pytest.mark.parity
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_reads_what_torch_saves(legacy, tmp_path):
    """Every type, strides, shared storages, and what training keeps beside the parameters."""
    import torch

    base = torch.arange(24.0).reshape(4, 6)
    kinds = "float32 float16 bfloat16 float64 int64 int32 int16 int8 uint8 bool".split()
    state = {kind: base.to(getattr(torch, kind)) for kind in kinds}
    state |= {"transposed": base.t(), "part": base[1:, ::2], "same": torch.ones(1, 3).expand(5, 3)}
    state |= {"scalar": torch.tensor(3.0), "empty": torch.zeros(0, 3)}
    state |= {"parameter": torch.nn.Parameter(base + 1)}
    args = Namespace(lr=1e-3, gpu=0, output_dir="x")
    beside = {"optimizer": {"state": {0: {"exp_avg": torch.zeros(7)}}}, "epoch": 3, "args": args}
    for file in (
        {"model": state} | beside,
        {"state_dict": collections.OrderedDict(state)},
        collections.OrderedDict(state),
    ):
        torch.save(file, tmp_path / "x.pth", _use_new_zipfile_serialization=not legacy)
        theirs = torch.load(tmp_path / "x.pth", weights_only=False)
        theirs = theirs.get("model", theirs.get("state_dict", theirs))
        ours, _ = torch_pickle.read(tmp_path / "x.pth")
        assert ours.keys() == theirs.keys()
        for name, x in theirs.items():
            x = x.detach()
            exact = x.float().numpy() if x.dtype == torch.bfloat16 else x.numpy()
            assert ours[name].dtype == (ml_dtypes.bfloat16 if name == "bfloat16" else exact.dtype)
            np.testing.assert_array_equal(ours[name].astype(exact.dtype), exact)
            assert x.numel() == 0 or not ours[name].flags.writeable


class Evil:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_a_pickle_with_code_is_refused_and_not_run(legacy, tmp_path):
    path, marker = tmp_path / "x.pth", tmp_path / "it_ran"
    content = pickle.dumps({"model": {"x": 1}, "args": Evil(marker)}, protocol=2)
    if legacy:
        path.write_bytes(torch_pickle.LEGACY + content)
    else:
        write_pickle(path, content)
    with pytest.raises(ValueError, match=r"asks for (posix|nt)\.mkdir, .*nothing of it was run"):
        torch_pickle.read(path)
    assert not marker.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"cbuiltins\neval\n(X\x01\x00\x00\x001tR.",
        b"\x80\x04\x8c\x08builtins\x8c\x04exec\x93.",
        b"\x80\x04\x8c\x13torch.serialization\x8c\x04load\x93.",
        b"ctorch._utils\n_rebuild_tensor_v2.__globals__\n.",
        b"ccollections\nOrderedDict.fromkeys\n.",
    ],
)
def test_no_other_name_is_found(content, tmp_path):
    with pytest.raises(ValueError, match="asks for .* refused"):
        torch_pickle.read(write_pickle(tmp_path / "x.pth", content))


@pytest.mark.parametrize("content", [b"\x80\x02}", b"not a pickle", pickle.dumps([1, 2])])
def test_a_damaged_pickle_is_refused(content, tmp_path):
    with pytest.raises(ValueError, match="damaged|no state dict"):
        torch_pickle.read(write_pickle(tmp_path / "x.pth", content))


def test_a_small_file_takes_little_memory(tmp_path):
    """A memo index of 2**28 would be a table of 4 GB, and a stride of 0 any number of values."""
    with pytest.raises(ValueError, match="damaged: its pickle cannot be read"):
        torch_pickle.read(write_pickle(tmp_path / "x.pth", b"\x80\x02]r\xff\xff\xff\x0f."))
    tensor = torch_pickle._Tensor("0", np.dtype("<f4"), 1, 0, (2**40,), (0,))
    with pytest.raises(ValueError, match="shape"):
        torch_pickle._view(tensor, np.zeros(4, np.uint8), 1000)


@pytest.mark.parity
def test_a_torn_file_is_refused_wherever_it_is_torn(tmp_path):
    import torch

    for legacy in (False, True):
        state = {f"x{i}": torch.ones(50) for i in range(3)}
        torch.save(state, tmp_path / "x.pth", _use_new_zipfile_serialization=not legacy)
        data = (tmp_path / "x.pth").read_bytes()
        for end in range(1, len(data), 97):
            (tmp_path / "x.pth").write_bytes(data[:end])
            with pytest.raises(ValueError, match="is damaged"):
                torch_pickle.read(tmp_path / "x.pth")


@pytest.mark.parity
def test_a_tensor_beyond_its_storage_is_refused(tmp_path):
    import torch

    torch.save({"x": torch.ones(50)}, tmp_path / "x.pth")
    with zipfile.ZipFile(tmp_path / "x.pth") as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    for old, new in ((b"K2\x85", b"K3\x85"), (b"K\x01\x85", b"K\x02\x85")):  # its size, its stride
        with zipfile.ZipFile(tmp_path / "y.pth", "w") as archive:
            for name, data in content.items():
                assert not name.endswith("data.pkl") or old in data
                archive.writestr(name, data.replace(old, new) if ".pkl" in name else data)
        with pytest.raises(ValueError, match="the values of x are not all in it"):
            torch_pickle.read(tmp_path / "y.pth")
