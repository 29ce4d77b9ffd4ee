"""Every kind of input through the whole loop, and what is said of inputs that do not fit."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from mae_jax import evaluate, evaluators
from mae_jax.config import command_line, schema
from mae_jax.config.errors import UserError
from mae_jax.data import pipeline, sources, statistics
from mae_jax.data.augment import batch as augment
from mae_jax.data.modalities import transforms
from mae_jax.distributed import device_mesh
from mae_jax.evaluators import checkpoint, visualize
from mae_jax.models import build, byte_values, channel_groups, masking, patches, targets
from mae_jax.tasks import pretrain
from mae_jax.train import train
from mae_jax.training import metric_writer, optimizer
from mae_jax.training.run import make_schedule
from mae_jax.weights import export
from mae_jax.weights import load as pretrained

ROOT = Path(__file__).parents[2]
HELD_OUT = "evaluators.classification"


def load(name, **changes) -> schema.Config:
    name, _, argument = name.partition(":")
    config = command_line.load(f"{ROOT}/configs/{name}.py:{argument}")
    return schema.updated(config, changes)


def debug(name, **changes) -> schema.Config:
    evaluator = "classification" if "finetune" in name else "reconstruction"
    short = {"data.examples": 16, "log_every": 1, "model.depth": 1}
    short |= {f"evaluators.{evaluator}.{key}": x for key, x in (("examples", 8), ("every", 0))}
    if "finetune" not in name and name != "text_small":
        short |= {"evaluators.knn": None, "evaluators.linear": None}
    return load(f"{name}:debug", **short | changes)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Work directories by the names of their configs, trained once each."""
    done = {}

    def run(name):
        if name not in done:
            done[name] = tmp_path_factory.mktemp(name)
            train(debug(name), done[name])
        return done[name]

    return run


SMALL = ("video_small", "audio_small", "volume_small", "multispectral_small", "text_small")


@pytest.mark.parametrize("name", SMALL)
def test_a_run_of_every_kind_of_input(name, runs):
    workdir = runs(name)
    losses = [record["loss"] for record in metric_writer.read(workdir) if "loss" in record]
    assert len(losses) >= 2 and np.isfinite(losses).all()
    report = (workdir / "report.txt").read_text()
    assert "trained network" in report
    with Image.open(workdir / "pictures" / "reconstruction.png") as picture:
        assert min(picture.size) > 20 and len(picture.convert("RGB").getcolors(1 << 24) or "") > 2


@pytest.mark.parametrize("name", ["video_small", "text_small"])
def test_it_resumes_bit_for_bit(name, runs, tmp_path):
    """Also with several crops of an example: text_small has repeats."""
    straight = runs(name)
    total = metric_writer.read(straight)[-1]["step"]
    config = debug(name, **{"save_every": 1, "keep": 100, "evaluators": {}})

    class Stopped(Exception):
        pass

    from mae_jax.training.checkpoints import Checkpoints

    save, seen = Checkpoints.save, []

    def stop(checkpoints, state, facts, wait):
        save(checkpoints, state, facts, wait=True)
        seen.append(int(state.step))
        if len(seen) == 1:
            raise Stopped

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(Checkpoints, "save", stop)
        train(config, tmp_path)
    assert seen == [1] and total > 1
    train(config, tmp_path)
    found = {r["step"]: r["loss"] for r in metric_writer.read(tmp_path) if "loss" in r}
    expected = {r["step"]: r["loss"] for r in metric_writer.read(straight) if "loss" in r}
    assert found == expected


@pytest.mark.parametrize("name", ["video_small", "multispectral_small", "text_small"])
def test_their_checkpoints_are_loaded_and_evaluated(name, runs, tmp_path):
    workdir = runs(name)
    source = {"video_small": "pans", "text_small": "stdlib"}.get(name, "spectra")
    options = [f"--checkpoint={workdir}", f"--data={source}", "--examples=8", "--linear=none"]
    text, figures = checkpoint.evaluate(evaluate.parser().parse_args([*options, "--batch-size=8"]))
    last = metric_writer.read(workdir)[-1]
    assert figures["loss"] == pytest.approx(last["loss_trained"], rel=0.2)
    assert ("no classes" in text) == (name == "text_small")
    target = tmp_path / "x.safetensors"
    export.export(str(workdir), target)
    model, params = pretrained.load(target)
    there, same = pretrained.load(workdir)
    assert model == there
    jax.tree.map(np.testing.assert_array_equal, params, same)
    options[0] = f"--checkpoint={target}"
    _, again = checkpoint.evaluate(evaluate.parser().parse_args([*options, "--batch-size=8"]))
    assert again["loss"] == figures["loss"]
    why = (
        "square patches"
        if name == "video_small"
        else "Hugging Face's ViTMAE does not have: write a .safetensors file"
    )
    with pytest.raises(ValueError, match=why):
        export.export(str(workdir), tmp_path / "hf")


