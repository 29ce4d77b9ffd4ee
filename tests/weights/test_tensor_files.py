"""Named arrays are read from every kind of file, and damaged files end in one sentence."""

import json
import struct

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import tiny_models

from mae_jax.weights import tensor_files


def test_a_slice_of_an_array_is_read(tmp_path):
    dtypes = (np.float32, np.float16, ml_dtypes.bfloat16, np.int64, np.bool_)
    state = {np.dtype(x).name: np.arange(24).reshape(4, 6).astype(x) for x in dtypes}
    path, scalar = tmp_path / "x.safetensors", np.array(3)
    safetensors.numpy.save_file(state | {"scalar": scalar}, path)
    tensors, metadata, _ = tensor_files.open_tensors(path)
    assert tensors.pop("scalar").read() == 3 and tensors.keys() == state.keys() and not metadata
    for name, x in state.items():
        part = tensors[name][1:3, :]
        assert part.dtype == x.dtype and tensors[name].shape == (4, 6)
        np.testing.assert_array_equal(part, x[1:3])
        np.testing.assert_array_equal(tensors[name].read(), x)


def test_damaged_files_are_refused(whole, tmp_path):
    data, path = whole[1].read_bytes(), tmp_path / "x"
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])

    def with_cls(**changes) -> bytes:
        entry = {"cls_token": header["cls_token"] | changes}
        text = json.dumps(header | entry).encode()
        return struct.pack("<Q", len(text)) + text + data[8 + length :]

    for content, says in {
        b"": "is empty",
        b"PK\x03\x04" + bytes(100): "damaged: its zip directory",
        b"Hello, these are no weights": "neither a .pth file of PyTorch nor a .safetensors",
        data[:100]: "damaged: its header cannot be used",
        data[: len(data) // 2]: "damaged: its header .* file not fully covered",
        data[:-1]: "damaged: its header .* file not fully covered",
        data[:8] + b"{" + bytes(len(data)): "damaged: its header .*JSON",
        struct.pack("<Q", 2**62) + b"{": "damaged: its header .* too large",
        with_cls(shape=[2**40, 2**40]): "damaged: its header cannot be used",
        with_cls(shape=[24, 1, 4], dtype="F8_E4M3"): "cls_token has the type F8_E4M3, which is not",
    }.items():
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"^{path}.* {says}"):
            tensor_files.open_tensors(path)


def test_a_folder_in_parts(tmp_path):
    """Large models of Hugging Face's are several files and an index."""
    state = {name: np.full(3, i, np.float32) for i, name in enumerate("abcd")}
    parts = {name: f"model-{i % 2}.safetensors" for i, name in enumerate(state)}
    for part in set(parts.values()):
        there = {n: x for n, x in state.items() if parts[n] == part}
        tiny_models.save(tmp_path / part, there)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": parts}))
    tensors = tensor_files.open_tensors(tmp_path).tensors
    tiny_models.equal({name: x.read() for name, x in tensors.items()}, state)
    (tmp_path / "model-1.safetensors").unlink()
    with pytest.raises(ValueError, match="names model-1.safetensors, which .* does not have"):
        tensor_files.open_tensors(tmp_path)
    index.write_text("[]")
    with pytest.raises(ValueError, match="index.json is damaged"):
        tensor_files.open_tensors(tmp_path)
