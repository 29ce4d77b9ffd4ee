"""Fine-tuning, partial fine-tuning and probing are one task: what is trained, decayed, counted."""

import functools
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from PIL import Image
from sklearn.utils.class_weight import compute_class_weight

from mae_jax import tasks
from mae_jax.config import command_line, schema
from mae_jax.config.errors import UserError
from mae_jax.data import pipeline, sources
from mae_jax.data.augment import randaugment, randaugment_color
from mae_jax.data.bad_examples import Unreadable
from mae_jax.data.modalities import transforms
from mae_jax.distributed import device_mesh, partitioning
from mae_jax.models import build, layers
from mae_jax.models.heads import classification
from mae_jax.tasks import classify, fine_tuning
from mae_jax.train import train
from mae_jax.training import metric_writer, optimizer, program, run
from mae_jax.weights import adapt_inputs, load

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


class FourClasses:
    """As much of a source as a classifier asks for."""

    classes = ("a", "b", "c", "d")

    def __len__(self):
        return 1

    def __getitem__(self, i):
        return {"label": 0}


SMALL = dict(modality="image", size=(32, 32), channels=3, repeats=1, center_crop=0.875, threads=2)


def config(name="finetune_quickstart", **changes) -> schema.Config:
    return schema.updated(command_line.load(f"configs/{name}.py:debug"), changes)


def flat(params) -> dict:
    return traverse_util.flatten_dict(jax.device_get(params), sep="/")


@pytest.fixture(scope="module")
def pretraining(tmp_path_factory):
    """A finished pre-training in debug size, and its state."""
    workdir = tmp_path_factory.mktemp("pretrained")
    return workdir, train(config("quickstart", evaluators={}), workdir)


@pytest.fixture(scope="module")
def probed(tmp_path_factory, pretraining):
    workdir = tmp_path_factory.mktemp("probed")
    changes = {"init.checkpoint": str(pretraining[0]), "log_every": 1}
    return workdir, changes, train(config("linear_probe_quickstart", **changes), workdir)


def test_a_linear_probe_trains_the_head_alone(pretraining, probed):
    """Everything else keeps its bits, and only the head has optimizer state."""
    before, (_, _, state) = flat(pretraining[1].params), probed
    after = flat(state.params)
    assert {name for name in after if name not in before} == {"head/kernel", "head/bias"}
    for name in after.keys() & before.keys():
        np.testing.assert_array_equal(after[name], before[name], err_msg=name)
    slots = [x.shape for x in jax.tree.leaves(state.opt_state) if x.shape]
    assert sorted(slots) == sorted(after[f"head/{leaf}"].shape for leaf in ("kernel", "bias"))
    assert np.abs(after["head/bias"]).max() > 0


def test_the_statistics_of_a_probe_are_those_of_its_batches(probed):
    """Running mean and variance of the cls features, by hand over the batches of the run."""
    _, _, state = probed
    options = config("linear_probe_quickstart")
    stats = jax.device_get(state.stats)["feature_norm"]
    assert stats["mean"].shape == (48,) and (stats["var"] > 0).all()
    task = tasks.build(options, FourClasses(), MEAN, STD)
    variables = jax.jit(task.init)(jax.random.key(0))
    batch = task.augment(
        jax.random.key(1),
        {
            "image": jax.random.bits(jax.random.key(2), (8, 32, 32, 3), jnp.uint8),
            "label": jnp.arange(8) % 4,
        },
    )
    _, (_, updated) = jax.jit(task.loss)(variables["params"], variables["batch_stats"], batch)
    tokens, _ = task.model.apply({"params": variables["params"]}, batch["image"], method="encode")
    cls = np.asarray(tokens[:, 0])
    np.testing.assert_allclose(updated["feature_norm"]["mean"], 0.1 * cls.mean(0), atol=1e-6)
    np.testing.assert_allclose(
        updated["feature_norm"]["var"], 0.9 + 0.1 * cls.var(0), rtol=1e-5, atol=1e-6
    )


def test_a_probe_resumes_bit_for_bit(probed, tmp_path):
    workdir, changes, state = probed
    shutil.copytree(workdir, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "8")
    (tmp_path / "run" / "report.txt").unlink()
    resumed = train(config("linear_probe_quickstart", **changes), tmp_path / "run")
    jax.tree.map(np.testing.assert_array_equal, resumed, state)
    text = (workdir / "report.txt").read_text()
    assert (tmp_path / "run" / "report.txt").read_text() == text
    evaluated = [r for r in metric_writer.read(tmp_path / "run") if "test_accuracy" in r]
    assert [r["step"] for r in evaluated] == [4, 8]


