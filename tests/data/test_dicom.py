import io
import logging
import os
import pickle
import random
import warnings

import nibabel
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from mae_jax.data import array_io, sources, values
from mae_jax.data.array_io import dicom, dicom_header
from mae_jax.data.bad_examples import Unreadable

FILES = os.path.join(os.path.dirname(pydicom.__file__), "data", "test_files")


def ct(pixels, z=0.0, series="1.2.3", patient="p", **tags):
    """Return a slice of a scan as a data set of pydicom."""
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = CTImageStorage
    data.SOPClassUID, data.SeriesInstanceUID, data.PatientID = CTImageStorage, series, patient
    data.SOPInstanceUID = f"{series}.{random.randrange(10**9)}"
    data.Rows, data.Columns = pixels.shape[-2:] if pixels.shape[-1] != 3 else pixels.shape[-3:-1]
    data.SamplesPerPixel = 3 if pixels.shape[-1] == 3 else 1
    data.PhotometricInterpretation = "RGB" if pixels.shape[-1] == 3 else "MONOCHROME2"
    if data.SamplesPerPixel == 3:
        data.PlanarConfiguration = 0
    data.BitsAllocated = data.BitsStored = 8 * pixels.itemsize
    data.HighBit = data.BitsStored - 1
    data.PixelRepresentation = int(pixels.dtype.kind == "i")
    data.PixelSpacing, data.SliceThickness = [0.5, 0.75], 5
    data.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    data.ImagePositionPatient = [-10, -20, z]
    data.RescaleSlope, data.RescaleIntercept = 1, -1024
    data.PixelData = pixels.tobytes()
    for name, value in tags.items():
        if value is None:
            delattr(data, name)
        else:
            setattr(data, name, value)
    if "PixelData" in data:
        data["PixelData"].VR = "OW"
    return data


def save(path, *arguments, **tags):
    path.parent.mkdir(parents=True, exist_ok=True)
    ct(*arguments, **tags).save_as(path, enforce_file_format=True)
    return path


def stack(n=6, seed=0):
    return np.random.default_rng(seed).integers(0, 3000, (n, 5, 4)).astype(np.int16)


def save_series(folder, pixels, step=2.5, **tags):
    """Write the slices under names in another order than theirs."""
    names = random.Random(0).sample(range(100), len(pixels))
    for name, (i, one) in zip(names, enumerate(pixels), strict=True):
        save(folder / f"IM{name}", one, step * i, **tags)


def headers(folder):
    return [dicom_header.read_header(folder / name) for name in sorted(os.listdir(folder))]


def test_the_same_hounsfield_units_in_files_of_other_slopes_and_brightest_voxels(tmp_path):
    for name, bright, slope, intercept in [("a", 1000, 1, -1024), ("b", 3000, 0.5, -1000)]:
        stored = np.full((5, 4), (40 - intercept) / slope).astype(np.uint16)
        stored[3, 2] = (bright - intercept) / slope
        path = save(
            tmp_path / f"{name}.dcm", stored, RescaleSlope=slope, RescaleIntercept=intercept
        )
        array = pickle.loads(pickle.dumps(array_io.open_array(path)))
        values = array.read(array.whole)
        assert (array.shape, array.sides, array.dtype) == ((5, 4), 2, np.float32)
        assert values.dtype == np.float32 and values[0, 0] == 40 and values[3, 2] == bright
        part = (slice(2, 5), slice(1, 3))
        np.testing.assert_array_equal(array.read(part), values[part])
        assert array.spacing == (0.5, 0.75) and array.nodata == () and array.valid is None
    plain = dict(RescaleSlope=None, RescaleIntercept=None)
    array = dicom.open_array(save(tmp_path / "c.dcm", stored, **plain))
    assert array.dtype == np.uint16  # twelve bits stay twelve bits
    np.testing.assert_array_equal(array.read(array.whole), stored)


def test_low_values_stay_low_in_monochrome1(tmp_path):
    pixels = stack(1)[0]
    array = dicom.open_array(
        save(tmp_path / "a.dcm", pixels, PhotometricInterpretation="MONOCHROME1")
    )
    np.testing.assert_array_equal(array.read(array.whole), pixels - 1024.0)


