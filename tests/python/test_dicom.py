"""DICOM series written by pydicom in every variant, against SimpleITK's reader of series, and pydicom's own samples."""

import hashlib
import io
import json

import nibabel as nib
import numpy as np
import pydicom
import SimpleITK as sitk
from helpers import dump, pretext3d, read_json, refused, tensors
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import (CTImageStorage, DeflatedExplicitVRLittleEndian, EnhancedMRImageStorage, ExplicitVRBigEndian, ExplicitVRLittleEndian,
                         ImplicitVRLittleEndian, JPEGBaseline8Bit, RLELossless, SegmentationStorage, generate_uid)

AXIAL, SAGITTAL, CORONAL = (1, 0, 0, 0, 1, 0), (0, 1, 0, 0, 0, -1), (1, 0, 0, 0, 0, -1)
# Voxels along x, y and z, for any orientation.
MM = np.array([1.5, 2.0, 3.0])
# Everything that is stored is linear in the scan's values, and nothing is cut off.
LINEAR = ["--protocol", "modern", "--spacing", "1.5,2,3", "--window", "-40000,80000", "--foreground", "-1000000", "--dtype", "f32"]


def sample(name):
    """A file that pydicom brings along."""
    return get_testdata_file(name, download=False)


def hashed(text, digits):
    return hashlib.sha256(text.encode()).hexdigest()[:digits]


def oblique(degrees):
    """Axial directions, turned about two axes."""
    a, b = np.radians(degrees), np.radians(degrees / 2)
    turn = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    return tuple((np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]]) @ turn)[:, :2].T.ravel())


def header(patient, description, syntax=ExplicitVRLittleEndian, sop=CTImageStorage, study=None, series=None, modality="MR"):
    meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = syntax, sop, generate_uid()
    ds = FileDataset("", {}, file_meta=meta, preamble=bytes(128), is_implicit_VR=syntax.is_implicit_VR, is_little_endian=syntax.is_little_endian)
    ds.SOPClassUID, ds.SOPInstanceUID, ds.Modality = sop, meta.MediaStorageSOPInstanceUID, modality
    ds.PatientName, ds.PatientID, ds.SeriesDescription = "Secret^Name", patient, description
    ds.StudyInstanceUID = study or generate_uid(entropy_srcs=[patient])
    ds.SeriesInstanceUID = series or generate_uid()
    ds.ImageType = ["ORIGINAL", "PRIMARY"]
    return ds


def pixels(ds, array, bits=None, photometric="MONOCHROME2"):
    ds.Rows, ds.Columns, ds.SamplesPerPixel, ds.PhotometricInterpretation = *array.shape[-2:], 1, photometric
    ds.BitsAllocated = 8 * array.dtype.itemsize
    ds.BitsStored = bits or ds.BitsAllocated
    ds.HighBit, ds.PixelRepresentation = ds.BitsStored - 1, int(array.dtype.kind == "i")
    big = ds.file_meta.TransferSyntaxUID == ExplicitVRBigEndian
    ds.PixelData = array.astype(array.dtype.newbyteorder(">" if big else "<")).tobytes()


def series(folder, rng, patient, *, description="T1", n=7, dtype="i2", bits=None, orientation=AXIAL, syntax=ExplicitVRLittleEndian, names=None,
           slopes=(1, 0), photometric="MONOCHROME2", moved=None, skip=(), tilt=0.0, change=None, study=None, shape=(5, 6), **of):
    """Writes the slices of a series to files of random names in a random order; `moved`: millimetres by which slices lie elsewhere."""
    folder.mkdir(parents=True, exist_ok=True)
    uid, axes = generate_uid(), np.reshape(orientation, (2, 3))
    normal = np.cross(*axes)
    spacing = [MM[np.abs(axis).argmax()] for axis in (*axes, normal)]
    high, low = (2**bits - 1, 0) if bits else (np.iinfo(dtype).max, np.iinfo(dtype).min)
    origin = rng.uniform(-90, 90, 3).round(2)
    for k in rng.permutation(n):
        array = rng.integers(low, high, shape, dtype=dtype, endpoint=True)
        if k in skip:
            continue
        ds = header(patient, description, syntax, series=uid, study=study, **of)
        ds.ImageOrientationPatient = [f"{v:.10g}" for v in orientation]
        position = origin + normal * (k * spacing[2] + (moved or {}).get(k, 0)) + axes[1] * k * tilt
        ds.ImagePositionPatient = [f"{v:.8g}" for v in position]
        ds.PixelSpacing, ds.SliceThickness, ds.InstanceNumber = [spacing[1], spacing[0]], spacing[2], int(rng.integers(1000))
        slope = slopes(k) if callable(slopes) else slopes
        if slope is not None:
            ds.RescaleSlope, ds.RescaleIntercept = slope
        pixels(ds, array, bits, photometric)
        if syntax == RLELossless:
            ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
            ds.compress(RLELossless)
        if change:
            change(ds, k)
        ending = rng.choice(["", ".dcm", ".IMA", ".img", ".1.2"]) if names is None else names
        ds.save_as(folder / f"{rng.integers(10**9)}{ending}", enforce_file_format=True)
    return uid