# --- the recipes in numbers


@pytest.mark.parametrize(
    "name, n, keep, decode",
    [
        ("vit_base", 196, 49, 147),
        ("cross_vit_base", 196, 49, 49),
        ("video_vit_base", 1568, 160, 1408),
        ("video_vit_large", 1568, 156, 1412),
        ("audio_vit_base", 512, 102, 410),
    ],
)
def test_what_the_recipes_mask(name, n, keep, decode):
    config = load(name)
    sampler = build.mask_sampler(config.mask, build.autoencoder(config.model), config.data.size)
    assert (sampler.n, sampler.keep, sampler.decode) == (n, keep, decode)


def test_the_video_recipes():
    """VideoMAE's ViT-B (arXiv 2203.12602) and MAE-ST's ViT-L (2205.09113)."""
    base, large = load("video_vit_base"), load("video_vit_large")
    for config, size in ((base, "base"), (large, "large")):
        model = config.model
        assert {k: model[k] for k in ("width", "depth", "heads")} == build.VARIANTS[size]
        assert (config.data.size, config.data.stride) == ((16, 224, 224), 4)
        assert model.patch == (2, 16, 16) and config.mask.ratio == 0.9 and model.norm_pix
        assert config.optimizer.b2 == 0.95 and config.optimizer.weight_decay == 0.05
    assert (base.mask.name, large.mask.name) == ("tube", "random")
    assert (base.model.decoder_width, base.model.decoder_depth) == (384, 4)
    assert (large.model.decoder_width, large.model.decoder_depth) == (512, 4)
    assert (base.optimizer.base_learning_rate, base.batch_size) == (1.5e-4, 1024)
    assert (large.optimizer.base_learning_rate, large.batch_size) == (1.6e-3 / 4, 4 * 512)
    assert large.optimizer.clip == 0.02 and large.data.repeats == 4 and large.epochs == 100
    assert large.model.separable_positions and large.model.target_stride == (2, 1, 1)
    assert large.model.decoder == "own_cls" and large.model.target_spread
    assert (base.model.cls_tokens, base.model.norm_pix) == (0, "channel")
    assert base.model.position_formula == "interleaved"


def test_the_audio_recipe():
    """AudioMAE (arXiv 2207.06405)."""
    config = load("audio_vit_base")
    assert config.data.size == (1024, 128) and config.data.rate == 16_000
    assert config.mask.ratio == 0.8 and config.model.decoder_depth == 16
    assert (config.optimizer.base_learning_rate, config.batch_size) == (2e-4, 512)
    assert (config.optimizer.weight_decay, config.epochs) == (1e-4, 32)
    assert config.data.std == (2 * 4.5689974,) and config.data.mean == (-4.2677393,)


@pytest.mark.parametrize("name", ["cross_vit_base", "vit_base"])
def test_the_rate_follows_the_share_that_is_decoded(name):
    config = debug(name, **{"mask.decode": 0.5, "optimizer.warmup_epochs": 0.0})
    task = pretrain.build(config, None, (0.5,) * 3, (0.25,) * 3)
    schedule, total = make_schedule(config, 8, task.rate)
    assert total == config.epochs and config.batch_size == 8
    assert schedule(0) == pytest.approx(0.5 * 1.5e-4 * 8 / 256)


# --- strategies in the loop