def test_padding_is_missing(tmp_path):
    pixels = stack(1)[0]
    pixels[0, :2] = -2000, -1990
    array = dicom.open_array(save(tmp_path / "a.dcm", pixels, PixelPaddingValue=-2000))
    assert array.nodata == (-3024,) and array.valid is None
    ends = dict(PixelPaddingValue=-2000, PixelPaddingRangeLimit=-1990)
    array = dicom.open_array(save(tmp_path / "b.dcm", pixels, **ends))
    assert array.nodata == ()
    part = (slice(0, 2), slice(0, 3))
    np.testing.assert_array_equal(array.valid(part), pixels[part] > -1990)
    tags = dict(RescaleSlope=0.1, RescaleIntercept=0, PixelPaddingValue=7)
    array = dicom.open_array(save(tmp_path / "c.dcm", np.full((5, 4), 7, np.int16), **tags))
    assert (array.read(array.whole) == array.nodata[0]).all()


def test_tables_palettes_and_doses_are_applied(tmp_path):
    pixels = stack(1)[0] % 4
    table = Dataset()
    table.LUTDescriptor, table.LUTData = [4, 0, 16], [0, 100, 1000, 60000]
    table["LUTDescriptor"].VR, table["LUTData"].VR = "US", "US"
    table.ModalityLUTType = "HU"
    tags = dict(ModalityLUTSequence=Sequence([table]), RescaleSlope=None, RescaleIntercept=None)
    array = dicom.open_array(save(tmp_path / "a.dcm", pixels.astype(np.uint16), **tags))
    expected = np.array([0, 100, 1000, 60000])[pixels]
    np.testing.assert_array_equal(array.read(array.whole), expected)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = os.path.join(FILES, "examples_palette.dcm")
        array = dicom.open_array(path)
        part = (slice(5, 50), slice(7, 60), slice(1, 3))
        np.testing.assert_array_equal(array.read(part), array.read(array.whole)[part])
        dose = dicom.open_array(os.path.join(FILES, "rtdose.dcm"))
        data = pydicom.dcmread(os.path.join(FILES, "rtdose.dcm"))
    np.testing.assert_allclose(
        dose.read(dose.whole), data.pixel_array * float(data.DoseGridScaling), rtol=1e-12
    )
    np.testing.assert_allclose(dose.spacing, (5, 10, 10))


def test_padding_is_missing_where_a_table_is_applied(tmp_path):
    """The padding is a stored number, to which the tables give the value of another one."""
    pixels = np.array([[0, 1, 2, 2], [3, 0, 1, 0]], np.uint8)
    table = Dataset()
    table.LUTDescriptor, table.LUTData = [4, 0, 16], [70, 70, 1000, 60000]
    table["LUTDescriptor"].VR, table["LUTData"].VR = "US", "US"
    table.ModalityLUTType = "HU"
    plain = dict(RescaleSlope=None, RescaleIntercept=None, PixelPaddingValue=0)
    tags = plain | dict(ModalityLUTSequence=Sequence([table]))
    array = dicom.open_array(save(tmp_path / "a.dcm", pixels, **tags))
    assert (array.nodata, array.dtype) == ((), np.uint16)
    expected = np.array([70, 70, 1000, 60000])[pixels]
    np.testing.assert_array_equal(array.read(array.whole), expected)
    np.testing.assert_array_equal(array.valid(array.whole), pixels != 0)
    data = dict(channels=1, nodata=None)
    with pytest.raises(Unreadable, match="has missing values"):
        values.of(array, 2, data).read(array.whole)
    found = values.of(array, 2, data | dict(nodata="file")).read(array.whole)
    np.testing.assert_array_equal(np.isnan(found[..., 0]), pixels == 0)

    tags = plain | dict(PhotometricInterpretation="PALETTE COLOR", PixelPaddingRangeLimit=1)
    for i, color in enumerate(("Red", "Green", "Blue")):
        tags[f"{color}PaletteColorLookupTableDescriptor"] = [4, 0, 8]
        tags[f"{color}PaletteColorLookupTableData"] = bytes([9, 9, 9, 10 * i])
    array = dicom.open_array(save(tmp_path / "b.dcm", pixels, **tags))
    assert (array.nodata, array.shape) == ((), (2, 4, 3))
    part = (slice(0, 2), slice(1, 3), slice(1, 3))
    exists = np.repeat(pixels[:, 1:3, None] > 1, 2, axis=-1)
    np.testing.assert_array_equal(array.valid(part), exists)


