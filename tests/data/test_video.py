import collections
import os
import pickle
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from mae_jax.data.bad_examples import Unreadable
from mae_jax.data.image_io import crop
from mae_jax.data.modalities import video
from mae_jax.data.sources import folders, splits

STEP = 4  # gray levels between frames, so that a lossy codec cannot mix them up
FRAMES = 60
CODECS = {  # file -> codec, pixel format, options
    "exact.mkv": ("ffv1", "gray", {}),
    "b_frames.mp4": ("libx264", "yuv420p", {"x264-params": "keyint=250:bframes=4:qp=10"}),
    "open_gop.mp4": (
        "libx264",
        "yuv420p",
        {"x264-params": "open-gop=1:keyint=12:bframes=3:scenecut=0:qp=10"},
    ),
    "vp9.webm": ("libvpx-vp9", "yuv420p", {"g": "20"}),
    "old.avi": ("mpeg4", "yuv420p", {"g": "12", "bf": "2", "qmax": "2"}),
    "old.mpg": ("mpeg2video", "yuv420p", {"g": "12", "bf": "2", "qmax": "2"}),
    "intra.mov": ("mjpeg", "yuvj420p", {"qmax": "2"}),
}


def write(path, pictures, rotation=0, times=None):
    """Write uint8 [frames, h, w] or [frames, h, w, 3] with the codec of the name of the file."""
    av = pytest.importorskip("av")
    name = path.name if path.name in CODECS else "exact.mkv"
    codec, pixels, options = CODECS[name]
    if pictures.ndim == 4 and pixels == "gray":
        pixels = "bgr0"
    with av.open(str(path), "w") as container:
        try:
            stream = container.add_stream(codec, rate=25, options=options)
        except ValueError:
            pytest.skip(f"this PyAV has no encoder {codec}")
        stream.height, stream.width = pictures.shape[1:3]
        stream.pix_fmt = pixels
        if rotation:
            stream.set_display_rotation(rotation)
        for i, picture in enumerate(pictures):
            layout = "gray" if picture.ndim == 2 else "rgb24"
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format=layout)
            if times is not None:
                frame.pts = times[i]
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return str(path)


def levels(count=FRAMES, height=16, width=24):
    """Frame number i has the gray level i * STEP everywhere."""
    return np.full((count, height, width), 1, np.uint8) * np.arange(
        0, count * STEP, STEP, dtype=np.uint8
    ).reshape(-1, 1, 1)