def test_every_strategy_of_a_config_masks_its_count(key):
    """And what a name says is masked together, is."""
    sizes = {2: ((32, 48), (8, 8)), 3: ((8, 16, 16), (2, 4, 4))}
    together = {"tube": (0,), "frame": (1, 2), "time": (1,), "frequency": (0,)}
    for name in masking.NAMES:
        axes = 3 if name in ("tube", "frame") else 2
        size, patch = sizes[axes]
        contrast = targets.PixelTarget(patch).contrast
        sampler = masking.make_mask_sampler(
            name, 0.5, patches.grid_of(size, patch), side=2, contrast=contrast
        )
        images = np.random.default_rng(0).normal(size=(4, *size, 3)).astype(np.float32)
        mask = lambda x, s=sampler: masking.from_scores(s.scores(key, x), s.keep)
        masked = jax.jit(lambda x, mask=mask: masking.masked_map(mask(x)))(images)
        masked = np.asarray(masked).reshape(4, *patches.grid_of(size, patch))
        np.testing.assert_array_equal(masked.reshape(4, -1).sum(1), sampler.n - sampler.keep)
        assert sampler.decode == sampler.n - sampler.keep == sampler.n // 2
        for axis in together.get(name, ()):
            first = np.take(masked, [0], axis=1 + axis)
            np.testing.assert_array_equal(masked, np.broadcast_to(first, masked.shape))
        if name == "joint":
            boxes = masked.reshape(4, 2, 2, 3, 2).swapaxes(2, 3).reshape(4, 6, 4)
            assert (boxes.all(2) | ~boxes.any(2)).all()


def test_importance_masks_what_has_contrast(key):
    images = jnp.zeros((64, 16, 16, 1)).at[:, :8].set(jax.random.normal(key, (64, 8, 16, 1)))
    contrast = targets.PixelTarget((4, 4)).contrast
    sampler = masking.make_mask_sampler("importance", 0.5, (4, 4), contrast=contrast)
    mask = masking.from_scores(sampler.scores(key, images), sampler.keep)
    masked = np.asarray(masking.masked_map(mask)).reshape(64, 2, 8).mean((0, 2))
    assert masked[0] > 0.7 > 0.3 > masked[1]