EVERYTHING = {
    "regularize.mixup": 0.8,
    "regularize.cutmix": 1.0,
    "regularize.erase": 0.25,
    "regularize.randaugment": 9.0,
    "regularize.drop_path": 0.3,
    "optimizer.ema": 0.9,
    "data.examples": 48,
    "log_every": 1,
}


def test_partial_fine_tuning_with_everything_on(pretraining, tmp_path):
    """One block and the head move, and their average; all else starts and stays pre-trained."""
    workdir, before = pretraining
    changes = EVERYTHING | {"init.checkpoint": str(workdir), "epochs": 2.0}
    changes |= {"trainable": "encoder/block_1/mlp/.*|norm/.*|head/.*", "save_every": 6}
    state = train(config(**changes), tmp_path)
    assert int(state.step) == 12  # two epochs of 48 examples in batches of 8
    start, end, average = flat(before.params), flat(state.params), flat(state.ema)
    moved = {name for name in end if name not in start or (end[name] != start[name]).any()}
    moved -= {"encoder/positions"}  # learned ones start as the fixed ones, which are no parameters
    trained = {"norm/scale", "norm/bias", "head/kernel", "head/bias"}
    trained |= {f"encoder/block_1/mlp/{x}/{y}" for x in ("fc1", "fc2") for y in ("kernel", "bias")}
    assert moved == trained == average.keys()
    assert any((average[name] != end[name]).any() for name in trained)
    assert flat(state.best["params"])["head/kernel"].tolist() == average["head/kernel"].tolist()


def test_the_curve_does_not_depend_on_devices_or_accumulation():
    """With all that is random switched on: it is drawn for the global batch."""
    batches = []
    for i in range(3):
        rng = np.random.default_rng(i)
        pixels = rng.integers(0, 256, (16, 32, 32, 3), dtype=np.uint8)
        drawn = [randaugment.randaugment(pixels[0], rng, probability=0.9)[1] for _ in pixels]
        label = np.arange(16, dtype=np.int32) % 4
        batches.append({"image": pixels, "label": label, "color": np.stack(drawn)})

    def run(devices, accumulation):
        options = config(**EVERYTHING, accumulation=accumulation)
        mesh = device_mesh.make_mesh(devices, devices=jax.devices()[:devices])
        task = tasks.build(options, FourClasses(), MEAN, STD)
        made = program.make_program(options, task, mesh, lambda step: 1e-3, jax.random.key(1))
        state, losses = made.init(jax.random.key(0)), []
        for batch in batches:
            state, figures = made.step(state, partitioning.place(batch, mesh))
            losses.append([float(figures[name]) for name in ("loss", "accuracy", "gradient_norm")])
        return losses

    plain = run(1, 1)
    assert plain[0] != plain[-1]
    np.testing.assert_allclose(run(4, 2), plain, rtol=1e-5)


def test_layer_decay_is_the_references():
    """Embeddings 0, block i is i + 1, the rest depth + 1; the rate and the decay follow."""
    names = {
        "encoder/cls": 0,
        "encoder/positions": 0,
        "encoder/embedding/kernel": 0,
        "encoder/block_0/norm1/scale": 1,
        "encoder/block_11/mlp/fc1/kernel": 12,
        "encoder/norm/scale": 13,
        "norm/scale": 13,
        "head/kernel": 13,
    }
    for name, layer in names.items():
        assert optimizer.layer_of(name, 12) == layer, name
    params = traverse_util.unflatten_dict({name: jnp.ones((2, 2)) for name in names}, sep="/")
    tx = optimizer.adamw(
        lambda step: 0.1,
        b1=0.9,
        b2=0.999,
        weight_decay=0.05,
        clip=0.0,
        decayed=("kernel",),
        layer_decay=0.65,
        depth=12,
    )
    updates, _ = tx.update(params, tx.init(params), params)
    for name, x in flat(updates).items():
        decay = 0.05 * name.endswith("kernel")
        expected = -0.1 * 0.65 ** (13 - names[name]) * (1 + decay)
        np.testing.assert_allclose(x, expected, rtol=1e-5, err_msg=name)


