"""Tables of labels, targets and splits: `csv:FILE`, and `labels.csv` beside the files."""

import io
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mae_jax.data import pipeline, sources
from mae_jax.data.bad_examples import Unreadable
from mae_jax.data.image_io import decode
from mae_jax.data.modalities import transforms
from mae_jax.data.sources import folders, tables

GRAY = np.full((4, 5, 3), 120, np.uint8)


def png(value: int = 0, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.full((4, 5, 3), value, np.uint8)).save(stream, kind)
    return stream.getvalue()


def fill(root: Path, *names: str) -> None:
    for value, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(png(value % 256))


@pytest.fixture
def twelve(tmp_path, caplog):
    """The folder `table` of the issue's cases: twelve pictures and a `labels.csv`."""
    fill(tmp_path, *(f"{i}.png" for i in range(12)))
    lines = ["file,label,labels,target,split"]
    for i in range(12):
        several, split = "wet;cold" if i % 3 else "wet", "train" if i < 9 else "test"
        lines.append(f"{i}.png,{'ab'[i % 2]},{several},{0.1 * i:.1f},{split}")
    (tmp_path / "labels.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


def number(name: str) -> int:
    return int(Path(name).stem)


@pytest.mark.parametrize("form", ["folder:{}", "csv:{}/labels.csv"])
def test_classes_several_classes_and_numbers_with_splits(twelve, form):
    spec = form.format(twelve)
    train, test = (sources.open_source(spec, split) for split in ("train", "test"))
    assert {*map(number, train.names)} == {*range(9)}
    assert {*map(number, test.names)} == {9, 10, 11}
    assert sources.open_source(spec, "validation").names == test.names
    assert len(sources.open_source(spec, "all")) == 12
    assert train.classes == ("a", "b") and sources.label_kind(train) == "class"
    for i, name in enumerate(train.names):
        assert train[i] == {"image": png(number(name)), "label": number(name) % 2}
    assert pickle.loads(pickle.dumps(train))[3] == train[3]

    several = sources.open_source(spec + "::labels", "test")
    assert several.classes == ("cold", "wet") and sources.is_multilabel(several)
    for i, name in enumerate(several.names):
        assert several[i]["label"].dtype == np.uint8
        assert several[i]["label"].tolist() == [number(name) % 3 > 0, 1]

    numbers = sources.open_source(spec + "::target", "train")
    assert sources.label_kind(numbers) == "number"
    assert (numbers.classes, numbers.targets) == ((), ("target",))
    for i, name in enumerate(numbers.names):
        assert numbers[i]["label"] == np.float32([round(0.1 * number(name), 1)])
    part = sources.subset(numbers, 4)
    assert part.targets == ("target",) and sources.label_kind(part) == "number"


def test_a_batch_of_numbers_is_float32(twelve):
    source = sources.open_source(f"folder:{twelve}::target", "test")
    data = dict(modality="image", size=(4, 4), channels=3, center_crop=1.0)
    load = transforms.eval_transform(data)
    (batch,) = pipeline.evaluation_batches(source, load, batch_size=3)
    assert batch["label"].dtype == np.float32 and batch["label"].shape == (3, 1)
    np.testing.assert_array_equal(np.sort(batch["label"][:, 0]), np.float32([0.9, 1.0, 1.1]))


def test_the_choice_among_several_columns_is_told_once(twelve, caplog):
    for split in ("train", "test"):
        sources.open_source(f"folder:{twelve}", split)
    assert (
        caplog.text.count("labels are read from label, as labels or target is not named after ::")
        == 1
    )
    with pytest.raises(ValueError, match="no labels in a column 'age': it has label, labels, targ"):
        sources.open_source(f"folder:{twelve}::age", "train")


def test_several_targets_and_unknown_ones(tmp_path, caplog):
    fill(tmp_path, "a.png", "b.png", "c.png")
    table = tmp_path / "t.csv"
    table.write_text(
        "path,target:age,target:dose,sex\na.png,7,.5,f\nb.png,,1e-3,m\nc.png,NaN,2,f\n"
    )
    source = sources.open_source(f"csv:{table}", "all")
    assert source.targets == ("age", "dose")
    expected = np.float32([[7, 0.5], [np.nan, 1e-3], [np.nan, 2]])
    np.testing.assert_array_equal([source[i]["label"] for i in range(3)], expected)
    assert "2 of 3 examples have no target:age" in caplog.text
    assert "the columns 'sex' are not read" in caplog.text
    one = sources.open_source(f"csv:{table}::target:dose", "all")
    assert one.targets == ("dose",) and one[1]["label"] == np.float32([1e-3])


def test_a_target_of_minus_one_is_known(tmp_path, caplog):
    fill(tmp_path, "a.png", "b.png")
    (tmp_path / "t.csv").write_text("path,target\na.png,-1\nb.png,-1.0\n")
    source = sources.open_source(f"csv:{tmp_path}/t.csv", "all")
    assert [source[i]["label"].tolist() for i in range(2)] == [[-1], [-1]]
    assert "have no target" not in caplog.text


def test_a_group_is_on_one_side(tmp_path):
    rows = [f"{i}.png,p{i % 40}" for i in range(400)]
    fill(tmp_path, *(row.partition(",")[0] for row in rows))
    (tmp_path / "labels.csv").write_text("\n".join(["file,group", *rows]))
    sides = {}
    for split in ("train", "test"):
        source = sources.open_source(f"folder:{tmp_path}", split)
        sides[split] = {number(name) % 40 for name in source.names}
        assert len(source) == 10 * len(sides[split])
    assert sides["train"] | sides["test"] == {*range(40)}
    assert sides["test"] and not sides["train"] & sides["test"]


def test_folds(tmp_path):
    rows = [f"{i}.png,{i % 3 if i < 9 else ''}" for i in range(12)]
    fill(tmp_path, *(row.partition(",")[0] for row in rows))
    table = tmp_path / "t.csv"
    table.write_text("\n".join(["path,fold", *rows]))
    names = lambda split: [*map(number, sources.open_source(f"csv:{table}", split).names)]
    assert names("fold:2") == [2, 5, 8]
    assert names("not_fold:2") == [0, 1, 3, 4, 6, 7]
    assert names("fold:0,1") == names("not_fold:2")
    assert len(names("all")) == 12
    with pytest.raises(ValueError, match="no fold '3' for split 'fold:3': its folds are 0, 1, 2"):
        names("fold:3")
    table.write_text("path\n0.png\n")
    with pytest.raises(ValueError, match="no column fold for split 'fold:1'"):
        names("fold:1")


@pytest.mark.parametrize("column", ["split", "fold"])
def test_a_group_on_two_sides_is_refused(tmp_path, column):
    table = tmp_path / "t.csv"
    table.write_text(f"path,group,{column}\na.png,p1,x\nb.png,p2,y\nc.png,p1,y\n")
    with pytest.raises(ValueError, match="group 'p1' in 'x' and in 'y'"):
        tables.read_csv(table)


def test_a_table_beside_folders_of_splits(tmp_path):
    names = [f"{split}/{i}.png" for split in ("train", "test") for i in range(4)]
    fill(tmp_path, *names)
    table = tmp_path / "labels.csv"
    table.write_text("\n".join(["file,label,group", *(f"{n},{n[-5]},{n[:5]}" for n in names)]))
    spec = f"folder:{tmp_path}"
    assert sources.open_source(spec, "test").names == tuple(names[4:])
    assert sources.open_source(spec, "train").classes == tuple("0123")
    table.write_text("\n".join(["file,group", *(f"{name},{name[-5]}" for name in names)]))
    with pytest.raises(ValueError, match="group '0' in 'test' and in 'train'"):
        sources.open_source(spec, "test")
    table.write_text(
        "\n".join(["file,split", *(f"{n},{'dev' if '3' in n else 'x'}" for n in names)])
    )
    assert sources.open_source(spec, "dev").names == ("test/3.png", "train/3.png")
    with pytest.raises(ValueError, match="no split 'test': its splits are dev, x and all"):
        sources.open_source(spec, "test")


def test_files_of_any_modality(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((4, 4, 2), np.float32))
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "x.txt").write_bytes(b"text")
    fill(tmp_path, "clip/10.png", "clip/2.png")
    table = tmp_path / "sub" / "t.csv"
    table.write_text(f"path\n../x.npy\nx.txt\n{tmp_path}/clip\n")
    opened = {m: sources.open_source(f"csv:{table}", "all", m) for m in ("volume", "text", "video")}
    path = opened["volume"][0]["image"]
    assert isinstance(path, str) and np.load(path).shape == (4, 4, 2)
    assert opened["text"][1] == {"image": b"text", "label": -1}
    frames = opened["video"][2]["image"]
    assert [Path(frame).name for frame in frames] == ["2.png", "10.png"]