@pytest.mark.parametrize("groups", [(), ((0,), (1, 2))])
def test_the_trivial_guess_by_hand(groups, key):
    target = targets.PixelTarget((4, 4), norm=False)
    if groups:
        target = channel_groups.ChannelGroupTarget((4, 4), norm=False, channel_groups=groups)
    images = jax.random.normal(key, (2, 8, 12, 3))
    n = 6 * max(1, len(groups))
    mask = masking.from_scores(masking.random(key, 2, (n,)), 3)
    ours = target.baseline_losses(images, mask)
    for sample in range(2):
        x = np.asarray(images[sample]).reshape(2, 4, 3, 4, 3).swapaxes(1, 2).reshape(6, 16, 3)
        chosen = lambda token, x=x: (
            x[token % 6][:, list(groups[token // 6])] if groups else x[token]
        )
        shown = lambda token: list(groups[token // 6]) if groups else [0, 1, 2]
        seen = [(t, c) for t in np.asarray(mask.visible[sample]) for c in shown(t)]
        values = np.zeros((16, 3))
        for c in range(3):
            rows = [x[t % 6][:, c] for t, channel in seen if channel == c]
            values[:, c] = np.mean(rows, 0) if rows else 0
        errors = [
            np.mean((chosen(t) - values[:, shown(t)]) ** 2) for t in np.asarray(mask.masked[sample])
        ]
        np.testing.assert_allclose(ours[sample], np.mean(errors), rtol=1e-4)


def test_the_trivial_guess_of_bytes_is_their_share(key):
    target = byte_values.ByteTarget((1,), vocab_size=4)
    x = jnp.array([0, 0, 1, 2, 0, 3])[None, :, None]
    mask = masking.from_scores(jnp.arange(6.0)[None], 4)  # sees 0 0 1 2, not 0 3
    shares = np.array([3, 2, 2, 1]) / 8
    expected = -np.log(shares[[0, 3]]).mean()
    np.testing.assert_allclose(target.baseline_losses(x, mask), [expected], rtol=1e-5)


# --- data


def test_repeats_are_crops_of_the_same_example():
    data = dict(load("video_small:debug").data, repeats=3, threads=2)
    source = sources.open_source("pans", "train", "video")
    make = lambda start: pipeline.training_batches(
        source, transforms.train_transform(data), pipeline.Order(6, 3, 3), start=start
    )
    batches = make(0)
    first, second = next(batches), next(batches)
    batches.close()
    assert first["image"].shape == (6, *data["size"], 3) and first["label"].shape == (6,)
    assert (first["label"][:3] == first["label"][0]).all()
    assert not np.array_equal(first["image"][0], first["image"][1])
    late = make(1)
    np.testing.assert_array_equal(next(late)["image"], second["image"])
    late.close()
    with pytest.raises(ValueError, match=r"batch size 8 is not a multiple of 3 repeats"):
        pipeline.training_batches(source, lambda e, r: e, pipeline.Order(8, 0, 3))


@pytest.mark.parametrize("name", SMALL)
def test_statistics_make_values_zero_mean_and_unit_variance(name):
    data = load(name).data
    source = sources.open_source(data.train.source, "train", data.modality)
    if data.modality == "text":
        return
    measured = statistics.measure(source, data, limit=20)
    mean, std = measured["mean"], measured["std"]
    chosen = sources.fixed_choice(len(source), 20)
    middle = transforms.eval_transform(data)
    x = np.stack([middle({**source[int(i)]})["image"] for i in chosen])
    y = np.asarray(augment.normalize(jnp.asarray(x), mean, std), np.float64)
    y = y.reshape(-1, data.channels)
    np.testing.assert_allclose(y.mean(0), 0, atol=1e-3)
    np.testing.assert_allclose(y.std(0), 1, atol=1e-3)


def test_mixing_and_erasing_of_clips_are_the_same_in_each_frame(key):
    still = jnp.broadcast_to(jax.random.normal(key, (6, 1, 16, 16, 3)), (6, 4, 16, 16, 3))
    mix = jax.jit(lambda inputs: augment.mix(key, inputs, jnp.eye(6), 0.0, 1.0)[0])
    mixed = mix(still)
    np.testing.assert_array_equal(mixed, np.broadcast_to(mixed[:, :1], mixed.shape))
    np.testing.assert_array_equal(mixed[:, 0], mix(still[:, 0]))
    erased = jax.jit(augment.erase)(key, still, 1.0) != still
    boxes = np.asarray(erased.any(-1))
    np.testing.assert_array_equal(boxes, np.broadcast_to(boxes[:, :1], boxes.shape))
    assert erased.any((1, 2, 3, 4)).all()


# --- fine-tuning


def test_actions_are_averaged_over_clips_and_crops(tmp_path):
    config = debug("finetune_video_small", **{f"{HELD_OUT}.clips": 2, f"{HELD_OUT}.crops": 3})
    state = train(config, tmp_path)
    options = [f"--checkpoint={tmp_path}", "--data=pans", "--linear=none", "--examples=8"]
    options.append("--batch-size=8")
    _, figures = checkpoint.evaluate(evaluate.parser().parse_args(options))
    assert figures["test_loss"] == pytest.approx(
        metric_writer.read(tmp_path)[-1]["test_loss"], rel=1e-5
    )
    report = (tmp_path / "report.txt").read_text()
    assert "zoom in" in report and "accuracy" in report
    model, mesh = build.classifier(config.model, 8), device_mesh.make_mesh(-1, 1)
    section = dict(type="classification", source="same", split="test", clips=2, crops=3)
    section |= dict(examples=5, batch_size=4)
    context = evaluators.Context(
        model, config.data, (0.5,) * 3, (0.25,) * 3, mesh, jax.random.key(0)
    )
    (entry,) = evaluators.build({"classification": section}, context)
    found = entry.evaluator.predict(state.best)
    source = sources.open_source("pans", "test", "video")
    chosen = sources.fixed_choice(len(source), 5)
    views = transforms.eval_transform(config.data, 2, 3)
    for row, i in enumerate(chosen):
        x = views(source[int(i)])["image"]
        assert x.shape == (6, *config.data.size, 3)
        logits = jax.jit(model.apply)(state.best, context.transform.normalize(jnp.asarray(x)))
        expected = jax.nn.softmax(logits).mean(0)
        np.testing.assert_allclose(found.probabilities[row], expected, atol=1e-5)
        loss = -np.log(expected[source[int(i)]["label"]])
        np.testing.assert_allclose(found.losses[row], loss, rtol=1e-4)


def test_separable_positions_are_of_the_first_layer_and_decay_with_it():
    for name in ("positions", "positions_time", "positions_space"):
        assert optimizer.layer_of(f"encoder/{name}", 12) == 0 and name in pretrain.DECAYED


def test_several_labels_and_their_average_precision(tmp_path):
    from sklearn.metrics import average_precision_score

    config = debug("finetune_audio_small", **{"regularize.mixup": 0.5, f"{HELD_OUT}.examples": 40})
    state = train(config, tmp_path)
    statistics = json.loads((tmp_path / "statistics.json").read_text())
    source = sources.open_source("tones", "test", "audio")
    model = build.classifier(config.model, len(source.classes))
    middle, apply = transforms.eval_transform(config.data), jax.jit(model.apply)
    labels, scores = [], []
    for i in sources.fixed_choice(len(source), 40):
        x = augment.normalize(
            jnp.asarray(middle(source[int(i)])["image"])[None],
            statistics["mean"],
            statistics["std"],
        )
        scores.append(jax.nn.sigmoid(apply(state.best, x))[0])
        labels.append(source[int(i)]["label"])
    labels, scores = np.array(labels), np.array(scores)
    expected = average_precision_score(labels, scores, average="macro")
    last = metric_writer.read(tmp_path)[-1]
    assert last["test_map"] == pytest.approx(expected, abs=1e-6)
    loss = -(labels * np.log(scores) + (1 - labels) * np.log(1 - scores)).mean()
    assert last["test_loss"] == pytest.approx(loss, rel=1e-4)
    assert f"mAP {expected:.4f}" in (tmp_path / "report.txt").read_text()


# --- what does not fit


def sentence(config, tmp_path) -> str:
    with pytest.raises(UserError) as raised:
        train(config, tmp_path / "run")
    text = str(raised.value)
    assert "\n" not in text and len(text) < 700
    return text


@pytest.mark.parametrize(
    "name, changes, words",
    [
        ("quickstart", {"data.train.source": "pans"}, "is of data.modality = 'video', not 'image'"),
        ("video_small", {"data.train.source": "photos"}, "is of data.modality = 'image'"),
        ("multispectral_small", {"data.channels": 3, "model.channel_groups": ()},
         "has 10 channels, not 3"),
        ("finetune_audio_small", {"loss": "softmax"}, "several labels for an example: use loss"),
        ("finetune_video_small", {"loss": "binary", "regularize.label_smoothing": 0.0},
         "one label for an example: use loss"),
    ],
)  # fmt: skip
def test_mistakes_end_in_one_sentence(name, changes, words, tmp_path):
    assert words in sentence(load(f"{name}:debug", **changes), tmp_path)


def test_a_broken_clip_is_named(tmp_path):
    pytest.importorskip("av", reason="needs PyAV: pip install -e '.[video]'")
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "a.mp4").write_bytes(b"no video")
    source = f"video:{tmp_path}/clips"
    changes = {"data.train.source": source, "data.train.split": "all", "data.examples": 0}
    config = debug("video_small", **changes, evaluators={})
    assert "cannot be read: 'a.mp4'" in sentence(config, tmp_path)


def test_a_broken_sound_is_named_and_a_silent_one_is_none(tmp_path):
    soundfile = pytest.importorskip("soundfile", reason="needs soundfile: install '.[audio]'")
    (tmp_path / "sounds").mkdir()
    for i in range(8):
        silence = np.zeros((4000, 2)) if i % 2 else 0.1 * np.sin(np.arange(4000))[:, None]
        soundfile.write(tmp_path / "sounds" / f"{i}.wav", silence, 8000 if i % 3 else 44_100)
    changes = {"data.train.source": f"audio:{tmp_path}/sounds", "data.train.split": "all"}
    changes |= {"evaluators": {}, "data.examples": 0}
    state = train(debug("audio_small", **changes), tmp_path / "good")
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.params))
    (tmp_path / "sounds" / "broken.wav").write_bytes(b"RIFF no sound")
    assert "cannot be read: 'broken.wav'" in sentence(debug("audio_small", **changes), tmp_path)


# --- pictures


def test_pictures_of_slices_sounds_and_many_channels():
    x = np.arange(2 * 3 * 4 * 5 * 1, dtype=np.uint8).reshape(2, 3, 4, 5, 1)
    strip = visualize.flat(x)
    assert strip.shape == (2, 4, 3 * 6, 1)
    np.testing.assert_array_equal(strip[:, :, 6:11], x[:, 1])
    assert visualize.flat(np.zeros((1, 20, 4, 5, 3), np.uint8)).shape == (1, 4, 8 * 6, 3)
    sound = visualize.flat(x[:, 0], sound=True)
    np.testing.assert_array_equal(sound[0, :, 2, 0], x[0, 0, 2, ::-1, 0])  # low notes below
    for axes in (1, 2, 4):
        drawn = visualize.flat(np.zeros((2, *(3,) * axes, 1), np.uint8))
        assert drawn.ndim == 4 and drawn.shape[0] == 2
    rgba = np.array([10, 20, 30, 255], np.uint8).reshape(1, 1, 1, 4)
    np.testing.assert_array_equal(visualize.flat(rgba)[0, 0, 0], [10, 20, 30])
    bands = np.arange(10, dtype=np.uint8)[None, None, None] * np.ones((1, 2, 2, 1), np.uint8)
    np.testing.assert_array_equal(visualize.flat(bands)[0, 0, 0], [0, 4, 9])
