"""Models of other code compute what that code computes, or are refused in one sentence."""

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import tiny_models
from families import (
    NAMES,
    NEEDS_ARGS,
    OTHER_LOSS,
    REFUSED,
    TRANSFORMERS,
    Case,
    FromTransformers,
)

import mae_jax
from mae_jax.config import command_line
from mae_jax.models import build, positions
from mae_jax.weights import export, load

ROOT = Path(__file__).parents[2]

# Their scales and missing biases are folded into other parameters.
FOLDED = ("timm_layer_scale", "timm_no_qkv_bias")
TENSORS = [name for name in NAMES if name not in {**REFUSED, **NEEDS_ARGS}]


@pytest.mark.parametrize("name", TENSORS)
def test_a_model_computes_what_its_own_code_computes(name, tmp_path):
    case = Case(name)
    model, params = case.load(case.save(tmp_path, as_pth=False))
    differences = case.differences(model, params)
    compared = {"prediction", "features", "logits", "loss"}
    if name in (*OTHER_LOSS, "videomae_pixels"):  # the loss of their own code has other units
        compared.remove("loss")
    assert differences.keys() >= case.arrays.keys() & compared
    assert max(differences.values()) < 1e-5, differences


@pytest.mark.parity
@pytest.mark.parametrize("name", TENSORS)
def test_a_file_says_what_its_arguments_say(name, tmp_path):
    """The model of a whole checkpoint is that of its tensors and of what else is known of them."""
    pytest.importorskip("torch")
    case = Case(name)
    tensors, whole = (case.save(tmp_path, as_pth=as_pth) for as_pth in (False, True))
    assert case.load(whole)[0] == case.load(tensors)[0]


@pytest.mark.parity
@pytest.mark.parametrize("name", NEEDS_ARGS)
def test_the_arguments_of_a_file_are_used(name, tmp_path):
    pytest.importorskip("torch")
    case = Case(name)
    differences = case.differences(*case.load(case.save(tmp_path, as_pth=True)))
    assert max(differences.values()) < 1e-5, differences


