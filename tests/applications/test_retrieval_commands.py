"""The commands of retrieval, from pictures to a contact sheet."""

import csv
import json

import numpy as np
import pytest
import tiny_models
from PIL import Image
from pyarrow import parquet

from mae_jax.applications import retrieval
from mae_jax.applications.retrieval import __main__ as commands
from mae_jax.applications.retrieval.contact_sheet import GAP, LINE


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model, and folders of pictures: `old` with two classes, `new` with one and a bad file."""
    place, rng = tmp_path_factory.mktemp("retrieval"), np.random.default_rng(0)
    known = dict(mean=[0.5] * 3, std=[0.25] * 3)
    params = tiny_models.random_params(tiny_models.model("autoencoder"))
    tiny_models.export(place / "m.safetensors", *tiny_models.MODELS["autoencoder"], params, **known)
    for i in range(9):
        file = place / ("old" if i < 6 else "new") / "ab"[i % 2] / f"{i}.png"
        file.parent.mkdir(exist_ok=True, parents=True)
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(file)
    (place / "new" / "a" / "bad.png").write_bytes(b"not a picture")
    run("index", f"--checkpoint={place / 'm.safetensors'}", f"--data=folder:{place / 'old'}",
        f"--to={place / 'index'}", "--block=-1", "--pooling=mean", "--batch-size=8",
        f"--json={place / 'index.json.txt'}", "--thumbnails=16", "--center-crop=1")  # fmt: skip
    return place


def run(command, *arguments) -> str:
    options = commands.parser().parse_args([command, *map(str, arguments)])
    return commands.COMMANDS[command].run(options)


def search(place, data, to, *arguments) -> str:
    given = f"--index={place / 'index'}", f"--data=folder:{place / data}", f"--to={to}"
    return run("search", *given, *arguments)


def test_what_was_chosen_is_kept(place):
    about = json.loads((place / "index.json.txt").read_text())
    assert about["examples"] == 6 and about["bytes"]["thumbnails"] == 6 * 16 * 16 * 3
    assert "recall@1 of 30 copies among 6 examples" in about["criterion"]
    scores = [x["score"] for x in about["candidates"]]
    assert {x["block"] for x in about["candidates"]} == {1} and len(scores) == 2 * 3
    assert about["data"] == [[f"folder:{place / 'old'}", "all"]]


def test_neighbours_in_each_format(place, tmp_path):
    text = search(place, "old", tmp_path / "r.csv", "--k=2", "--approximate")
    assert "leave themselves out" in text and "of the exact neighbours 100.0% are found" in text
    with open(tmp_path / "r.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12 and all(row["query"] != row["name"] for row in rows)
    assert [row["rank"] for row in rows[:2]] == ["1", "2"]
    assert all(row["label"] == row["name"][0] for row in rows)

    search(place, "old", tmp_path / "r.json", "--k=9", "--no-exclude-self")
    found = json.loads((tmp_path / "r.json").read_text())
    assert [x["neighbours"][0]["name"] for x in found] == [x["query"] for x in found]
    assert len(found[0]["neighbours"]) == 6


def test_queries_that_cannot_be_read(place, tmp_path):
    text = search(place, "new", tmp_path / "r.parquet", "--k=2")
    assert "1 without neighbours, whose notes say why" in text
    rows = parquet.read_table(tmp_path / "r.parquet").to_pylist()
    assert [row["query"] for row in rows] == ["a/6.png"] * 2 + ["a/8.png"] * 2 + [
        "a/bad.png",
        "b/7.png",
        "b/7.png",
    ]
    assert "bad.png" in rows[4]["note"] and rows[4]["rank"] is None


def test_a_sheet_shows_the_first_queries(place, tmp_path):
    arguments = "--k=9", f"--sheet={tmp_path / 's.png'}", "--sheet-queries=4", "--exclude-self"
    search(place, "old", tmp_path / "r.csv", *arguments)
    with Image.open(tmp_path / "s.png") as file:
        page = np.asarray(file)
    side, rows, columns = 16 * 6, 4, 7  # enlarged; the query and 6 places, of which 5 are filled
    width, height = 3 * GAP + columns * (side + GAP), GAP + rows * (side + 2 * LINE + GAP)
    assert page.shape == (height, width, 3)
    shown = page[GAP : GAP + side : 6, GAP : GAP + side : 6]
    picture = np.asarray(Image.open(place / "old" / "a" / "0.png"))
    np.testing.assert_allclose(shown.astype(int), picture, atol=1)
    assert (page[:, -side // 2 :] >= 211).all()  # no neighbour but a frame


def test_an_index_is_changed(place, tmp_path):
    index = f"--index={place / 'index'}"
    with pytest.raises(ValueError, match="has no example '7.png'"):
        run("remove", index, "7.png")
    text = run("add", index, f"--data=folder:{place / 'new'}")
    assert "3 examples" in text and "9 in all" in text and "those of the first 6" in text
    with pytest.raises(ValueError, match="4 of these 4 examples already|3 of these 4 examples"):
        run("add", index, f"--data=folder:{place / 'new'}")
    assert "1 removed; 8 examples are left" in run("remove", index, "a/8.png")
    text = run("add", index, f"--data=folder:{place / 'new'}", "--only-new")
    assert "1 examples" in text and "beside 2 that it had" in text
    names = ["a/0.png", "a/2.png", "a/4.png", "b/1.png", "b/3.png", "b/5.png"]
    found = retrieval.Index.load(str(place / "index"))
    assert [*found.rows.names] == [*names, "a/6.png", "b/7.png", "a/8.png"]


def test_mistakes_are_sentences(place, tmp_path):
    model = f"--checkpoint={place / 'm.safetensors'}"
    data, to = f"--data=folder:{place / 'old'}", f"--to={tmp_path / 'i'}"
    for given, message in (
        (["--block=2"], "--block=2 is none of 2 blocks"),
        (["--components=3"], "is for --whiten=pca"),
        (["--thumbnails=-1"], "at least 0"),
        (["--examples=-1"], "--examples=-1 must be at least 0"),
    ):
        with pytest.raises(ValueError, match=message):
            run("index", model, data, to, *given)
    with pytest.raises(ValueError, match="exists already"):
        run("index", model, data, f"--to={place / 'index'}")
    with pytest.raises(ValueError, match="must end in .csv, .parquet or .json"):
        search(place, "old", tmp_path / "r.txt")
    with pytest.raises(ValueError, match="must end in .png or .jpg"):
        search(place, "old", tmp_path / "r.csv", f"--sheet={tmp_path / 's.gif'}")
    with pytest.raises(ValueError, match="is no index"):
        run("search", f"--index={tmp_path}", data, f"--to={tmp_path / 'r.csv'}")