def numbers(clips):
    """The frame numbers [clips, t] that clips of `levels` show."""
    middle = clips[:, :, clips.shape[2] // 2, clips.shape[3] // 2, 0]
    return np.rint(middle / STEP).astype(int)


def coordinates(height, width, count=1):
    """Channel 0 is the row and channel 1 the column, so that a crop tells where it was."""
    y, x = np.mgrid[:height, :width]
    return np.stack([np.stack([y, x, 0 * x], -1).astype(np.uint8)] * count)


def train(clip, seed=0, **changes):
    data = dict(
        size=(4, 8, 8), channels=1, stride=3, crop_scale=(0.5, 1), crop_ratio=(0.75, 4), repeats=1
    )
    return video.train_views(clip, data | changes, np.random.default_rng(seed))


def center(clip, clips=1, crops=1, **changes):
    data = dict(size=(4, 8, 8), channels=1, stride=3, center_crop=1)
    return video.eval_views(clip, data | changes, clips, crops)


def save_frames(folder, pictures, pattern="frame{}.png"):
    folder.mkdir(parents=True)
    for i, picture in enumerate(pictures):
        Image.fromarray(picture).save(folder / pattern.format(i))
    return tuple(str(folder / pattern.format(i)) for i in range(len(pictures)))


@pytest.fixture(scope="module")
def clip_of(tmp_path_factory):
    root = tmp_path_factory.mktemp("clips")
    written = {}

    def clip(kind):
        if kind == "array":
            return levels()
        if kind not in written:
            make = save_frames if kind == "folder" else write
            written[kind] = make(root / kind, levels())
        return written[kind]

    return clip


@pytest.mark.parametrize("kind", ["array", "folder", *CODECS])
def test_clips_show_the_frames_in_order_a_stride_apart(clip_of, kind):
    clip = clip_of(kind)
    for seed in range(8):
        clips = train(clip, seed, repeats=3)
        assert clips.shape == (3, 4, 8, 8, 1) and clips.dtype == np.uint8
        shown = numbers(clips)
        np.testing.assert_array_equal(np.diff(shown), 3)
        assert shown.min() >= 0 and shown.max() < FRAMES
        # every way to read a video draws alike, so that all show the same frames
        np.testing.assert_array_equal(shown, numbers(train(levels(), seed, repeats=3)))


@pytest.mark.parametrize("kind", ["exact.mkv", "b_frames.mp4"])
def test_the_content_of_a_file_is_read_like_the_file(clip_of, kind):
    clip = clip_of(kind)
    np.testing.assert_array_equal(train(Path(clip).read_bytes(), 3), train(clip, 3))


def test_content_opens_no_files(clip_of, monkeypatch):
    path = Path(clip_of("exact.mkv"))
    monkeypatch.chdir(path.parent)
    with pytest.raises(Unreadable):
        center(f"ffconcat version 1.0\nfile {path.name}\n".encode())


@pytest.mark.parametrize("kind", [kind for kind in CODECS if kind != "exact.mkv"])
def test_starting_at_a_key_frame_equals_decoding_from_the_first(clip_of, kind):
    import av

    clip = clip_of(kind)
    with av.open(clip) as container:
        whole = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(whole) == FRAMES
    for needed in ([0], [59], [7, 8, 31], [13], [24], [35, 58], range(60), range(40, 60, 4)):
        with video.open_video(clip) as (count, read):
            assert count == FRAMES
            for k, frame in zip(needed, read(np.array(needed)), strict=True):
                np.testing.assert_array_equal(frame, whole[k])


def test_starts_are_uniform_over_all_that_fit():
    clip = levels(13)  # starts 0 to 3 leave room for 3 * 3 frames more
    starts = [numbers(train(clip, seed))[0, 0] for seed in range(400)]
    counts = collections.Counter(starts)
    assert sorted(counts) == [0, 1, 2, 3] and min(counts.values()) > 70


def test_a_crop_is_the_same_in_all_frames_and_is_that_of_pictures():
    clip = coordinates(60, 90, 20)
    clips = train(clip, 3, size=(4, 16, 16), channels=3, repeats=5)
    np.testing.assert_array_equal(clips, np.broadcast_to(clips[:, :1], clips.shape))
    assert len(np.unique(clips.reshape(5, -1), axis=0)) == 5
    seeds = np.random.default_rng(3).integers(2**63, size=5)
    for row, seed in zip(clips, seeds, strict=True):
        rng = np.random.default_rng(seed)
        expected = crop.random_resized_crop(clip[0], (16, 16), (0.5, 1), (0.75, 4), rng)
        np.testing.assert_array_equal(row[0], expected)


def test_the_generator_alone_decides(clip_of):
    clip = clip_of("b_frames.mp4")
    np.testing.assert_array_equal(train(clip, 1, repeats=2), train(clip, 1, repeats=2))
    assert (train(clip, 1) != train(clip, 2)).any()


def test_repeats_and_crops_open_the_file_once_and_decode_no_frame_twice(clip_of, monkeypatch):
    av = pytest.importorskip("av")
    clip, open, upright = clip_of("b_frames.mp4"), av.open, video.upright
    opened, read = [], []
    monkeypatch.setattr(av, "open", lambda *a, **k: opened.append(open(*a, **k)) or opened[-1])
    monkeypatch.setattr(video, "upright", lambda f, c: read.append(f.pts) or upright(f, c))
    train(clip, repeats=20)
    assert len(opened) == 1 and len(read) == len(set(read)) > 20
    center(clip, clips=5, crops=3)
    assert len(opened) == 2
    for container in opened:  # closed
        with pytest.raises(AssertionError, match="not open"):
            container.seek(0)


def test_decoding_stops_after_the_last_frame_that_is_needed(clip_of):
    with video.open_video(clip_of("vp9.webm")) as (_, read):
        av, stream, size, packets = read.args
        fed = []
        decode = lambda packet: fed.append(packets.index(packet)) or stream.decode(packet)
        spy = SimpleNamespace(codec_context=stream.codec_context, decode=decode)
        assert len([*video.decode_frames(av, spy, size, packets, np.array([25, 30]))]) == 2
        assert stream.codec_context.thread_count == 1
    assert fed == list(range(20, 31))  # the key frames are 0, 20 and 40


@pytest.mark.parametrize("kind", ["array", "exact.mkv"])
def test_test_clips_are_evenly_spread(clip_of, kind):
    starts = lambda n: numbers(center(clip_of(kind), clips=n))[:, 0].tolist()
    assert starts(1) == [25]  # of 0 to 50
    assert starts(2) == [0, 50]
    assert starts(3) == [0, 25, 50]
    assert starts(6) == [0, 10, 20, 30, 40, 50]
    assert numbers(center(clip_of(kind)))[0].tolist() == [25, 28, 31, 34]


def test_one_crop_is_that_of_pictures():
    for height, width, share in [(40, 60, 0.875), (61, 40, 1), (33, 33, 0.5)]:
        clip = coordinates(height, width, 12)
        expected = crop.center_crop(clip[0], (8, 12), share)
        clips = center(clip, size=(2, 8, 12), channels=3, center_crop=share)
        np.testing.assert_array_equal(clips, np.broadcast_to(expected, clips.shape))


@pytest.mark.parametrize("axis", [0, 1])
def test_three_crops_cover_the_longer_side(axis):
    clip = coordinates(*((90, 30) if axis == 0 else (30, 90)), 20)
    clips = center(clip, size=(2, 30, 30), channels=3, clips=2, crops=3)
    assert clips.shape == (6, 2, 30, 30, 3)
    for row, start in enumerate([0, 30, 60] * 2):
        part = clip[0, start : start + 30] if axis == 0 else clip[0, :, start : start + 30]
        np.testing.assert_array_equal(clips[row, 0], part)
    shown = numbers(center(levels(), size=(2, 8, 8), clips=2, crops=3))[:, 0]
    assert shown.tolist() == [0, 0, 0, 56, 56, 56]


@pytest.mark.parametrize("kind", ["array", "folder", "short.mkv"])
def test_a_short_video_repeats_its_last_frame(tmp_path, kind):
    make = {"array": lambda _, a: a, "folder": save_frames, "short.mkv": write}[kind]
    clip = make(tmp_path / kind, levels(5))
    assert numbers(train(clip))[0].tolist() == [0, 3, 4, 4]
    assert numbers(center(clip, clips=2)).tolist() == [[0, 3, 4, 4]] * 2


def test_frames_that_the_header_promises_but_do_not_come(tmp_path):
    whole = Path(write(tmp_path / "exact.mkv", levels())).read_bytes()
    broken = tmp_path / "broken.mkv"
    for share in (0.9, 0.5, 0.2):
        broken.write_bytes(whole[: int(len(whole) * share)])
        shown = numbers(center(str(broken), clips=2, size=(2, 8, 8), stride=1))
        assert shown[0].tolist() == [0, 1]
        last = shown[1, 1]
        assert shown[1, 0] == last - 1 and abs(last + 1 - 60 * share) < 12


@pytest.mark.parametrize(
    "damage, expected", [(range(30, 33), [29, 29, 33]), (range(30), [30, 31, 33])]
)
def test_a_damaged_part_shows_the_frame_before_it(clip_of, damage, expected):
    with video.open_video(clip_of("intra.mov")) as (_, read):
        av, stream, size, packets = read.args
        bad = [packets[i] for i in damage]

        def decode(packet):
            if packet in bad:
                raise av.error.InvalidDataError(1, "damaged")
            return stream.decode(packet)

        spy = SimpleNamespace(codec_context=stream.codec_context, decode=decode)
        needed = np.array([29, 31, 33])
        shown = [frame[0, 0, 0] for frame in video.decode_frames(av, spy, size, packets, needed)]
    assert np.rint(np.array(shown) / STEP).tolist() == expected


def test_frames_of_uneven_length_are_counted(tmp_path):
    times = np.cumsum(np.arange(30) % 5 + 1)
    clip = write(tmp_path / "uneven.mkv", levels(30), times=times.tolist())
    for seed in range(5):
        np.testing.assert_array_equal(np.diff(numbers(train(clip, seed))), 3)


def test_files_without_times_are_counted_from_the_first_frame(clip_of):
    with video.open_video(clip_of("b_frames.mp4")) as (_, read):
        av, stream, size, packets = read.args
        for packet in packets:
            packet.pts = None
        shown = [
            f[0, 0, 0]
            for f in video.decode_frames(av, stream, size, packets, np.array([0, 30, 59]))
        ]
    assert np.rint(np.array(shown) / STEP).tolist() == [0, 30, 59]


def test_a_video_may_change_its_size_and_start_its_clock_again(tmp_path):
    sizes = [(16, 24), (48, 32)]
    parts = [Path(write(tmp_path / "old.mpg", levels(30, *size))).read_bytes() for size in sizes]
    clip = tmp_path / "both.mpg"
    clip.write_bytes(b"".join(parts))
    with video.open_video(str(clip)) as (count, read):
        assert count == 60
        frames = list(read(np.array([0, 28, 59])))
    assert [frame.shape for frame in frames] == [(16, 24, 3)] * 3
    assert [round(frame[8, 8, 0] / STEP) for frame in frames] == [0, 28, 29]


@pytest.mark.parametrize("height, width", [(17, 23), (1, 1), (9, 400)])
def test_odd_sizes(tmp_path, height, width):
    clip = write(tmp_path / "odd.mkv", levels(12, height, width))
    np.testing.assert_array_equal(np.diff(numbers(train(clip, size=(2, 7, 11)))), 3)
    assert center(clip, size=(2, 7, 11), channels=3, crops=3).shape == (3, 2, 7, 11, 3)


def test_colors_and_gray(tmp_path):
    red = np.broadcast_to(np.uint8((204, 51, 0)), (8, 16, 24, 3))
    luma = round(0.299 * 204 + 0.587 * 51)
    paths = write(tmp_path / "red.mkv", red), save_frames(tmp_path / "red", red)
    for clip in (*paths, red):
        color = center(clip, size=(2, 4, 4), channels=3)
        np.testing.assert_array_equal(color, np.broadcast_to(red[0, 0, 0], (1, 2, 4, 4, 3)))
        assert (center(clip, size=(2, 4, 4), channels=1) == luma).all()
    gray = write(tmp_path / "gray.mkv", levels(8))
    assert (np.ptp(center(gray, size=(2, 4, 4), channels=3), axis=-1) == 0).all()


@pytest.mark.parametrize("rotation", [90, -90, 180])
def test_rotated_videos_stand_upright(tmp_path, rotation):
    upright = np.zeros((6, 16, 32), np.uint8)
    upright[:, :4, :10] = 255  # the upper left corner is white
    stored = np.rot90(upright, -rotation // 90, axes=(1, 2))  # as a phone held sideways writes it
    clip = write(tmp_path / "b_frames.mp4", stored, rotation=rotation)
    shown = center(clip, size=(1, 16, 32))[0, 0, ..., 0]
    np.testing.assert_allclose(shown.astype(int), upright[0], atol=6)


def test_frames_of_another_size(tmp_path):
    parts = [levels(3, 16, 24), levels(3, 32, 24)]
    clip = sum((save_frames(tmp_path / str(i), part) for i, part in enumerate(parts)), ())
    with pytest.raises(Unreadable, match=r"differ in shape: \(16, 24, 1\) and \(32, 24, 1"):
        center(clip, size=(6, 8, 8), stride=1)


def damaged(kind, tmp_path):
    av = pytest.importorskip("av")
    path = tmp_path / "damaged.mp4"
    whole = Path(write(tmp_path / "b_frames.mp4", levels())).read_bytes()
    if kind in ("sound", "cover"):
        with av.open(str(path), "w") as container:
            sound = container.add_stream("aac", rate=44100)
            if kind == "cover":
                cover = container.add_stream("png", rate=25)
                cover.width = cover.height = 8
                cover.pix_fmt = "rgb24"
                cover.disposition = av.stream.Disposition.attached_pic
                container.mux(cover.encode(av.VideoFrame(8, 8, "rgb24")))
            samples = av.AudioFrame.from_ndarray(
                np.zeros((1, 4096), np.float32), format="fltp", layout="mono"
            )
            samples.rate = 44100
            container.mux(sound.encode(samples))
            container.mux(sound.encode())
        return path
    path.write_bytes(
        {
            "empty": b"",
            "text": b"not a video\n" * 100,
            "truncated": whole[: len(whole) // 2],
            "noise": np.random.default_rng(0).bytes(20_000),
            "codec": whole.replace(b"avc1", b"zzzz"),
            "play list": b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nhttp://10.0.0.1/a.ts\n",
            "zeros": whole[:48] + bytes(len(whole) - 2048) + whole[-2000:],
        }[kind]
    )
    return path


@pytest.mark.parametrize(
    "kind",
    [
        "empty",
        "text",
        "truncated",
        "noise",
        "codec",
        "sound",
        "cover",
        "play list",
        "zeros",
        "missing",
    ],
)
def test_damaged_files_give_one_sentence(tmp_path, kind):
    clip = str(tmp_path / "missing.mp4" if kind == "missing" else damaged(kind, tmp_path))
    for read in (train, center):
        with pytest.raises(Unreadable) as error:
            read(clip)
        assert "\n" not in str(error.value) and len(str(error.value)) < 100
        assert clip not in str(error.value)  # the pipeline says which
    reasons = {
        "zeros": "no frame of",
        "sound": "no video",
        "cover": "no video",
        "missing": "No such file",
    }
    assert reasons.get(kind, "") in str(error.value)


@pytest.mark.parametrize("name", CODECS)
def test_giant_frames_are_not_decoded(tmp_path, monkeypatch, name):
    clip = write(tmp_path / name, levels(height=64, width=96))
    center(clip)
    monkeypatch.setattr(video, "_MAX_PIXELS", 64 * 96 // 2)
    with pytest.raises(Unreadable, match="frame of the video|not a readable video"):
        center(clip)


@pytest.mark.parametrize(
    "clip, channels, message",
    [
        ((), 1, "no frames"),
        (np.zeros((0, 8, 8), np.uint8), 1, "no frames"),
        (np.zeros((8, 8), np.uint8), 1, "no video: give"),
        (np.zeros((2, 8, 8), np.float32), 1, "no video: give"),
        (np.zeros((2, 8, 8, 2), np.uint8), 3, "3 channels"),
        (("/nowhere/1.png",), 1, "frame '1.png': .*No such file"),
        ("a.mp4", 4, "1 or 3 channels, not 4: use arrays"),
    ],
)
def test_clips_that_do_not_fit(clip, channels, message):
    with pytest.raises(Unreadable, match=message):
        center(clip, channels=channels)


def test_a_damaged_picture_among_the_frames_is_named(tmp_path):
    clip = save_frames(tmp_path / "clip", levels(4))
    Path(clip[2]).write_bytes(b"nothing")
    with pytest.raises(Unreadable, match="frame 'frame2.png': not a picture"):
        center(clip, stride=1)


def test_without_pyav_only_video_files_fail(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    clip = save_frames(tmp_path / "train" / "clip", levels(4))
    assert center(folders.frames(str(tmp_path), "train")[0]["image"]).shape == (1, 4, 8, 8, 1)
    for read in (lambda: center(clip[0]), lambda: folders.videos(str(tmp_path), "train")):
        with pytest.raises(ImportError, match=r"needs PyAV: pip install 'mae_jax\[video\]'"):
            read()


def test_frames_come_in_natural_order(tmp_path):
    save_frames(tmp_path / "all" / "clip", levels(12), "frame{}.png")
    (tmp_path / "all" / "clip" / "notes.txt").touch()
    (tmp_path / "all" / "clip" / ".frame3.png").touch()
    source = folders.frames(str(tmp_path), "all")
    clip = source[0]["image"]
    assert [os.path.basename(path) for path in clip] == [f"frame{i}.png" for i in range(12)]
    assert numbers(center(clip, size=(12, 8, 8), stride=1))[0].tolist() == list(range(12))
    odd = ["1.png", "01.png", "a.png", "a1b2.png", "a1b10.png", "a02.png", "10.png", "2.JPG"]
    (tmp_path / "odd" / "clip").mkdir(parents=True)
    for name in odd:
        (tmp_path / "odd" / "clip" / name).touch()
    clip = folders.frames(str(tmp_path / "odd"), "all")[0]["image"]
    ordered = [os.path.basename(path) for path in clip]
    assert ordered == "01.png 1.png 2.JPG 10.png a1b2.png a1b10.png a02.png a.png".split()


def tree(root, kind, *names):
    """Empty videos, or folders with an empty picture, of these relative names."""
    for name in names:
        path = root / (f"{name}.mp4" if kind == "videos" else f"{name}/1.jpg")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


@pytest.fixture(params=["videos", "frames"])
def kind(request):
    if request.param == "videos":
        pytest.importorskip("av")
    return request.param


def test_folders_are_splits_and_classes(tmp_path, kind):
    tree(tmp_path, kind, "train/run/a", "train/run/deep/b", "train/jump/c", "val/jump/d", "train/e")
    ending = ".mp4" if kind == "videos" else ""
    opened = lambda split: getattr(folders, kind)(str(tmp_path), split)
    source = opened("train")
    assert source.classes == ("jump", "run") == opened("test").classes
    expected = {"train/e": -1, "train/jump/c": 0, "train/run/a": 1, "train/run/deep/b": 1}
    names = [source.name(i) for i in range(len(source))]
    assert names == [name + ending for name in expected]
    assert [source[i]["label"] for i in range(len(source))] == list(expected.values())
    assert [opened("test").name(0), len(opened("test"))] == ["val/jump/d" + ending, 1]
    assert len(opened("all")) == 5
    path = source[1]["image"] if kind == "videos" else source[1]["image"][0]
    assert path == str(tmp_path / ("train/jump/c" + (ending or "/1.jpg")))
    with pytest.raises(ValueError, match="no split 'dev': use train or test"):
        opened("dev")


def test_one_in_ten_is_held_out_as_in_folders(tmp_path, kind):
    tree(tmp_path, kind, *(f"{'ab'[i % 2]}/{i}" for i in range(100)))
    train, test, all = (
        getattr(folders, kind)(str(tmp_path), split) for split in ("train", "test", "all")
    )
    assert train.classes == test.classes == ("a", "b")
    assert sorted([*train.names, *test.names]) == list(all.names)
    assert test.names == tuple(splits.hold_out(list(all.names), "test"))
    assert 3 < len(test) < 20


def test_clips_without_classes(tmp_path, kind):
    tree(tmp_path, kind, "one", "two")
    (tmp_path / "loose.jpg").touch()  # the root itself is no clip
    source = getattr(folders, kind)(str(tmp_path), "all")
    assert source.classes == () and [source[i]["label"] for i in range(2)] == [-1, -1]
    assert len(source) == 2


def test_folders_without_clips(tmp_path, kind):
    (tmp_path / "empty").mkdir()
    spec = {"videos": "video", "frames": "frames"}[kind]
    opened = getattr(folders, kind)
    with pytest.raises(FileNotFoundError, match=f"data '{spec}:.*no (videos|folders of frames) in"):
        opened(str(tmp_path), "train")
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        opened(str(tmp_path / "nowhere"), "train")


def test_sources_are_picklable_and_read_alike_from_many_threads(tmp_path):
    for i in range(3):
        (tmp_path / "x").mkdir(exist_ok=True)
        path = tmp_path / "x" / "b_frames.mp4"
        Path(write(path, levels()[i:])).rename(tmp_path / "x" / f"{i}.mp4")
    source = pickle.loads(pickle.dumps(folders.videos(str(tmp_path), "all")))
    assert len(source) == 3
    read = lambda i: train(source[i % 3]["image"], i, repeats=2, channels=3)
    expected = [read(i) for i in range(24)]
    with ThreadPoolExecutor(8) as pool:
        for result, alone in zip(pool.map(read, range(24)), expected, strict=True):
            np.testing.assert_array_equal(result, alone)