def enhanced(folder, rng, patient, n=6):
    """One file of frames in a random order, with an orientation for all and a place and slope for each."""
    folder.mkdir(parents=True, exist_ok=True)
    ds = header(patient, "enhanced", sop=EnhancedMRImageStorage)
    order, array = rng.permutation(n), rng.integers(0, 4095, (n, 5, 6), dtype="u2")
    pixels(ds, array, 12)
    ds.NumberOfFrames = n
    shared = Dataset()
    measures, plane = Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness, plane.ImageOrientationPatient = [2.0, 1.5], 3, list(AXIAL)
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = Sequence([measures]), Sequence([plane])
    ds.SharedFunctionalGroupsSequence, ds.PerFrameFunctionalGroupsSequence = Sequence([shared]), Sequence()
    for k in order:
        place, values, frame = Dataset(), Dataset(), Dataset()
        place.ImagePositionPatient = [-10.0, 4.0, 20.0 + 3.0 * k]
        values.RescaleSlope, values.RescaleIntercept = 1 + int(k) / 4, -int(k)
        frame.PlanePositionSequence, frame.PixelValueTransformationSequence = Sequence([place]), Sequence([values])
        ds.PerFrameFunctionalGroupsSequence.append(frame)
    ds.save_as(folder / "enhanced", enforce_file_format=True)
    volume = np.empty((6, 5, n))
    for frame, k in zip(array, order):
        volume[..., k] = frame.T * (1 + k / 4) - k
    affine = np.array([[-1.5, 0, 0, 10], [0, -2, 0, -4], [0, 0, 3, 20], [0, 0, 0, 1.0]])
    return volume, affine


def of_itk(folder, uid):
    """Voxels and affine in RAS+ as SimpleITK reads the series."""
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder), uid))
    reader.SetOutputPixelType(sitk.sitkFloat64)
    return in_ras(reader.Execute())


def of_itk_file(path):
    return in_ras(sitk.ReadImage(str(path), sitk.sitkFloat64))


def in_ras(image):
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return sitk.GetArrayFromImage(image).T, np.diag([-1, -1, 1, 1]) @ affine


def of_pydicom(folder, uid):
    """Axial slices as they are stored, without slope, and the affine in RAS+."""
    files = [pydicom.dcmread(path, force=True) for path in folder.iterdir() if path.is_file()]
    files = sorted((ds for ds in files if ds.get("SeriesInstanceUID") == uid), key=lambda ds: ds.ImagePositionPatient[2])
    kind = "i2" if files[0].PixelRepresentation else "u2"
    raw = np.stack([np.frombuffer(ds.PixelData, kind).reshape(ds.Rows, ds.Columns).T for ds in files], -1)
    affine = np.diag([-MM[0], -MM[1], MM[2], 1])
    affine[:3, 3] = files[0].ImagePositionPatient * np.array([-1, -1, 1])
    return raw.astype(float), affine


def stored(store):
    """Scans of a store by their patient: values, affine."""
    found = {}
    for subject in read_json(store / "index.json")["subjects"]:
        data, text = tensors(store / subject["file"])
        found.setdefault(subject["id"].split("/")[0], []).append((data["image"].numpy() * 120000.0 - 40000, np.array(json.loads(text["affine"])), subject["id"]))
    return found


def canonical(values, affine):
    image = nib.as_closest_canonical(nib.Nifti1Image(values, affine))
    return image.get_fdata(), image.affine


def agree(scan, values, affine):
    values, affine = canonical(values, affine)
    np.testing.assert_allclose(scan[1], affine, atol=2e-3)
    np.testing.assert_allclose(scan[0][0], values, atol=0.02)


