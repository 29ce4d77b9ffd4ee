"""Files of PyTorch are read to the bit, and nothing in them is run."""

import collections
import os
import pickle
import tracemalloc
import zipfile
from argparse import Namespace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from mae_jax.weights import stand_ins, torch_pickle


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
        b"\x80\x02c__builtin__\ngetattr\n.",
        b"cpathlib\nPosixPath.unlink\n.",
        b"cpathlib\nos\n.",
        b"\x80\x04\x8c\x08argparse\x8c\x12Namespace.__init__\x93.",
        b"cnumpy\nload\n.",
        b"cfunctools\npartial\n.",
        b"ctorch\nload\n.",
    ],
)
def test_no_other_name_is_found(content, tmp_path):
    with pytest.raises(ValueError, match="asks for .* refused"):
        torch_pickle.read(write_pickle(tmp_path / "x.pth", content))


@pytest.mark.parametrize("content", [b"\x80\x02}", b"not a pickle", pickle.dumps([1, 2])])
def test_a_damaged_pickle_is_refused(content, tmp_path):
    with pytest.raises(ValueError, match="damaged|no state dict"):
        torch_pickle.read(write_pickle(tmp_path / "x.pth", content))


TENSOR = (
    b"ctorch._utils\n_rebuild_tensor_v2\n((S'storage'\nctorch\nFloatStorage\nS'0'\nS'cpu'\nI4\ntQ"
    b"I0\n(I2\nI2\nt(I2\nI1\ntI00\nccollections\nOrderedDict\n)RtR"
)


def write_weights(path, before: bytes = b"") -> Path:
    """A file of one matrix, the pickle of which first runs `before`, and drops its object."""
    write_pickle(
        path, b"\x80\x02" + before + (b"0" if before else b"") + b"}S'w'\n" + TENSOR + b"s."
    )
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/data/0", np.arange(4, dtype="<f4").tobytes())
    return path


NAMESPACE, ENCODE = b"cargparse\nNamespace\n", b"c_codecs\nencode\n"
SIDE = b"}S'%s'\n%bs\x86b"  # the state (None, {name: value}) sets an attribute, even of a class


@pytest.mark.parametrize(
    "before, loads",
    [
        (NAMESPACE + b")R}S'__setstate__'\n" + ENCODE + b"sb" + b"Nb", True),  # a state of its own
        (NAMESPACE + b")RN" + SIDE % (b"__class__", b"cbuiltins\nset\n"), True),
        (NAMESPACE + b")RNNs(NNu(NNe", True),  # items
        (NAMESPACE + b"(NNt\x81", True),  # arguments
        (b"cpathlib._local\nPosixPath\n(S'/'\nS'x'\ntR", True),  # Python 3.13
        (NAMESPACE + b")R)R", False),  # called itself
        (NAMESPACE + b"N" + SIDE % (b"__init__", ENCODE), False),  # of the class
        (NAMESPACE + b"Nb", False),
        (b"ctorch._utils\n_rebuild_tensor_v2\nN" + SIDE % (b"__defaults__", b"(NNt"), True),
        (b"ctorch._utils\n_rebuild_tensor_v2\nN" + SIDE % (b"__code__", b"N"), False),
        (ENCODE + b"N" + SIDE % (b"__defaults__", b"(NNt"), True),
        (ENCODE + b"NNN\x87R", False),
        (b"cnumpy.core.multiarray\nscalar\ncnumpy\ndtype\nS'O8'\n\x85RS'x'\n\x86R", True),
        (
            b"cnumpy\ndtype\nS'f8'\n\x85R(I3\nS'<'\ntbq\x00"
            + b"cnumpy.core.multiarray\nscalar\n(h\x00S'x'\ntR",
            True,
        ),
        (b"ccollections\nOrderedDict\n)R}S'__reduce__'\n" + ENCODE + b"sb", True),
        (b"cbuiltins\nbytearray\n\x8a\x06\0\0\0\0\0\x01\x85R", True),  # of a terabyte
    ],
)
def test_tricks_with_stand_ins_do_nothing(before, loads, tmp_path):
    """They end in one sentence or in the weights, and change nothing for the next file."""
    expected = {"w": [[0, 1], [2, 3]]}
    read = lambda path: {name: x.tolist() for name, x in torch_pickle.read(path)[0].items()}
    path = write_weights(tmp_path / "x.pth", before)
    if loads:
        assert read(path) == expected
    else:
        with pytest.raises(ValueError, match="damaged: its pickle cannot be read"):
            read(path)
    assert stand_ins._encode.__defaults__ == ("latin1",)
    assert read(write_weights(tmp_path / "y.pth", NAMESPACE + b")R}S'x'\nNsb")) == expected


