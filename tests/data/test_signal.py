import pickle
from pathlib import Path

import numpy as np
import pytest

from mae_jax.data import sources
from mae_jax.data.bad_examples import Unreadable
from mae_jax.data.modalities import signal, transforms
from mae_jax.data.sources import series, synthetic


def values_of(source, i):
    array = source[i]["image"]
    return array.read(array.whole)


HEADER = "# a comment\n@problemName Toy\n@timeStamps false\n@univariate false\n"


def data(length=4, channels=1, **changes):
    return dict(size=(length,), channels=channels, zoom=(1, 1), repeats=1) | changes


def numbers(*shape):
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


def windows(values, given, **options):
    return [x[:, 0].tolist() for x in signal.eval_views(values, given, **options)]


# --- windows -----------------------------------------------------------------------------------


def test_training_windows_start_everywhere_and_repeat():
    values, rng = numbers(9, 2), np.random.default_rng(0)
    views = [*signal.train_views(values, data(channels=2, repeats=200), rng)]
    starts = {int(view[0, 0]) // 2 for view in views}
    assert starts == set(range(6))
    for view in views:
        at = int(view[0, 0]) // 2
        np.testing.assert_array_equal(view, values[at : at + 4])


def test_zoom_resamples_a_window():
    ramp, rng = numbers(200), np.random.default_rng(0)
    for factor in (0.5, 2):
        (view,) = signal.train_views(ramp, data(20, zoom=(factor, factor)), rng)
        np.testing.assert_allclose(np.diff(view[2:-2, 0]), factor, rtol=1e-5)


def test_the_middle_or_windows_from_the_start_to_the_end():
    values = numbers(11)
    assert windows(values, data()) == [[3, 4, 5, 6]]
    assert [x[0] for x in windows(values, data(), clips=3)] == [0, 3, 7]
    assert windows(values, data(11), clips=2) == [values.tolist()] * 2
    transform = transforms.eval_transform(data(modality="signal"), clips=3)
    assert transform({"image": values, "label": 1})["image"].shape == (3, 4, 1)


def test_a_short_signal_is_continued_by_its_ends():
    assert windows(numbers(3), data(6)) == [[0, 0, 1, 2, 2, 2]]
    (view,) = signal.train_views(numbers(3), data(6), np.random.default_rng(0))
    assert view[:, 0].tolist() == [0, 0, 1, 2, 2, 2]


def test_signals_with_missing_values_or_other_channels_are_refused():
    with pytest.raises(Unreadable, match="missing values"):
        windows(np.array([1, np.nan, 2, 3]), data())
    with pytest.raises(Unreadable, match="has 2 channels, not 3: set data.channels=2"):
        windows(numbers(9, 2), data(channels=3))


# --- .ts files ---------------------------------------------------------------------------------


def write(folder, train, test=None, header=HEADER + "@classLabel true Up down\n@data\n", name=""):
    name = name or folder.name
    for end, text in (("TRAIN", train), ("TEST", test)):
        if text is not None:
            (folder / f"{name}_{end}.ts").write_text(header + text)
    return str(folder)


def test_series_are_time_by_channels_with_nan_where_they_miss(tmp_path):
    path = write(tmp_path, "1,?,3:nan,5,-6e2:Up\n\n7:8:down\n", "1:2: down \n")
    source = sources.open_source(f"ts:{path}", "train", "signal")
    assert (len(source), source.classes) == (2, ("Up", "down"))
    values = values_of(source, 0)
    assert values.dtype == source[0]["image"].dtype == np.float64
    np.testing.assert_array_equal(values, [[1, np.nan], [np.nan, 5], [3, -600]])
    np.testing.assert_array_equal(values_of(source, 1), [[7, 8]])  # another length
    assert [source[i]["label"] for i in range(2)] == [0, 1]
    assert source.name(1) == f"{tmp_path.name}_TRAIN.ts:9"
    test = series.ts(path, "test")
    assert (test[0]["label"], len(series.ts(path, "all"))) == (1, 3)
    again = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(values_of(again, 1), values_of(source, 1))


def test_files_may_be_named_beside_others_in_a_folder(tmp_path):
    write(tmp_path, "1:2:Up\n", name="Other_eq")
    assert len(series.ts(f"{tmp_path}/Other_eq", "train")) == 1
    with pytest.raises(FileNotFoundError, match="no file '.*Other_eq_TEST.ts': name the folder"):
        series.ts(f"{tmp_path}/Other_eq", "test")
    with pytest.raises(ValueError, match="no split 'dev': use train or test or all"):
        series.ts(f"{tmp_path}/Other_eq", "dev")


def test_as_many_steps_as_channels_are_no_riddle(tmp_path):
    header = HEADER + "@classLabel false\n@data\n"
    source = series.ts(write(tmp_path, "1,2:3,4\n", "1,?:3,4\n", header), "train")
    view = transforms.eval_transform(data(2, channels=2, modality="signal"))
    assert view(source[0])["image"].tolist() == [[1, 3], [2, 4]]
    with pytest.raises(Unreadable, match="may have its channels first or last"):
        view({"image": values_of(source, 0)})
    first = data(2, channels=2, modality="signal", channel_axis="first")
    assert transforms.eval_transform(first)({"image": values_of(source, 0)})["image"][0, 1] == 2


def test_missing_values_are_kept_if_they_are_declared(tmp_path):
    header = HEADER + "@classLabel false\n@data\n"
    source = series.ts(write(tmp_path, "1,?:3,4\n", header=header), "train")
    nan = np.nan
    (view,) = signal.eval_views(source[0]["image"], data(4, channels=2, nodata="nan"))
    np.testing.assert_array_equal(view, [[nan, nan], [1, 3], [nan, 4], [nan, nan]])
    assert view.dtype == np.float32
    with pytest.raises(Unreadable, match="has missing values .*set data.nodata"):
        windows(source[0]["image"], data(4, channels=2))


def test_targets_are_numbers(tmp_path):
    path = write(tmp_path, "1,2:-1.5\n", header="@targetLabel true\n@DATA\n")
    source = series.ts(path, "train")
    assert (sources.label_kind(source), source.classes, source.targets) == (
        "number",
        (),
        ("target",),
    )
    assert source[0]["label"].dtype == np.float32 and source[0]["label"].tolist() == [-1.5]


def test_labels_may_be_missing(tmp_path):
    path = write(tmp_path, "1,2:3,4\n", header="@classLabel false\n@data\n")
    source = series.ts(path, "train")
    assert values_of(source, 0).tolist() == [[1, 3], [2, 4]] and source[0]["label"] == -1


def test_values_and_labels_are_those_of_aeon():
    aeon = pytest.importorskip("aeon.datasets", reason="aeon is the reference of .ts files")
    place = Path(aeon.__file__).parent / "data"
    files = sorted(f for f in place.glob("*/*_T*.ts") if "TimeStamps" not in f.name)
    assert len(files) > 20
    for file in files:
        stem, split = str(file.with_suffix("")).rsplit("_", 1)
        source, (theirs, labels) = series.ts(stem, split.lower()), aeon.load_from_ts_file(str(file))
        assert len(source) == len(theirs)
        for i, values in enumerate(theirs):  # [channels time]
            np.testing.assert_array_equal(values_of(source, i), values.T)
        own = [source.classes[x].lower() if source.classes else x[0] for x in source.labels]
        np.testing.assert_array_equal(own, labels.astype(np.asarray(own).dtype))


@pytest.mark.parametrize(
    "header, text, message",
    [
        ("", "1,x:Up", "line 7 has 'x', which is no number"),
        ("", "1,1_0:Up", "line 7 has '1_0', which is no number"),
        ("", "1,:Up", "line 7 has '', which is no number"),
        ("", "1,2:up", "line 7 has the class 'up', and the header only Up, down"),
        ("", "1,2:3:Up", "line 7 has channels of 1 and 2 values"),
        ("", "Up", r"line 7 has 0 channel\(s\)"),
        ("@dimensions 3\n", "1:2:Up", r"line 8 has 2 channel\(s\), and the header says 3"),
        ("@univariate true\n", "1:2:Up", r"has 2 channel\(s\), and the header says 1"),
        ("@equalLength true\n@seriesLength 3\n", "1,2:Up", "has 2 values, and the header says 3"),
        ("@equalLength true\n", "1,2:Up\n1:Up", "series of 1 to 2 values, but says @equalLength"),
        (
            "@timeStamps True\n",
            "(0,1):Up",
            "its header has @timeStamps true: save the values alone",
        ),
        ("@classLabel true\n", "1:Up", "has @classLabel true without names"),
        ("@classLabel true a b a\n", "1:a", "names a class twice: a b a"),
        ("@univariate maybe\n", "1:Up", "has '@univariate maybe': write true or false"),
        ("@seriesLength long\n", "1:Up", "has '@seriesLength long'"),
        ("", "", "has no series after @data"),
    ],
)
def test_malformed_files_are_refused_in_one_sentence(tmp_path, header, text, message):
    header = HEADER + "@classLabel true Up down\n" + header + "@data\n"
    path = write(tmp_path, text, header=header)
    with pytest.raises(ValueError, match=message) as caught:
        series.ts(path, "train")
    assert "\n" not in str(caught.value) and "_TRAIN.ts" in str(caught.value)


def test_a_file_that_ends_in_its_header_is_refused(tmp_path):
    path = write(tmp_path, "", header=HEADER)
    with pytest.raises(ValueError, match="has no line @data"):
        series.ts(path, "train")


def test_all_needs_the_same_classes_in_both_files(tmp_path):
    write(tmp_path, None, "1:b", header="@classLabel true b a\n@data\n")
    path = write(tmp_path, "1:b", header="@classLabel true a b\n@data\n")
    with pytest.raises(ValueError, match="its files have different classes"):
        series.ts(path, "all")


# --- heart beats -------------------------------------------------------------------------------


def test_beats_have_the_rhythm_of_their_class():
    source = synthetic.beats("train")
    assert (len(source), len(synthetic.beats("test"))) == (600, 150)
    spreads = {name: [] for name in source.classes}
    for i in range(80):
        values, name = source[i]["image"].sum(1), source.classes[source[i]["label"]]
        # The R waves are the greatest values, a third of a second apart.
        peaks = [
            t for t in range(len(values)) if values[t] == values[max(0, t - 42) : t + 43].max()
        ]
        peaks = [t for t in peaks if values[t] > 0.5 * values.max() and 5 < t < 507]
        spreads[name].append(np.diff(peaks).std() / np.diff(peaks).mean())
    median = {name: np.median(spread) for name, spread in spreads.items()}
    assert median["regular"] < 0.05 < 0.12 < min(median[name] for name in source.classes[1:])


def test_beats_are_the_same_each_time_and_differ_between_splits():
    train, test = synthetic.beats("train"), synthetic.beats("test")
    np.testing.assert_array_equal(train[3]["image"], train[3]["image"])
    assert train[3]["image"].dtype == np.float32 and train[3]["image"].shape == (512, 2)
    assert (train[3]["image"] != test[3]["image"]).any()