def test_series_of_every_kind(tmp_path):
    """One folder of many patients: every one is what SimpleITK, or arithmetic, makes of it."""
    rng, data = np.random.default_rng(3), tmp_path / "data"
    kinds = {
        "axial": {}, "sagittal": dict(orientation=SAGITTAL), "coronal": dict(orientation=CORONAL), "oblique": dict(orientation=oblique(17)),
        "reversed": dict(orientation=(-1, 0, 0, 0, 1, 0)), "unsigned": dict(dtype="u2", slopes=(1, -1024)), "bytes": dict(dtype="u1"), "int8": dict(dtype="i1"),
        "twelve": dict(dtype="u2", bits=12, slopes=(2.5, -7)), "slopes": dict(dtype="u2", bits=12, slopes=lambda k: (1 + k / 8, -3 * k)),
        "implicit": dict(syntax=ImplicitVRLittleEndian),
        "big": dict(syntax=ExplicitVRBigEndian), "deflated": dict(syntax=DeflatedExplicitVRLittleEndian), "no slope": dict(slopes=None),
        "rounded": dict(moved={2: 0.05, 4: -0.05}), "many": dict(n=31, shape=(9, 4)),
    }
    uids = {name: series(data / "mixed" / "deep", rng, name, **how) for name, how in kinds.items()}
    # Bits around the value are not of it, as overlays of old scanners; it may be in the highest ones.
    def overlay(ds, k):
        ds.PixelData = (np.frombuffer(ds.PixelData, "u2") | 0xF000).astype("<u2").tobytes()
    def shifted(ds, k):
        ds.PixelData, ds.HighBit = (np.frombuffer(ds.PixelData, "u2") << 4).astype("<u2").tobytes(), 15
    # As others that ITK reads.
    twins = {"overlay": dict(dtype="u2", bits=12, change=overlay), "shifted": dict(dtype="u2", bits=12, change=shifted),
             "rle": dict(syntax=RLELossless), "rle8": dict(syntax=RLELossless, dtype="u1"), "rle odd": dict(syntax=RLELossless, dtype="u2", shape=(7, 9))}
    for name, how in twins.items():
        uids[name] = series(data / name, np.random.default_rng(5), name, **how)
        twins[name] = series(tmp_path / "clean" / name, np.random.default_rng(5), name, **{**how, "syntax": ExplicitVRLittleEndian, "change": None})
    uids["inverse"] = series(data / "mixed", rng, "inverse", dtype="u2", bits=12, photometric="MONOCHROME1", slopes=(2, -100))
    uids["signed inverse"] = series(data / "mixed", rng, "signed inverse", photometric="MONOCHROME1")
    volumes = {"enhanced": enhanced(data / "e", rng, "enhanced")}
    # An old file has elements alone.
    def bare(ds, k):
        ds.preamble = None
    def jpeg(ds, k):
        packed = io.BytesIO()
        Image.fromarray(np.full((ds.Rows, ds.Columns), 9 * k, "u1")).save(packed, "JPEG", quality=95)
        ds.PixelData, ds.file_meta.TransferSyntaxUID = encapsulate([packed.getvalue()]), JPEGBaseline8Bit
        ds["PixelData"].is_undefined_length = True
    uids["jpeg"] = series(data / "mixed", rng, "jpeg", dtype="u1", shape=(16, 24), change=jpeg)
    old = data / "mixed" / "old"
    uids["old"] = series(old, rng, "old", syntax=ImplicitVRLittleEndian, names=".x")
    for path in old.iterdir():
        path.write_bytes(path.read_bytes()[132 + 12 + pydicom.dcmread(path).file_meta.FileMetaInformationGroupLength :])
    # Strangers beside them.
    (data / "notes.txt").write_text("no scan")
    (data / "DICOMDIR").write_bytes(open(sample("DICOMDIR"), "rb").read())
    series(data / "scout", rng, "axial", n=3, study=None, change=lambda ds, k: setattr(ds, "ImageType", ["ORIGINAL", "PRIMARY", "LOCALIZER"]))
    series(data / "pair", rng, "axial", n=2)
    for name in ["test-SR.dcm", "rtstruct.dcm", "rtplan.dcm", "rtdose.dcm", "SC_rgb_rle.dcm"]:
        (data / name).write_bytes(open(sample(name), "rb").read())
    mask = header("axial", "mask", sop=SegmentationStorage, modality="SEG")
    pixels(mask, np.zeros((5, 6), "u1"))
    mask.save_as(data / "mask", enforce_file_format=True)
    one = next((data / "mixed" / "deep").iterdir())
    (data / "copy").write_bytes(one.read_bytes())

    done = pretext3d("preprocess", "--data", data, "--out", tmp_path / "store", *LINEAR)
    said = done.stdout + done.stderr
    for part in ["layout dicom", "1 files that are not DICOM", "3 localizers", "1 SR objects", "1 RTSTRUCT", "1 SEG", "1 images that are not grey (RGB)", "1 DICOMDIR", "2 slices, expected",
                 "1 copies of slices"]:
        assert part in said, (part, said)
    found = stored(tmp_path / "store")
    assert len(found) == len(uids) + len(volumes)
    for name, uid in uids.items():
        [scan] = found[hashed(name, 16)]
        if name in twins:
            values, affine = of_itk(tmp_path / "clean" / name, twins[name])
        elif "inverse" in name or name == "old":
            raw, affine = of_pydicom(old if name == "old" else data / "mixed", uid)
            values = {"inverse": 2 * (4095 - raw) - 100, "signed inverse": -1 - raw, "old": raw}[name]
        else:
            values, affine = of_itk(data / "mixed" / "deep" if name in kinds else data / "mixed", uid)
        agree(scan, values, affine)
    [scan] = found[hashed("enhanced", 16)]
    agree(scan, *volumes["enhanced"])
    # Nothing of a patient is anywhere.
    for path in (tmp_path / "store").iterdir():
        content = path.read_bytes()
        assert b"Secret" not in content and b"enhanced/" not in content and str(data).encode() not in content, path
    assert "Secret" not in said