def test_drop_path():
    """Deeper blocks are left out more often, the mean of the factors is 1, none is left at 0."""
    factors = np.asarray(classification.drop_path(jax.random.key(0), 4000, 5, 0.4))
    np.testing.assert_allclose((factors == 0).mean((0, 2)), [0, 0.1, 0.2, 0.3, 0.4], atol=0.02)
    np.testing.assert_allclose(factors.mean((0, 2)), 1, atol=0.03)
    block = layers.Block(heads=2)
    x = jax.random.normal(jax.random.key(1), (3, 4, 8))
    params = block.init(jax.random.key(2), x)
    paths = jnp.array([[0.0, 0.0], [1.0, 1.0], [0.0, 2.0]])
    y = block.apply(params, x, paths)
    np.testing.assert_array_equal(y[0], x[0])
    np.testing.assert_allclose(y[1], block.apply(params, x)[1], rtol=1e-6)
    assert not np.allclose(y[2], x[2])


def test_pooling_is_what_it_says():
    """By hand from the tokens: the mean of the patches normalised, or the normalised cls."""
    x = jax.random.normal(jax.random.key(0), (2, 16, 16, 1))
    for pooling in ("mean", "cls"):
        fields = dict(patch=(4, 4), width=24, depth=2, heads=3, pooling=pooling, head_std=1.0)
        model = build.classifier(fields, 5)
        params = jax.jit(model.init)(jax.random.key(1), x)["params"]
        assert ("norm" in params) == (pooling == "mean") != ("norm" in params["encoder"])
        tokens, maps = jax.jit(functools.partial(model.apply, method="encode"))(
            {"params": params}, x
        )
        raw = np.asarray(maps[2])
        pooled = raw[:, 1:].mean(1) if pooling == "mean" else raw[:, 0]
        pooled = (pooled - pooled.mean(-1, keepdims=True)) / np.sqrt(
            pooled.var(-1, keepdims=True) + 1e-6
        )
        head = jax.device_get(params["head"])
        expected = pooled @ head["kernel"] + head["bias"]
        ours = jax.jit(model.apply)({"params": params}, x)
        np.testing.assert_allclose(ours, expected, atol=1e-4)


def two_classes(tmp_path) -> dict:
    """The keys for a folder of pictures in two classes."""
    for i in range(20):
        folder = tmp_path / "pictures" / ("train" if i % 4 else "test") / "ab"[i % 2 or i == 4]
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 20), (i, i, i)).save(folder / f"{i}.png")
    return {"data.train.source": f"folder:{tmp_path}/pictures"}


def test_bad_classes_end_in_one_sentence(tmp_path, pretraining, caplog):
    changes = two_classes(tmp_path)
    Image.new("RGB", (20, 20)).save(tmp_path / "pictures" / "train" / "none.png")
    with pytest.raises(UserError, match="tells 2 classes apart, but 'synthetic' has 4"):
        other = {"evaluators.classification.source": "synthetic"}
        train(config(**changes, **other), tmp_path / "b")
    assert "training examples have a label, and the others are left out" in caplog.text
    shutil.rmtree(tmp_path / "pictures" / "train" / "b")
    shutil.rmtree(tmp_path / "pictures" / "test" / "b")
    with pytest.raises(UserError, match=r"has 1 class\(es\), and two or more are needed"):
        train(config(**changes), tmp_path / "c")
    with pytest.raises(UserError, match="trainable = 'bloc' matches no parameter"):
        train(config(trainable="bloc"), tmp_path / "d")
    with pytest.raises(UserError, match="only 64: use 0"):
        train(config(**{"data.examples": 65}), tmp_path / "e")
    assert not list(tmp_path.glob("[b-h]/config.json"))  # none of them began
    # and so none of them rules the next start, which comes as far as its checkpoint
    with pytest.raises(UserError, match="nothing"):
        train(config(**{"init.checkpoint": "nothing"}), tmp_path / "c")
    init = {"init.checkpoint": str(pretraining[0])}
    for key, value, sentence in [
        ("model.width", 96, "model.width: 48 in the checkpoint, 96 in the config"),
        ("model.heads", 4, "model.heads: 3 in the checkpoint, 4 in the config"),
        (
            "model.patch",
            (4, 16),
            r"model.patch: \(8, 8\) in the checkpoint, \(4, 16\) in the config \(init.adapt='re",
        ),
    ]:
        with pytest.raises(UserError, match=f"is another model: {sentence}"):
            train(config(**init, **{key: value}), tmp_path / "g")
    for name in ("key", "prefix"):
        with pytest.raises(UserError, match="is a work directory: leave key= and prefix= out"):
            train(config(**init, **{f"init.{name}": "model"}), tmp_path / "g")
    with pytest.raises(UserError, match="drops encoder/norm, which model.pooling"):
        config(**{"init.checkpoint": "x", "model.pooling": "cls"})
    with pytest.raises(UserError, match="clip is an option of adamw: use 0 with lars"):
        config("linear_probe_quickstart", **{"optimizer.clip": 1.0})
    with pytest.raises(UserError, match="decoder/"):
        train(config(**init, **{"init.without": "head/.*|norm/.*"}), tmp_path / "h")