def test_padding_of_floats_is_missing(tmp_path):
    tags = dict(FloatPixelData=np.float32([1, -5, 2, -5]).tobytes(), FloatPixelPaddingValue=-5.0)
    tags |= dict(PixelData=None, HighBit=None, BitsStored=None, PixelRepresentation=None)
    tags |= dict(RescaleSlope=None, RescaleIntercept=None)
    array = dicom.open_array(save(tmp_path / "a.dcm", np.zeros((2, 2), np.float32), **tags))
    np.testing.assert_array_equal(array.read(array.whole), [[1, -5], [2, -5]])
    assert array.nodata == (-5,)


@pytest.mark.parametrize("step", [2.5, -2.5])
def test_a_series_is_in_the_order_of_positions(tmp_path, step):
    pixels = stack()
    save_series(tmp_path, pixels, step)
    array = pickle.loads(pickle.dumps(dicom.open_series(headers(tmp_path))))
    expected = pixels[:: int(np.sign(step))] - 1024.0
    assert (array.shape, array.sides, array.dtype) == ((6, 5, 4), 3, np.float32)
    np.testing.assert_array_equal(array.read(array.whole), expected)
    part = (slice(2, 4), slice(1, 5), slice(0, 3))
    np.testing.assert_array_equal(array.read(part), expected[part])
    assert array.spacing == (2.5, 0.5, 0.75)
    # index (z, y, x) to the right, front and top; DICOM counts to the left and the back
    low = min(0, 5 * step)
    for index, place in [((0, 0, 0), (10, 20, low)), ((1, 2, 3), (10 - 2.25, 19, low + 2.5))]:
        np.testing.assert_allclose(array.frame.affine @ [*index, 1], [*place, 1])
    assert not array.frame.corner


def test_a_part_of_a_series_reads_only_its_own_files(tmp_path):
    pixels = stack()
    for i, one in enumerate(pixels):
        save(tmp_path / f"{i}", one, 2.5 * i)
    array = dicom.open_series(headers(tmp_path))
    for i in (0, 1, 4, 5):
        os.remove(tmp_path / f"{i}")
    part = (slice(2, 4), slice(0, 5), slice(0, 4))
    np.testing.assert_array_equal(array.read(part), pixels[2:4] - 1024.0)
    with pytest.raises(Unreadable):
        array.read(array.whole)


def test_a_series_with_a_slope_for_each_slice(tmp_path):
    pixels = stack(3)
    for i, one in enumerate(pixels):
        tags = dict(RescaleSlope=1 + i, RescaleIntercept=0, PixelPaddingValue=int(one[0, 0]))
        save(tmp_path / f"{i}", one, i, **tags)
    array = dicom.open_series(headers(tmp_path))
    factors = np.array([1.0, 2, 3])[:, None, None]
    np.testing.assert_array_equal(array.read(array.whole), pixels * factors)
    assert array.nodata == ()  # another number in each slice
    exists = pixels != pixels[:, :1, :1]
    np.testing.assert_array_equal(array.valid(array.whole), exists)


def test_an_oblique_series_has_its_own_axes(tmp_path):
    row, column = np.array([0.8, 0.6, 0]), np.array([0, 0, -1.0])
    normal = np.cross(row, column)
    for i, one in enumerate(stack(4)):
        tags = dict(ImageOrientationPatient=[*row, *column])
        tags |= dict(ImagePositionPatient=(3 * i * normal).tolist())
        save(tmp_path / f"{9 - i}", one, **tags)
    array = dicom.open_series(headers(tmp_path))
    np.testing.assert_array_equal(array.read(array.whole), stack(4) - 1024.0)
    np.testing.assert_allclose(array.spacing, (3, 0.5, 0.75))
    expected = np.stack([3 * normal, 0.5 * column, 0.75 * row], 1) * [[-1], [-1], [1]]
    np.testing.assert_allclose(array.frame.affine[:3, :3], expected)


