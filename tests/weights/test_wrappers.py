"""A network is found in the dicts that training code wraps it in, and the user is told."""

import collections
import datetime
import logging
import pathlib
import sys
import types
from argparse import Namespace

import jax
import numpy as np
import pytest
import tiny_models

from mae_jax.weights import load, tensor_files, torch_pickle

pytestmark = pytest.mark.parity  # torch writes the files


@pytest.fixture
def lines(caplog):
    """The function that returns level and text of each line that was logged."""
    caplog.set_level(logging.INFO, "mae_jax")
    return lambda: [(record.levelname, record.message) for record in caplog.records]


@pytest.fixture(scope="module")
def state(whole):
    import torch

    state = tiny_models.reference_state("autoencoder", whole[0])
    return collections.OrderedDict((n, torch.from_numpy(np.array(x))) for n, x in state.items())


@pytest.fixture
def write(tmp_path):
    import torch

    def write(content, **options) -> pathlib.Path:
        torch.save(content, tmp_path / "x.pth", **options)
        return tmp_path / "x.pth"

    return write


def check(whole, path, **options) -> None:
    """Check that a file has all parameters of the model `whole`."""
    info, params = load.find(path, norm_pix=False, **options), tiny_models.flatten(whole[0])
    wanted = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in params.items()}
    tiny_models.equal(info.read(wanted), params)
    assert info.shapes.keys() == params.keys()


def attribute_dict(module: str, monkeypatch) -> type:
    """The class of a package that is not installed, with which Lightning saves arguments."""
    made = type("AttributeDict", (dict,), {"__module__": module})
    names = module.split(".")
    for depth in range(len(names)):
        name = ".".join(names[: depth + 1])
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setattr(sys.modules[module], "AttributeDict", made, raising=False)
    return made


def submitit(state):
    """As the reference's submitit_pretrain.py, whose paths are pathlib's."""
    folder = pathlib.PosixPath("/checkpoint/user/experiments/17")
    args = Namespace(output_dir=folder, log_dir=folder, job_dir=folder, betas=(0.9, 0.95))
    args.norm_pix_loss, args.input_size, args.model = True, 16, "mae_vit_tiny"
    args.mask_ratio, args.resume, args.dist_backend = np.float32(0.75), None, b"nccl"
    return {"model": state, "optimizer": {"state": {}}, "epoch": 7, "scaler": {}, "args": args}


FILES = {
    "submitit": (submitit, "model"),
    "DeepSpeed": (
        lambda state: {"module": state, "sparse_tensor_module_names": {"x"}, "lr_scheduler": None},
        "module",
    ),
    "MAE-ST": (lambda state: {"model_state": state, "cfg": "TRAIN:\n", "epoch": 3}, "model_state"),
    "nested": (
        lambda state: {"state": {"model": state, "best_acc": np.float64(0.7)}},
        "state.model",
    ),
    "DDP and torch.compile": (
        lambda state: {"state_dict": {f"module._orig_mod.{n}": x for n, x in state.items()}},
        "state_dict",
    ),
    "FSDP": (
        lambda state: {
            "model": {
                n.replace("blocks.0", "blocks.0._fsdp_wrapped_module"): x for n, x in state.items()
            }
        },
        "model",
    ),
    "teacher": (
        lambda state: {"teacher": {f"backbone.{n}": x for n, x in state.items()}},
        "teacher",
    ),
    "a moving average alone": (
        lambda state: {"state_dict_ema": state, "step": 3},
        "state_dict_ema",
    ),
    "with its optimizer": (
        lambda state: {"model": state, "optimizer": {"state": {0: dict(state)}}, "net": {}},
        "model",
    ),
    "one dict twice": (lambda state: {"module": state, "model": state}, "model"),
}


@pytest.mark.parametrize("file", FILES)
def test_the_file_of_another_code_is_loaded(file, state, whole, write, lines):
    content, key = FILES[file]
    path = write(content(state))
    check(whole, path)
    assert lines()[0] == ("INFO", f"{path}: the network under the key {key} is read")
    check(whole, path, key=key)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_plain_values_of_the_arguments_are_kept(legacy, state, write):
    """Others, such as paths and bytes, are not."""
    path = write(submitit(state), _use_new_zipfile_serialization=not legacy)
    args = dict(betas=(0.9, 0.95), norm_pix_loss=True, input_size=16, model="mae_vit_tiny")
    args |= dict(mask_ratio=0.75, resume=None)
    assert tensor_files.open_tensors(path).args == args