@pytest.mark.parametrize("name", {**REFUSED, **NEEDS_ARGS})
def test_a_model_that_is_another_one_is_refused(name, tmp_path):
    case = Case(name)
    path = case.save(tmp_path, as_pth=False)
    with pytest.raises(ValueError, match={**REFUSED, **NEEDS_ARGS}[name]) as caught:
        case.load(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("lost", [("q_bias", "v_bias"), ("v_bias",)])
def test_lost_biases_of_one_block_are_not_zeros(lost, tmp_path):
    """Only a part of a network in which no block has any was trained without them."""
    case = Case("videomae_finetuned")
    names = [f"blocks.1.attn.{name}" for name in lost]
    case.state = {name: x for name, x in case.state.items() if name not in names}
    path = case.save(tmp_path, as_pth=False)
    with pytest.raises(ValueError, match=r"encoder/block_1/attention/.*value/bias.* missing"):
        case.load(path)


def test_the_advice_for_a_classifier_by_its_first_patch_ends_well(tmp_path):
    case = Case("videomae_finetuned_first_token")
    model, params = case.load(case.save(tmp_path, as_pth=False), without="head/.*")
    assert model.classes == 0 and "norm" in params["encoder"]


@pytest.mark.parity
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_a_model_computes_what_transformers_computes(name, tmp_path):
    pytest.importorskip("transformers")
    case = FromTransformers(name)
    differences = case.differences(*case.load(case.save(tmp_path, as_pth=False)))
    assert differences and max(differences.values()) < 1e-5, differences


@pytest.mark.parametrize("name", [n for n in TENSORS if n.startswith("timm") and n not in FOLDED])
def test_a_file_of_timm_is_written_back(name, tmp_path):
    """Bit for bit, but for the rows of registers, which lie in the registers."""
    case = Case(name)
    path, given = case.save(tmp_path, as_pth=False), dict(case.given(".safetensors"))
    export.export(str(path), tmp_path / "back", target_format="timm", **given)
    state = safetensors.numpy.load_file(tmp_path / "back" / "model.safetensors")
    assert state.keys() == case.state.keys()
    if "registers" not in name:
        for key, x in case.state.items():
            np.testing.assert_array_equal(state[key], x)
    if "registers" in name:
        model, params = mae_jax.load(tmp_path / "back")
        assert max(case.differences(model, params).values()) < 1e-5
    if case.config is not None:
        settings = json.loads((tmp_path / "back" / "config.json").read_text())
        assert settings["model_args"].items() >= json.loads(str(case.config))["model_args"].items()


@pytest.mark.parity
@pytest.mark.parametrize("classes", [0, 5])
def test_transformers_reads_a_vit(classes, tmp_path):
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    fields = tiny_models.TINY | dict(pooling="cls", classes=classes, learned_positions=True)
    path = tiny_models.export(tmp_path / "x.safetensors", "Classifier", fields)
    export.export(str(path), tmp_path / "vit", target_format="vit")
    name = "ViTForImageClassification" if classes else "ViTModel"
    theirs = getattr(transformers, name).from_pretrained(tmp_path / "vit").eval()
    inputs = np.random.default_rng(0).normal(size=(2, 16, 16, 3)).astype(np.float32)
    out = theirs(torch.from_numpy(inputs).movedim(-1, 1))
    expected = out.logits if classes else out.last_hidden_state[:, 0]
    for place in (path, tmp_path / "vit"):
        model, params = mae_jax.load(place)
        ours = model.apply({"params": params}, inputs)
        np.testing.assert_allclose(ours, expected.detach(), atol=1e-5)


@pytest.mark.parity
def test_positions_at_another_size_are_those_of_transformers(tmp_path):
    """Fixed ones as well, in the encoder; `compute` gives what the formula gives."""
    torch = pytest.importorskip("torch")
    case = FromTransformers("ViTMAEModel")
    table = positions.Fixed(24).start((4, 4))["positions"]
    case.model.embeddings.position_embeddings.data[0] = torch.from_numpy(table)
    path = case.save(tmp_path, as_pth=False)
    inputs = torch.randn(2, 24, 24, 3)
    options = dict(interpolate_pos_encoding=True, noise=torch.arange(36.0).expand(2, -1))
    expected = case.model(inputs.movedim(-1, 1), **options).last_hidden_state.detach().numpy()
    encode = lambda model, params: model.apply({"params": params}, inputs.numpy(), method="encode")
    ours, _ = encode(*mae_jax.load(path, size=(24, 24)))
    np.testing.assert_allclose(ours, expected, atol=1e-5 * np.abs(expected).max())
    model, params = mae_jax.load(path, size=(24, 24), positions="compute")
    assert "positions" not in params["encoder"]
    computed, _ = encode(model, params)
    assert np.abs(computed - expected).max() > 0.01 * np.abs(expected).max()


def test_the_encoder_of_crossmae_alone(tmp_path):
    """It has no final norm, so that its pooled feature gets a new one."""
    case = Case("crossmae_self_attention")
    path = case.save(tmp_path, as_pth=False)
    model, params = case.load(
        path, without="decoder/.*|decoder_blocks.*", decoder_heads=None, norm_pix=None
    )
    assert model.pooling == "mean" and (params["norm"]["scale"] == 1).all()
    case = Case("mae_finetuned")
    lacking = {n: x for n, x in case.state.items() if not n.startswith(("fc_norm", "head"))}
    tiny_models.save(path, lacking)
    with pytest.raises(ValueError, match="norm/bias, norm/scale missing"):
        mae_jax.load(path, heads=3)


@pytest.mark.parametrize(
    "changes, says",
    [
        (dict(architecture="vit_base_patch16_rope_reg1_gap_256"), "rope_reg1_gap_256, which may"),
        (dict(architecture="vit_so400m_patch16_siglip_gap_256"), "siglip_gap_256, which may"),
        (dict(model_args=dict(pool_include_prefix=True)), "model_args pool_include_prefix"),
        (dict(model_args=dict(act_layer="quick_gelu")), "the activation quick_gelu"),
        (dict(global_pool="max"), "global_pool = 'max': only token and avg"),
        (dict(global_pool="token"), "a norm behind the pooling of its class token"),
    ],
    ids=str,
)
def test_folders_of_timm_that_may_compute_something_else(changes, says, tmp_path):
    case = Case("timm_hub")
    path = case.save(tmp_path, as_pth=False)
    settings = json.loads(str(case.config))
    arguments = settings["model_args"] | changes.get("model_args", {})
    settings |= changes | dict(model_args=arguments)
    (path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=says):
        mae_jax.load(path)


def test_tokens_of_other_models_are_named(tmp_path):
    """A distillation token of DeiT, and the mask token of DINOv2."""
    state = Case("timm_token").state
    more = {"dist_token": np.zeros((1, 1, 24), np.float32)}
    more["pos_embed"] = np.zeros((1, 18, 24), np.float32)
    path = tiny_models.save(tmp_path / "x.safetensors", state | more)
    with pytest.raises(ValueError, match="has dist_token, which models of this project do not"):
        mae_jax.load(path, heads=3)
    more = {"mask_token": np.zeros((1, 1, 24), np.float32)}
    path = tiny_models.save(tmp_path / "x.safetensors", state | more)
    with pytest.raises(ValueError, match="decoder/mask_token left over"):
        mae_jax.load(path, heads=3)
    assert mae_jax.load(path, heads=3, without="decoder/.*")[0].classes == 5


@pytest.mark.parametrize(
    "config, name",
    {
        "vit_base": "mae_norm_pix",
        "cross_vit_base": "crossmae",
        "video_vit_base": "videomae_normalised",
        "video_vit_large": "mae_st_norm_pix",
        "audio_vit_base": "audiomae_global_decoder",
    }.items(),
)
def test_the_recipe_of_a_paper_has_the_network_of_its_code(config, name, tmp_path):
    """But for the sizes, and for AudioMAE's positions, which are those of the transposed grid."""
    recipe = command_line.load(f"{ROOT}/configs/{config}.py")
    case = Case(name)
    info = load.find(case.save(tmp_path, as_pth=False), **case.given(".safetensors"))
    ours = build.with_defaults("MaskedAutoencoder", recipe["model"])
    theirs = build.with_defaults("MaskedAutoencoder", info.fields)
    parts = ("", "decoder_")
    sizes = {f"{part}{size}" for part in parts for size in ("width", "depth", "heads", "mlp_ratio")}
    sizes |= {"patch", "dtype", "attention", "remat", "scan"}
    sizes |= {"learned_positions"} if config == "audio_vit_base" else set()
    fields = (ours.keys() | theirs.keys()) - sizes
    assert {x: ours[x] for x in fields} == {x: theirs[x] for x in fields}