def test_every_source_of_files_has_a_table(tmp_path, caplog):
    for k in range(3):
        fill(tmp_path, f"clip{k}/0.png", f"clip{k}/1.png")
        np.save(tmp_path / f"{k}.npy", np.zeros((4, 4, 2), np.float32))
        (tmp_path / f"{k}.txt").write_text("text")
    names = {"frames": "clip{}", "arrays": "{}.npy", "text": "{}.txt"}
    for kind, name in names.items():
        rows = [f"{name.format(k)},{k / 2}" for k in range(2)]
        (tmp_path / "labels.csv").write_text("\n".join(["file,target", *rows]))
        modality = sources.KINDS[kind].modalities[0]
        source = sources.open_source(f"{kind}:{tmp_path}", "all", modality)
        assert [name.partition("[")[0] for name in source.names] == [*map(name.format, range(2))]
        assert [source[k]["label"].tolist() for k in range(2)] == [[0], [0.5]]
    assert caplog.text.count("which labels.csv does not name") == 3


def test_files_that_a_table_does_not_name_are_counted(tmp_path, caplog):
    fill(tmp_path, "a.png", "b.png", "c.png")
    (tmp_path / "labels.csv").write_text("file,label\nb.png,x\n")
    assert sources.open_source(f"folder:{tmp_path}", "all").names == ("b.png",)
    assert (
        "2 of 3 files are left out, which labels.csv does not name, such as 'a.png'" in caplog.text
    )


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "starts with ''"),
        ("path;label\na.png;x\n", "starts with 'path;label': write 'file,label'"),
        ("path,file\na.png,a.png\n", "starts with 'path,file'"),
        ("path,label,label\na.png,x,y\n", "starts with 'path,label,label'"),
        ("path,label\n", "names no files"),
        ("path,label\n,x\n", "names no file in line 2"),
        ("path,label\na.png\n", "1 columns instead of 2 in line 2"),
        ("path,label\na.png,x\n./a.png,y\n", "names 'a.png' twice"),
        ("path,label\na.png,\n", "empty column label: fill it in"),
        ("path,target\na.png,\n", "empty column target"),
        ("path,target\na.png,tall\n", "has target 'tall', which is no number"),
        ("path,target\na.png,1e999\n", "target of example 0 is infinite, or beyond float32"),
        ("path,split\na.png,\n", "has no split for 'a.png'"),
        ("path,group\na.png,\n", "has no group for 'a.png'"),
        ("path,label\nb.png,x\nc.png,x\n", "names 'b.png' and 1 more, but there is no such file"),
        ("path,split\na.png,train\n", "no split 'test': its splits are train and all"),
        ("path\na.png\n", "has no examples of split 'test': name another split"),
        ('path,label\n"a.png,x\n', "1 columns instead of 2"),
        ("path,label\na\0.png,x\n", "no table in line 2|no such file|null"),
    ],
)
def test_mistakes_in_a_table(tmp_path, text, message):
    fill(tmp_path, "a.png")
    (tmp_path / "t.csv").write_text(text)
    split = "test" if "split" in message else "all"
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        sources.open_source(f"csv:{tmp_path}/t.csv", split)