@pytest.mark.parametrize(
    "module",
    ["pytorch_lightning.utilities.parsing", "lightning.fabric.utilities.data"]
    + ["lightning_fabric.utilities.data", "lightning.pytorch.utilities.parsing"],
)
def test_a_file_of_lightning(module, state, whole, write, monkeypatch, lines):
    hyper_parameters = attribute_dict(module, monkeypatch)(lr=1e-3, norm_pix_loss=False)
    network = {f"model.{name}": x for name, x in state.items()}
    network["criterion.weight"] = state["cls_token"]
    path = write({"state_dict": network, "hyper_parameters": hyper_parameters, "loops": {}})
    check(whole, path)
    assert tensor_files.open_tensors(path).args == dict(lr=1e-3, norm_pix_loss=False)
    assert [level for level, _ in lines()][:2] == ["INFO", "WARNING"]
    assert "1 others left aside: criterion. (1)" in lines()[1][1]


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_objects_beside_the_weights_do_no_harm(protocol, state, write):
    import torch

    path, array = pathlib.PosixPath("a/b"), np.arange(20.0)
    beside = [path, pathlib.PureWindowsPath("a"), {path}, frozenset({1}), {1: {path}}, 1 + 2j, b""]
    beside += [b"bytes", bytearray(b"bytes"), slice(1), range(3), array, array[:0], array.dtype]
    beside += [np.float64(0.7), np.bool_(True), np.array([b"x"])[0], np.array(["x"]), np.float32]
    beside += [torch.float16, torch.device("cpu"), torch.Size([1, 2]), torch.ones(2).bool()]
    beside += [datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC), datetime.timedelta(1)]
    beside += [collections.Counter("aab"), collections.defaultdict(list, {1: [2]})]
    beside += [collections.deque([1, 2]), types.SimpleNamespace(a=path), Namespace(b={path})]
    beside += [collections.OrderedDict(a=1), np.zeros((2, 3), "<U5"), array.astype(">f4"), int]
    file = write({"model": {"w": torch.ones(2, 3)}, "beside": beside}, pickle_protocol=protocol)
    arrays, args = torch_pickle.read(file)
    assert arrays.keys() == {"w"} and not args


def test_numbers_of_numpy_among_the_arguments_are_numbers(write):
    import torch

    numbers = dict(a=np.float64(1e-3), b=np.int64(-3), c=np.bool_(True), d=np.float16(0.5))
    numbers |= dict(e=np.arange(3, dtype=">i4")[2], f=np.float32(0.1))
    file = write(
        {
            "opt": numbers | dict(g=np.str_("x"), h=[path := pathlib.Path("x")], i=path),
            "model": {"w": torch.ones(2, 3)},
        }
    )
    args = torch_pickle.read(file)[1]
    assert args == {name: x.item() for name, x in numbers.items()}
    assert all(type(args[name]) is type(x.item()) for name, x in numbers.items())


def test_the_trained_network_is_read_and_key_chooses_its_average(state, whole, write, lines):
    average = {name: x if "pos_embed" in name else x + 1 for name, x in state.items()}
    path = write({"model_ema": average, "model": state, "scaler": {"scale": state["cls_token"][0]}})
    check(whole, path)
    ((level, line),) = lines()
    assert level == "WARNING" and line == (
        f"{path} holds several networks: model is read; key= would choose model_ema (a moving "
        "average, usually the better one)"
    )
    moved = jax.tree.map(lambda x: x + 1, whole[0])
    check((moved,), path, key="model_ema")
    assert len(lines()) == 1


@pytest.mark.parametrize(
    "wrapped, key, says",
    [
        (lambda s: {"model": s}, "ema", "no tensors under the key 'ema': key= can be model$"),
        (
            lambda s: {"generator": {"net.0": s}},
            "",
            r"no usual key .*: key= can be generator.net.0$",
        ),
        (
            lambda s: {"G": s, "t": s["cls_token"][0, 0]},
            "",
            "no usual key of a network: key= can be G$",
        ),
        (
            lambda s: {"epoch": 3, "model": {"lr": 1}},
            "",
            "holds no state dict: there are no tensors",
        ),
        (lambda s: s, "model", "under the key 'model': its tensors are not under a key"),
        (
            lambda s: {"G": {f"mae.{n}": x for n, x in s.items()}},
            "G",
            "it has mae. .*give prefix=mae. ",
        ),
    ],
)
def test_a_file_without_an_obvious_network_lists_what_it_holds(wrapped, key, says, state, write):
    with pytest.raises(ValueError, match=says) as raised:
        load.find(write(wrapped(state)), key=key)
    for way in ("key= can be ", "prefix="):  # which works
        if way in str(raised.value):
            choice = str(raised.value).partition(way)[2].split(" ")[0]
            options = dict(key=key) | {way.partition("=")[0]: choice}
            load.find(raised.value.args[0].split(" ")[0].strip(":"), **options)


def test_a_safetensors_file_has_no_keys(whole):
    with pytest.raises(ValueError, match="is a .safetensors file, which has no keys: leave key="):
        load.find(whole[1], key="model")