def test_series_that_are_refused(tmp_path):
    """Each with what is wrong, in one run; the good one beside them is stored."""
    rng, data = np.random.default_rng(4), tmp_path / "data"
    other = lambda tag, value, at=3: lambda ds, k: setattr(ds, tag, value) if k == at else None
    def wide(ds, k):
        if k == 3:
            pixels(ds, np.zeros((5, 7), "i2"))
    kinds = {
        "gap": (dict(skip=[3]), ["gaps", "6.000 mm", "1 slices are missing"]),
        "double": (dict(moved={3: -3.0}), ["doubled positions: 1 of 7"]),
        "time": (dict(moved={k: -3.0 * k for k in range(7)}), ["doubled positions: all 7"]),
        "tilt": (dict(tilt=0.8), ["gantry tilt", "14.9 degrees", "dcm2niix"]),
        "uneven": (dict(moved={3: 1.0}), ["uneven spacing", "2.000 to 4.000 mm"]),
        "sizes": (dict(change=wide), ["mixed sizes: 6 x 5"]),
        "directions": (dict(change=other("ImageOrientationPatient", list(SAGITTAL))), ["mixed orientations"]),
        "spacings": (dict(change=other("PixelSpacing", [1, 1])), ["mixed PixelSpacing: 1 of 7"]),
        "skew": (dict(change=lambda ds, k: setattr(ds, "ImageOrientationPatient", [1, 0, 0, 0.5, 0.5, 0])), ["right angle"]),
        "no place": (dict(change=lambda ds, k: delattr(ds, "ImagePositionPatient") if k == 3 else None), ["1 of 7 files do not say where they lie"]),
        "short": (dict(change=lambda ds, k: setattr(ds, "PixelData", ds.PixelData[:-10]) if k == 3 else None), ["50 bytes of pixels, expected 60"]),
        "htj2k": (dict(change=lambda ds, k: (setattr(ds, "PixelData", encapsulate([bytes(40)])), setattr(ds["PixelData"], "is_undefined_length", True),
                                             setattr(ds.file_meta, "TransferSyntaxUID", "1.2.840.10008.1.2.4.201"))), ["High-Throughput JPEG 2000", "dcm2niix"]),
    }
    for name, (how, _) in kinds.items():
        series(data, rng, name, description=f"of {name}", **how)
    series(data, rng, "good")
    cut = next(path for path in data.iterdir() if path.stat().st_size > 600)
    (data / "damaged").write_bytes(cut.read_bytes()[:300])
    done = pretext3d("preprocess", "--data", data, "--out", tmp_path / "store", "--skip-bad", *LINEAR)
    lines = done.stderr.splitlines()
    for name, (_, says) in kinds.items():
        [line] = [line for line in lines if line.startswith("bad: ") and hashed(name, 16) in line] or [""]
        for part in says:
            assert part in line, (name, part, done.stderr)
    assert any("a DICOM file, which --patient-ids names" in line and "cut off" in line for line in lines)
    assert list(stored(tmp_path / "store")) == [hashed("good", 16)]
    left_out = read_json(tmp_path / "store/index.json")["left_out"]
    assert len(left_out) == len(kinds) + 1 and str(cut.name) not in json.dumps(left_out)
    # Asked for, patients and files are named.
    named = refused("preprocess", "--data", data, "--out", tmp_path / "named", "--patient-ids", *LINEAR, says=[data / "damaged", "short/"])
    assert hashed("short", 16) not in named and [path for path in data.iterdir() if f"normal, {path}" in named]