def test_names_and_classes_need_not_be_utf_8(tmp_path):
    name = b"caf\xe9.png"
    (Path(bytes(tmp_path).decode()) / name.decode(errors="surrogateescape")).write_bytes(png())
    (tmp_path / "labels.csv").write_bytes(b"file,label\n" + name + b",\xe9t\xe9\n")
    source = sources.open_source(f"folder:{tmp_path}", "all")
    assert source[0] == {"image": png(), "label": 0}
    assert source.classes == (r"\udce9t\udce9",)


def test_places(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file .*t.csv"):
        sources.open_source(f"csv:{tmp_path}/t.csv", "all")
    fill(tmp_path, "a.png")
    with pytest.raises(ValueError, match="names a column, but there is no labels.csv"):
        sources.open_source(f"folder:{tmp_path}::label", "all")


def test_a_file_that_is_gone_is_one_bad_example(tmp_path):
    fill(tmp_path, "a.png", "b.png")
    (tmp_path / "t.csv").write_text("path\na.png\nb.png\n")
    source = sources.open_source(f"csv:{tmp_path}/t.csv", "all")
    (tmp_path / "b.png").unlink()
    with pytest.raises(Unreadable, match="cannot read 'b.png'"):
        pipeline.read(source, 1, lambda example: example)


def test_all_endings_of_the_decoder_are_read_and_others_are_named(tmp_path, caplog):
    Image.init()
    known = {
        end for end, name in Image.registered_extensions().items() if name in decode._formats()
    }
    assert {*folders.PICTURES} >= {end[1:] for end in known}
    for i in range(12):  # the case `endings`
        name, kind = [("png", "PNG"), ("jp2", "JPEG2000"), ("jfif", "JPEG")][i // 4]
        (tmp_path / f"{i}.{name}").write_bytes(png(i, kind))
    for name in ("notes.txt", "a.xyz", "b.XYZ", ".hidden", "README"):
        (tmp_path / name).write_text("")
    source = sources.open_source(f"folder:{tmp_path}", "all")
    assert len(source) == 12 and all(
        decode.decode(x["image"], 3).shape == (4, 5, 3) for x in source
    )
    sources.open_source(f"folder:{tmp_path}", "train")
    assert caplog.text.count("4 files are left out (2 .xyz, ") == 1
    assert ".hidden" not in caplog.text