def test_a_run_starts_from_a_checkpoint_for_other_inputs(pretraining):
    changes = {"model.patch": (16, 16), "data.channels": 1, "data.mean": (0.5,), "data.std": (0.2,)}
    init = {"init.checkpoint": str(pretraining[0]), "init.adapt": ("mean", "resize")}
    other = config(**changes, **init)
    wanted = load.abstract(build.classifier(other.model, 4), other.data.size, 1)
    params = run._load_parameters(other, wanted)
    kernel, old = params["encoder"]["embedding"]["kernel"], pretraining[1].params["encoder"]
    matrix, _ = adapt_inputs.resize(8, 16)
    summed = np.asarray(old["embedding"]["kernel"]).reshape(8, 8, 3, -1).sum(2)
    expected = np.einsum("pi,qj,ijd->pqd", matrix, matrix, summed)
    np.testing.assert_allclose(kernel, expected.reshape(256, -1), atol=1e-6)
    np.testing.assert_array_equal(params["encoder"]["cls"], old["cls"])


@pytest.mark.parametrize("repeats", [1, 2])
def test_the_host_moves_and_the_device_colors(repeats):
    """Each row of a batch comes with the colors of its own crop, and they are applied to it."""
    changes = {"regularize.randaugment": 9.0, "data.repeats": repeats, "batch_size": 8}
    off = {f"regularize.{name}": 0.0 for name in ("mixup", "cutmix", "erase", "drop_path")}
    options = config(**changes, **off, **{"data.flip": False})
    source = sources.open_source("synthetic", "train")
    order = pipeline.Order(8, 3, repeats)
    read = lambda transform: next(pipeline.training_batches(source, transform, order, threads=2))
    batch = read(fine_tuning.transform_of(options, MEAN, classify.label_check(4)))
    assert batch["color"].shape == (8, 2, 2) and batch["color"].dtype == np.float32

    def by_hand(example, rng):
        example = transforms.train_transform(options["data"])(example, rng)
        pictures = example["image"] if repeats > 1 else example["image"][None]
        fill = tuple(round(255 * x) for x in MEAN)
        rows = [randaugment.randaugment(x, rng, fill=fill) for x in pictures]
        moved, colors = (np.stack(x) for x in zip(*rows, strict=True))
        return {"image": np.squeeze(moved), "label": 0, "color": np.squeeze(colors)}

    expected = read(by_hand)
    np.testing.assert_array_equal(batch["image"], expected["image"])
    np.testing.assert_array_equal(batch["color"], expected["color"])
    assert len({x.tobytes() for x in batch["color"]}) > 4

    augmented = tasks.build(options, FourClasses(), MEAN, STD).augment
    seen = augmented(jax.random.key(0), batch)["image"]
    pixels = randaugment_color.apply(jnp.asarray(batch["image"]), batch["color"])
    expected = (np.asarray(pixels) / 255 - MEAN) / STD
    np.testing.assert_allclose(seen, expected, atol=1e-5)
    assert (pixels != batch["image"]).any((1, 2, 3)).sum() > 2


def test_an_unreadable_label_is_refused():
    transform = fine_tuning.transform_of(config(), (0.5,) * 3, classify.label_check(4))
    picture = np.zeros((40, 40, 3), np.uint8)
    for label in (-1, 4):
        with pytest.raises(Unreadable, match=f"label {label} is not one of 4"):
            transform({"image": picture, "label": label}, np.random.default_rng(0))


def counts_of(labels, classes=("a", "b", "c")) -> sources.Examples:
    labels = np.array(labels)
    return sources.Examples(len(labels), lambda i: {"label": labels[i]}, classes, labels=labels)