def test_an_irregular_series_is_one_sentence(tmp_path):
    def refused(match, change, n=6):
        folder = tmp_path / match.replace(" ", "_")
        for i, one in enumerate(stack(n)):
            data = ct(one, 2.5 * i)
            change(i, data)
            folder.mkdir(exist_ok=True)
            data.save_as(folder / f"{i}", enforce_file_format=True)
        with pytest.raises(Unreadable, match=match) as error:
            dicom.open_series(headers(folder))
        assert "1.2.3" in str(error.value) and "\n" not in str(error.value)

    def taller(i, data):
        if i == 3:
            data.Rows, data.Columns = 4, 5

    def tilt(i, data):
        data.ImageOrientationPatient = [1, 0, 0, 0, 0.6, 0.8] if i == 3 else [1, 0, 0, 0, 1, 0]

    def wide(i, data):
        data.PixelSpacing = [0.5, 0.5 + 0.25 * (i == 2)]

    place = lambda data, z: setattr(data, "ImagePositionPatient", [0, 0, z])
    refused("differ in shape", taller)
    refused("differ in orientation", tilt)
    refused("differ in spacing", wide)
    refused("2.5 to 5 mm apart: one is missing", lambda i, d: place(d, 2.5 * (i + (i > 2))))
    refused("2.5 to 5 mm apart", lambda i, d: place(d, 2.5 * (i + (i > 1))), 3)
    refused("several slices of .* lie at", lambda i, d: place(d, 2.5 * (i // 2)))
    refused("order is unknown", lambda i, d: delattr(d, "ImagePositionPatient"))


def test_files_of_several_frames(tmp_path):
    pixels = stack()
    path = save(tmp_path / "cine.dcm", pixels, NumberOfFrames=6)
    array = dicom.open_array(path)  # all frames at one place: they keep their order
    assert array.shape == (6, 5, 4) and array.frame is None
    part = (slice(1, 3), slice(2, 4), slice(0, 3))
    np.testing.assert_array_equal(array.read(part), pixels[part] - 1024.0)
    groups = []
    for i in (2, 0, 1, 5, 4, 3):  # enhanced, with frames in another order
        group, plane, value = Dataset(), Dataset(), Dataset()
        plane.ImagePositionPatient = [0, 0, 2.0 * i]
        value.RescaleSlope, value.RescaleIntercept = 1 + i, 0
        group.PlanePositionSequence = Sequence([plane])
        group.PixelValueTransformationSequence = Sequence([value])
        groups.append(group)
    tags = dict(NumberOfFrames=6, PerFrameFunctionalGroupsSequence=Sequence(groups))
    array = dicom.open_array(save(tmp_path / "enhanced.dcm", pixels[[2, 0, 1, 5, 4, 3]], **tags))
    factors = np.arange(1.0, 7)[:, None, None]
    np.testing.assert_array_equal(array.read(array.whole), pixels * factors)
    assert array.spacing == (2, 0.5, 0.75)
    color = np.random.default_rng(0).integers(0, 255, (2, 5, 4, 3), dtype=np.uint8)
    plain = dict(RescaleSlope=None, RescaleIntercept=None, NumberOfFrames=2)
    array = dicom.open_array(save(tmp_path / "color.dcm", color, **plain))
    assert (array.sides, array.dtype) == (3, np.uint8)
    np.testing.assert_array_equal(array.read((*part[:1], *array.whole[1:])), color[1:3])


def encoded(data, **options):
    file = io.BytesIO()
    data.save_as(file, **(options or dict(enforce_file_format=True)))
    return file.getvalue()


def hostile():
    pixels = stack(1)[0]
    good = encoded(ct(pixels))
    without = lambda name: encoded(ct(pixels, **{name: None}))
    huge = ct(pixels, Rows=65535, Columns=65535)
    frames = ct(pixels, NumberOfFrames=2**31 - 1)
    rle = ct(pixels)
    rle.compress(pydicom.uid.RLELossless, pixels, generate_instance_uid=False)
    rle.NumberOfFrames, rle.Rows, rle.Columns = 2**31 - 1, 65535, 65535
    packed = ct(pixels)
    packed.compress(pydicom.uid.RLELossless, pixels, generate_instance_uid=False)
    return {
        "cut": good[:-7],
        "cut in the header": good[:400],
        "only the preamble": good[:132],
        "empty": b"",
        "text": b"no scan at all\n" * 40,
        "no pixels": without("PixelData"),
        "no rows": without("Rows"),
        "no bits": without("BitsAllocated"),
        "no photometric": without("PhotometricInterpretation"),
        "short": encoded(ct(pixels, PixelData=pixels.tobytes()[:-2])),
        "short, and more follows": encoded(
            ct(pixels, PixelData=pixels.tobytes()[:-2], DataSetTrailingPadding=b"\0" * 64)
        ),
        "frames that the header hides": encoded(ct(pixels, PixelData=pixels.tobytes() * 3)),
        "gigabytes": encoded(huge),
        "many frames": encoded(frames),
        "terabytes": encoded(rle),
        "slope of 0": encoded(ct(pixels, RescaleSlope=0)),
        "many numbers of bits": encoded(ct(pixels, BitsAllocated=[255] * 3000)),
        "cut in compressed pixels": encoded(packed)[:-20],
        "odd bits": encoded(ct(pixels, BitsAllocated=13)),
    }


@pytest.mark.parametrize("name, content", hostile().items())
def test_damaged_files_are_one_sentence(tmp_path, name, content):
    path = tmp_path / "a.dcm"
    path.write_bytes(content)
    with pytest.raises(Unreadable) as error, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        array = dicom.open_array(path)
        array.read(array.whole)
    text = str(error.value)
    assert "\n" not in text and len(text) < 330 and ": " in text


def test_files_without_a_preamble_and_under_any_name(tmp_path):
    pixels = stack(1)[0]
    for syntax in (ExplicitVRLittleEndian, ImplicitVRLittleEndian):
        data = ct(pixels)
        implicit = syntax == ImplicitVRLittleEndian
        del data.file_meta
        path = tmp_path / "IM1"
        path.write_bytes(encoded(data, implicit_vr=implicit, little_endian=True))
        array = dicom.open_array(path)
        np.testing.assert_array_equal(array.read(array.whole), pixels - 1024.0)


def test_files_that_come_with_pydicom_are_read_as_pydicom_reads_them():
    folders = [FILES, os.path.join(os.path.dirname(nibabel.__file__), "nicom", "tests", "data")]
    places = [os.path.join(r, f) for root in folders for r, _, fs in os.walk(root) for f in fs]
    slow = ("examples_ybr", "examples_jpeg2k", "examples_palette")
    equal, refused, uninstalled = 0, 0, 0
    for path in sorted(path for path in places if not os.path.basename(path).startswith(slow)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                array = dicom.open_array(path)
                values = array.read(array.whole)
            except (Unreadable, ImportError) as error:
                refused += isinstance(error, Unreadable)
                uninstalled += isinstance(error, ImportError)
                continue
            data = pydicom.dcmread(path, force=True)
            data.file_meta.setdefault("TransferSyntaxUID", ExplicitVRLittleEndian)
            expected = pydicom.pixels.apply_modality_lut(data.pixel_array, data)
        if "DoseGridScaling" in data:
            expected = expected * float(data.DoseGridScaling)
        assert values.dtype == array.dtype and values.shape == expected.shape == array.shape
        np.testing.assert_array_equal(values, expected.astype(array.dtype), path)
        equal += 1
    assert equal >= 78 and equal + uninstalled >= 84 and refused >= 6


def test_a_decoder_that_is_not_installed_is_named(tmp_path, monkeypatch):
    decoder = pydicom.pixels.get_decoder(pydicom.uid.JPEGLosslessSV1)
    monkeypatch.setattr(decoder, "_available", {})
    path = os.path.join(FILES, "SC_rgb_jpeg_gdcm.dcm")
    os.utime(path)
    with pytest.raises(ImportError, match=r"JPEG Lossless.* needs gdcm: .*mae_jax\[dicom\]"):
        dicom.open_array(path)


@pytest.fixture
def archive(tmp_path):
    """Return a folder of twelve patients with a series or two each, and other files."""
    for patient in range(12):
        group = ("ill", "well")[patient % 2]
        folder = tmp_path / group / f"p{patient}"
        for k in range(1 + patient % 2):
            tags = dict(series=f"1.{patient}.{k}", patient=f"P{patient}")
            save_series(folder / f"s{k}", stack(3, patient), **tags)
    save_series(tmp_path / "ill" / "p0" / "both", stack(3), series="1.0.8", patient="P0")
    for i, one in enumerate(stack(3)):
        where = tmp_path / "ill" / "p0" / "both" / f"second{i}"
        save(where, one, i, series="1.0.9", patient="P0", PhotometricInterpretation="MONOCHROME1")
    (tmp_path / "notes.txt").write_text("no scan")
    (tmp_path / "report").write_bytes(encoded(ct(stack(1)[0], Rows=None, PixelData=None)))
    save(tmp_path / "ill" / "cine", stack(4), NumberOfFrames=4, patient="P0", series="1.0.10")
    return tmp_path


def test_a_source_holds_out_patients_and_tells_what_it_leaves_out(archive, caplog):
    spec = f"dicom:{archive}"
    with caplog.at_level(logging.WARNING):
        everything = sources.open_source(spec, "all", "volume")
    assert "2 of 63 files are left out: 'notes.txt' (no DICOM file" in caplog.text
    assert "3 of 61 files are MONOCHROME1" in caplog.text
    names = [everything.name(i) for i in range(len(everything))]
    assert len(names) == 12 + 6 + 2 + 1 and everything.classes == ("ill", "well")
    assert {"ill/p0/s0", "ill/p0/both/1.0.8", "ill/p0/both/1.0.9", "ill/cine"} <= set(names)
    example = pickle.loads(pickle.dumps(everything))[names.index("well/p3/s1")]
    assert example["label"] == 1 and example["image"].shape == (3, 5, 4)
    image = example["image"]
    np.testing.assert_array_equal(image.read(image.whole), stack(3, 3) - 1024.0)
    for modality, count in [("volume", 21), ("image", 60)]:
        parts = [sources.open_source(spec, split, modality) for split in ("train", "test")]
        sides = [{part.name(i).split("/")[1] for i in range(len(part))} for part in parts]
        assert sum(map(len, parts)) == count and all(sides)
        assert not (sides[0] - {"cine"}) & (sides[1] - {"cine"})
    image = parts[0][0]["image"]
    assert image.shape == (5, 4) and image.dtype == np.float32


def test_tables_name_series_and_keep_patients_together(archive):
    rows = [f"{('ill', 'well')[p % 2]}/p{p}/s0,{30 + p}" for p in range(12)]
    (archive / "labels.csv").write_text("\n".join(["file,target", *rows]))
    spec = f"dicom:{archive}"
    parts = [sources.open_source(spec, split, "volume") for split in ("train", "test")]
    assert sum(map(len, parts)) == 12 and all(map(len, parts))
    part = parts[1]
    ages = [30 + int(part.name(i).split("/")[1][1:]) for i in range(len(part))]
    assert [float(part[i]["label"][0]) for i in range(len(part))] == ages
    rows = [f"well/p1/s{k},{k},{('train', 'test')[k]}" for k in range(2)]
    (archive / "labels.csv").write_text("\n".join(["file,target,split", *rows]))
    with pytest.raises(ValueError, match="group 'P1' in 'train' and in 'test'"):
        sources.open_source(spec, "train", "volume")


def test_folders_of_patients_are_no_classes(tmp_path, caplog):
    for patient in range(3):
        tags = dict(series=f"1.{patient}", patient=f"P{patient}")
        save_series(tmp_path / f"p{patient}" / "ct", stack(3), **tags)
    with caplog.at_level(logging.WARNING):
        source = sources.open_source(f"dicom:{tmp_path}", "all", "volume")
    assert source.classes == () and source[0]["label"] == -1
    assert "the sub-folders are patients, and no classes" in caplog.text
    (tmp_path / "labels.csv").write_text("file,label\np0/ct,ill\np1/ct,well\np2/ct,well\n")
    source = sources.open_source(f"dicom:{tmp_path}", "all", "volume")
    assert source.classes == ("ill", "well") and source[0]["label"] == 0


def test_one_file_and_wrong_places(tmp_path):
    path = save(tmp_path / "IM1", stack(1)[0])
    source = sources.open_source(f"dicom:{path}", "train")
    assert len(source) == 1 and source[0]["image"].shape == (5, 4)
    source = sources.open_source(f"dicom:{path}", "all", "volume")
    assert source[0]["image"].shape == (1, 5, 4)
    assert source[0]["image"].spacing == (5, 0.5, 0.75)
    with pytest.raises(ValueError, match="is one file"):
        sources.open_source(f"dicom:{path}", "test")
    (tmp_path / "none").mkdir()
    with pytest.raises(FileNotFoundError, match="no DICOM pictures"):
        sources.open_source(f"dicom:{tmp_path}/none", "train")
    with pytest.raises(FileNotFoundError, match="no folder"):
        sources.open_source(f"dicom:{tmp_path}/nowhere", "train")
    with pytest.raises(ValueError, match="'image' or 'volume', not 'audio'"):
        sources.open_source(f"dicom:{tmp_path}", "train", "audio")