def test_series_by_description(tmp_path):
    """Several series of a patient: an error that lists them, then a rule, several rules as channels, and all as scans."""
    rng, data = np.random.default_rng(6), tmp_path / "data"
    shared = dict(n=5, shape=(8, 8))
    for patient in ["7", "8"]:
        state = rng.integers(99)
        for name in ["T1 MPRAGE", "t1 mprage POST", "FLAIR"]:
            # On one grid.
            series(data / patient / name, np.random.default_rng(state), patient, description=name, dtype="u1", slopes=(1, len(name)), **shared)
    series(data / "9", rng, "", description="T1 post", study="1.2.3", **shared)
    args = ["preprocess", "--data", data, *LINEAR]
    refused(*args, "--out", tmp_path / "x", says=["2 of 3 studies", '2 x "FLAIR"', '2 x "T1 MPRAGE"', '1 x "T1 post"', "--series", "--channels-as-scans"])
    refused(*args, "--out", tmp_path / "x", "--series", "T1*", says=["2 series `T1*`", "1 x"])
    one = pretext3d(*args, "--out", tmp_path / "one", "--series", "T1*Post")
    assert "channels t1_post" in one.stdout + one.stderr
    scans = stored(tmp_path / "one")
    # Of a patient without an id the study stands for it.
    assert sorted(scans) == sorted([hashed("7", 16), hashed("8", 16), hashed("1.2.3", 16)])
    assert scans[hashed("1.2.3", 16)][0][2] == f"{hashed('1.2.3', 16)}/{hashed('1.2.3', 8)}"
    pretext3d(*args, "--out", tmp_path / "two", "--series", "t1 mprage", "--series", "FL?IR", "--skip-bad", "--patient-ids")
    two = stored(tmp_path / "two")
    assert sorted(two) == ["7", "8"] and read_json(tmp_path / "two/index.json")["channels"] == ["t1_mprage", "fl_ir"]
    for patient in ["7", "8"]:
        image = two[patient][0][0]
        assert image.shape[0] == 2
        np.testing.assert_allclose(image[0] - image[1], len("T1 MPRAGE") - len("FLAIR"), atol=0.05)
    alone = pretext3d(*args, "--out", tmp_path / "all", "--channels-as-scans", "--no-labels")
    assert "flair 2, t1_mprage 2, t1_mprage_post 2, t1_post 1" in alone.stderr and len(stored(tmp_path / "all")[hashed("7", 16)]) == 3
    refused("preprocess", "--data", tmp_path / "one", "--layout", "folder", "--series", "x", "--out", tmp_path / "x", says=["--series", "DICOM"])


def test_labels_and_predictions(tmp_path):
    """In a manifest a cell names the folder of one series, beside a label; a prediction lies where the series does."""
    rng, rows, uids = np.random.default_rng(9), ["subject,t1,label"], {}
    for n, orientation in enumerate([SAGITTAL, oblique(12), AXIAL]):
        folder = tmp_path / "series" / f"s{n}"
        uids[f"p{n}"] = uid = series(folder, rng, f"p{n}", n=14 + n, orientation=orientation, shape=(17, 19))
        values, affine = of_itk(folder, uid)
        nib.save(nib.Nifti1Image((values > 0).astype("u1"), affine), tmp_path / f"{n}.nii.gz")
        rows.append(f"p{n},series/s{n},{n}.nii.gz")
    (tmp_path / "list.csv").write_text("\n".join(rows))
    store, run, out = tmp_path / "store", tmp_path / "run", tmp_path / "out"
    pretext3d("preprocess", "--data", tmp_path / "list.csv", "--out", store, "--labels", "0,1", *LINEAR)
    for subject in read_json(store / "index.json")["subjects"]:
        data, _ = tensors(store / subject["file"])
        image = data["image"].numpy()[0] * 120000 - 40000
        np.testing.assert_array_equal(data["label"].numpy() == 1, image > 0.5)
    small = ["--filters", 2, "--levels", 2, "--patch", 8, "--steps", 1, "--epochs", 1, "--device", "cpu"]
    pretext3d("finetune", "--data", store, "--weights", "none", *small, "--out", run)
    pretext3d("predict", "--weights", run, "--input", tmp_path / "series", "--output", out, "--device", "cpu")
    for n, (patient, uid) in enumerate(uids.items()):
        [path] = out.rglob(f"{hashed(patient, 16)}*/*.nii.gz") if (out / hashed(patient, 16)).is_dir() else out.glob(f"{hashed(patient, 16)}*")
        values, affine = of_itk(tmp_path / "series" / f"s{n}", uid)
        label = nib.load(path)
        assert label.shape == values.shape
        np.testing.assert_allclose(label.affine, affine, atol=1e-3)