def test_balanced_weights_are_scikit_learns():
    labels = [0, 0, 0, 0, 1, 1, 2, -1]  # the last is unknown
    found = classify.class_weights("balanced", counts_of(labels), "x")
    expected = compute_class_weight("balanced", classes=np.arange(3), y=np.array(labels[:-1]))
    np.testing.assert_allclose(found, expected)
    several = np.array([[1, 0, 1], [1, 1, 0], [1, 0, 0], [0, 1, 0]], np.uint8)
    assert classify.class_weights("balanced", counts_of(several), "x") == (1 / 3, 1.0, 3.0)
    assert classify.class_weights((), counts_of(labels), "x") == ()


@pytest.mark.parametrize(
    "weights, labels, sentence",
    [
        ((1, 2), [0, 1, 2], "class_weights has 2 values, but 'x' has 3 classes"),
        ("balanced", [0, 1, 1], "class 'c' has none of the training examples"),
        ("balanced", np.array([[1, 1, 0], [1, 0, 1]]), "class 'a' has all of the training"),
    ],
)
def test_weights_that_do_not_fit_are_refused(weights, labels, sentence):
    with pytest.raises(ValueError, match=sentence):
        classify.class_weights(weights, counts_of(labels), "x")
    unknown = sources.Examples(3, counts_of(labels).load, ("a", "b", "c"))
    with pytest.raises(ValueError, match="does not tell its labels without reading"):
        classify.class_weights("balanced", unknown, "x")


def loss_of(task, labels, logits, parts=1):
    """The loss of a batch whose pictures have these logits, computed in parts."""
    batch = {"image": jnp.zeros((len(labels), 8, 8, 3)), "label": jnp.array(labels)}
    batch = task.augment(jax.random.key(0), batch) | {"image": jnp.array(logits)}
    cut = [jax.tree.map(lambda x: x[i::parts], batch) for i in range(parts)]  # noqa: B023
    return np.mean([task.loss({}, None, part)[0] for part in cut])


class Given:
    """A network whose outputs are its inputs."""

    def apply(self, variables, inputs, *_, **__):
        return inputs, {}


def test_balanced_weights_equal_repeated_examples(monkeypatch):
    """A loss with a weight of 2 for a class is that of its examples twice, however it is cut."""
    monkeypatch.setattr(build, "classifier", lambda *_, **__: Given())
    labels = np.array([0, 0, 0, 0, 1, 1, 0, 0])  # balanced weights: 2/3 and 2
    logits = np.random.default_rng(0).normal(size=(8, 2)).astype(np.float32)
    source = counts_of(labels, ("a", "b"))
    off = {f"regularize.{name}": 0.0 for name in ("mixup", "cutmix", "label_smoothing", "erase")}
    off |= {"regularize.randaugment": 0.0, "regularize.drop_path": 0.0, "data.size": (8, 8)}
    make = lambda **changes: tasks.build(config(**off, **changes), source, MEAN, STD)
    rows = np.repeat(np.arange(8), np.where(labels == 1, 3, 1))
    expected = loss_of(make(), labels[rows], logits[rows])
    for weights in ("balanced", (1.0, 3.0)):
        weighted = make(class_weights=weights)
        assert loss_of(weighted, labels, logits) == pytest.approx(expected, rel=1e-5)
        assert loss_of(weighted, labels, logits, parts=4) == pytest.approx(expected, rel=1e-5)
    assert loss_of(make(), labels, logits) != pytest.approx(expected, rel=1e-3)


def test_weights_of_several_classes_are_of_what_is_true(monkeypatch):
    monkeypatch.setattr(build, "classifier", lambda *_, **__: Given())
    labels = np.array([[1, 0], [0, 0], [1, 1], [0, 1]], np.uint8)
    logits = np.random.default_rng(0).normal(size=(4, 2)).astype(np.float32)
    off = {f"regularize.{name}": 0.0 for name in ("mixup", "cutmix", "label_smoothing", "erase")}
    off |= {"regularize.randaugment": 0.0, "regularize.drop_path": 0.0, "loss": "binary"}
    options = config(**off, class_weights=(2.0, 5.0), **{"data.size": (8, 8)})
    found = loss_of(tasks.build(options, counts_of(labels, ("a", "b")), MEAN, STD), labels, logits)
    p = 1 / (1 + np.exp(-logits))
    losses = -np.where(labels == 1, np.array([2, 5]) * np.log(p), np.log(1 - p))
    assert found == pytest.approx(losses.mean(), rel=1e-5)