def test_a_small_file_takes_little_memory(tmp_path):
    """A memo index of 2**28 would be a table of 4 GB, and a stride of 0 any number of values."""
    with pytest.raises(ValueError, match="damaged: its pickle cannot be read"):
        torch_pickle.read(write_pickle(tmp_path / "x.pth", b"\x80\x02]r\xff\xff\xff\x0f."))
    tensor = torch_pickle._Tensor("0", np.dtype("<f4"), 1, 0, (2**40,), (0,))
    with pytest.raises(ValueError, match="shape"):
        torch_pickle._view(tensor, np.zeros(4, np.uint8), 1000)


LIST = b"](" + b"K\x01" * 2000 + b"e"
PAIRS = b"](" + b"".join(b"I%d\nN\x86" % i for i in range(2000)) + b"e"
DICT = b"}(" + b"".join(b"I%d\nN" % i for i in range(2000)) + b"u"
TEXT = b"X\x00\x00\x01\x00" + b"x" * 2**16
CALL, BUILD = b"h\x01h\x00\x85R", b"h\x01)Rh\x00b"


@pytest.mark.parametrize(
    "large, what, once",
    [
        (LIST, b"ctorch\nSize\n", CALL),
        (LIST, b"cbuiltins\nset\n", CALL),
        (PAIRS, b"ccollections\nOrderedDict\n", CALL),
        (DICT, b"ccollections\nCounter\n", CALL),
        (TEXT, ENCODE, CALL),
        (TEXT, b"cpathlib\nPosixPath\n", CALL),
        (DICT, NAMESPACE, BUILD),
        (DICT, b"ccollections\nOrderedDict\n", BUILD),
    ],
)
def test_one_large_object_that_is_given_often_is_not_copied(large, what, once, tmp_path):
    """2000 copies would be 32 MB or more."""
    before = large + b"q\x00" + what + b"q\x01(" + once * 2000 + b"t0" + b"0"
    path = write_weights(tmp_path / "x.pth", before)
    tracemalloc.start()
    try:
        assert torch_pickle.read(path)[0].keys() == {"w"}
        assert tracemalloc.get_traced_memory()[1] < 8e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("nest", [b"\x85", b"\x85q\x00h\x00", b"N\x86", b"NN\x87"])
def test_deep_nesting_does_not_end_the_process(nest, tmp_path):
    """The hash of many nested tuples overflows the stack of the interpreter."""
    path = tmp_path / "x.pth"
    with pytest.raises(ValueError, match="damaged: its pickle cannot be read"):
        torch_pickle.read(write_pickle(path, b"\x80\x02}()" + nest * 20_000 + b"Nu."))
    assert write_weights(path, b"}()" + nest * 500 + b"Nu").exists()
    assert torch_pickle.read(path)[0].keys() == {"w"}
    key = b"S'model'\n"
    write_pickle(path, b"\x80\x02" + (b"}" + key) * 10_000 + b"N" + b"s" * 10_000 + b".")
    with pytest.raises(ValueError, match="holds no state dict"):
        torch_pickle.read(path)
    write_pickle(path, b"\x80\x02}q\x00" + key + b"h\x00s" + b"S'net'\nh\x00s.")
    with pytest.raises(ValueError, match="holds no state dict"):  # it holds itself
        torch_pickle.read(path)


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