def test_samples_of_pydicom(tmp_path):
    """Single files of many transfer syntaxes, and those that are no images, each as pydicom has it or with its reason."""
    small = ["MR_small", "MR_small_RLE", "MR_small_bigendian", "MR_small_expb", "MR_small_implicit", "MR_small_padded", "MR_small_jp2klossless",
             "MR_small_jpeg_ls_lossless"]
    bad = {"MR_truncated": "bytes of pixels", "test-SR": "SR objects", "rtplan": "no images", "rtdose": "RTDOSE", "liver_1frame": "SEG",
           "SC_rgb_rle": "not grey (RGB)", "SC_rgb_jls_lossy_line": "not grey (RGB)", "JPEG2000": "do not say where they lie", "waveform_ecg": "no images", "reportsi": "no images"}
    names = [*small, "CT_small", *bad]
    for (line, stem), name in zip(dump([sample(f"{name}.dcm") for name in names], tmp_path / "out"), names, strict=True):
        if name in bad:
            assert bad[name] in line["error"] and f"{name}.dcm" in line["error"], line
            continue
        values, affine = of_itk_file(sample(f"{'MR_small' if name in small else name}.dcm"))
        np.testing.assert_array_equal(np.fromfile(f"{stem}.native.f32", "<f4").reshape(line["shape"])[0], values, err_msg=name)
        # One slice is as thick as it says, which ITK does not ask.
        np.testing.assert_allclose(np.array(line["affine"])[:, [0, 1, 3]], affine[:, [0, 1, 3]], atol=1e-6, err_msg=name)
        assert line["spacing"][2] == {"CT_small": 5}.get(name, 0.8)


def test_compressed_slices_of_itk(tmp_path):
    """JPEG 2000 and lossless JPEG as GDCM writes them, and a prediction's place: NIfTI in the series' own grid."""
    rng = np.random.default_rng(8)
    for compressor in ["JPEG2000", "JPEG"]:
        folder, uid = tmp_path / compressor, generate_uid()
        folder.mkdir()
        for k in range(5):
            writer = sitk.ImageFileWriter()
            writer.KeepOriginalImageUIDOn()
            image = sitk.GetImageFromArray(rng.integers(0, 4000, (1, 12, 10), dtype="u2"))
            image.SetSpacing(MM.tolist())
            for tag, value in {"0008|0060": "MR", "0020|000e": uid, "0020|000d": "1.2.3", "0010|0020": compressor, "0020|0037": "1\\0\\0\\0\\1\\0",
                               "0020|0032": f"5\\-7\\{30 - 3 * k}", "0008|0018": generate_uid(), "0008|0008": "ORIGINAL\\PRIMARY"}.items():
                image.SetMetaData(tag, value)
            writer.SetFileName(str(folder / f"{k}.dcm"))
            writer.UseCompressionOn()
            writer.SetCompressor(compressor)
            writer.Execute(image)
        syntax = pydicom.dcmread(folder / "0.dcm").file_meta.TransferSyntaxUID
        assert syntax == {"JPEG2000": "1.2.840.10008.1.2.4.90", "JPEG": "1.2.840.10008.1.2.4.70"}[compressor]
        store = tmp_path / f"{compressor} store"
        pretext3d("preprocess", "--data", folder, "--out", store, *LINEAR)
        agree(stored(store)[hashed(compressor, 16)][0], *of_itk(folder, uid))
