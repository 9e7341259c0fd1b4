"""Contrasts of one person on different grids, against SimpleITK's resampling."""
import numpy as np
import SimpleITK as sitk
from helpers import pretext3d, read_json, refused, tensors
from test_dicom import series

LO, HI = -1000, 3000
SPACING = (1.5, 2.0, 2.5)
# Everything that is stored is linear in the scan's values, and nothing is cut off.
LINEAR = ["--protocol", "modern", "--spacing", "1.5,2,2.5", "--window", f"{LO},{HI}", "--foreground", -1000000, "--dtype", "f32"]


def image(rng, size, spacing, origin, degrees=0.0):
    """Smooth values with noise on an oblique grid, axes from right to left and front to back as scanners have them."""
    scan = sitk.GetImageFromArray(rng.normal(500, 100, size[::-1]).astype(np.float32))
    scan.SetSpacing(spacing)
    scan.SetOrigin(origin)
    a, b = np.radians(degrees), np.radians(degrees / 2)
    turn = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    scan.SetDirection((turn @ np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])).ravel())
    return scan


def resampled(first, other):
    """RAS+ values of another image on the grid of the first, outside its lowest one."""
    lowest = float(sitk.GetArrayViewFromImage(other).min())
    out = sitk.Resample(sitk.Cast(other, sitk.sitkFloat32), first, sitk.Transform(), sitk.sitkLinear, lowest)
    return ras(out)


def ras(scan):
    return sitk.GetArrayFromImage(sitk.DICOMOrient(scan, "RAS")).transpose(2, 1, 0)


def stored(store, scan):
    entry = next(s for s in read_json(store / "index.json")["subjects"] if s["id"] == scan)
    return entry, tensors(store / entry["file"])[0]["image"].numpy() * (HI - LO) + LO


def test_contrasts_are_resampled_onto_the_first_ones_grid(tmp_path):
    rng = np.random.default_rng(0)
    data, store = tmp_path / "data", tmp_path / "store"
    data.mkdir()
    pairs = {}
    for person in range(3):
        t1 = image(rng, (16, 18, 14), SPACING, (-10, 5, -20))
        # Of the last person they lie on one grid.
        flair = image(rng, (14, 20, 12), (2.0, 1.6, 3.0), (-11, 6, -21), degrees=8) if person < 2 else image(rng, (16, 18, 14), SPACING, (-10, 5, -20))
        pairs[f"p{person}"] = t1, flair
        sitk.WriteImage(t1, data / f"p{person}_t1.nii.gz")
        sitk.WriteImage(flair, data / f"p{person}_flair.nii.gz")
    done = pretext3d("preprocess", "--data", data, "--out", store, *LINEAR)
    assert done.stderr.count("flair of 2 scans lay on other grids than t1 and were resampled onto it: p0, p1") == 1, done.stderr
    for person, (t1, flair) in pairs.items():
        entry, found = stored(store, person)
        assert entry.get("resampled") == (["flair"] if person != "p2" else None)
        np.testing.assert_allclose(found[0], ras(t1), atol=2e-3)
        expected = resampled(t1, flair)
        # ITK decides in single steps of rounding which voxels at the rim are outside.
        off = np.abs(found[1] - expected) > 0.02
        assert off.mean() < 2e-3, (person, off.mean())
    assert pretext3d("preprocess", "--data", data, "--out", store, *LINEAR).stderr.count("were resampled onto it: p0, p1") == 1

    # `predict` does the same with the files, and names the scans; the prediction lies on the first one's grid.
    run, out = tmp_path / "run", tmp_path / "out"
    for person in pairs:
        sitk.WriteImage(sitk.Cast(pairs[person][0] > 500, sitk.sitkUInt8), data / f"p{person[1]}_seg.nii.gz")
    pretext3d("preprocess", "--data", data, "--out", tmp_path / "labelled", "--labels", "0,1", *LINEAR)
    flags = ["--patch", 8, "--filters", 2, "--levels", 2, "--epochs", 1, "--steps", 1, "--device", "cpu"]
    pretext3d("finetune", "--data", tmp_path / "labelled", "--weights", "none", *flags, "--out", run)
    predict = ["predict", "--weights", run, "--device", "cpu", "--input"]
    done = pretext3d(*predict, data, "--output", out)
    assert done.stderr.count("flair: on another grid than t1, and resampled onto it") == 2
    found, grid = sitk.ReadImage(out / "p0.nii.gz"), pairs["p0"][0]
    assert found.GetSize() == grid.GetSize() and np.allclose(found.GetDirection(), grid.GetDirection(), atol=1e-6)
    pretext3d(*predict, f"{data / 'p0_t1.nii.gz'},{data / 'p0_flair.nii.gz'}", "--output", tmp_path / "one")
    assert (sitk.GetArrayFromImage(sitk.ReadImage(tmp_path / "one/p0_t1.nii.gz")) == sitk.GetArrayFromImage(found)).all()

    # What lies elsewhere is no other contrast of the same.
    sitk.WriteImage(image(rng, (14, 20, 12), (2.0, 1.6, 3.0), (100, 6, -21)), data / "p1_flair.nii.gz")
    says = ["p1: ", "p1_flair.nii.gz: covers 0 % of", "p1_t1.nii.gz", "--channels"]
    refused("preprocess", "--data", data, "--out", tmp_path / "bad", *LINEAR, "--no-labels", says=says)


def test_dicom_series_on_different_grids(tmp_path):
    """Two series of a study: the second covers less, with other voxels."""
    paths = {}
    for name, n, shape, slopes in [("T1", 8, (9, 10), (0.01, 100)), ("FLAIR", 6, (8, 7), (0.01, 300))]:
        # The same generator gives both the same corner.
        series(tmp_path / "data" / name, np.random.default_rng(3), "anna", description=name, n=n, shape=shape, slopes=slopes, study="1.2.3.4")
        reader = sitk.ImageSeriesReader()
        reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path / "data" / name)))
        paths[name] = reader.Execute()
    linear = [*LINEAR[:2], "--spacing", "1.5,2,3", *LINEAR[4:]]
    done = pretext3d("preprocess", "--data", tmp_path / "data", "--out", tmp_path / "store", "--series", "T1", "--series", "FLAIR", *linear)
    assert "flair of 1 scans lay on other grids than t1" in done.stderr
    [entry] = read_json(tmp_path / "store" / "index.json")["subjects"]
    _, found = stored(tmp_path / "store", entry["id"])
    np.testing.assert_allclose(found[0], ras(paths["T1"]), atol=0.01)
    np.testing.assert_allclose(found[1], resampled(paths["T1"], paths["FLAIR"]), atol=0.01)


def test_dicom_studies_that_lack_a_series(tmp_path):
    for patient, names in [("anna", ["T1", "FLAIR"]), ("berta", ["T1"])]:
        for name in names:
            series(tmp_path / "data" / patient / name, np.random.default_rng(3), patient, description=name, study=f"1.2.{len(patient)}")
    # A table names patients by their ids, which are in no message and not in the store.
    (tmp_path / "people.csv").write_text("PatientID,age\nanna,63\nberta,71\nclara,50\n")
    table = ["--column", "age", "--table", tmp_path / "people.csv"]
    done = pretext3d("preprocess", "--data", tmp_path / "data", "--series", "T1", *LINEAR, *table, "--out", tmp_path / "ages")
    text = (tmp_path / "ages" / "index.json").read_text()
    assert sorted(s["values"]["age"] for s in read_json(tmp_path / "ages/index.json")["subjects"]) == [63, 71]
    assert "1 of 3 rows have no scan" in done.stderr and not any(name in done.stderr + text for name in ["anna", "berta", "clara"])
    common = ["preprocess", "--data", tmp_path / "data", "--series", "T1", "--series", "FLAIR", *LINEAR, "--patient-ids", "--out"]
    refused(*common, tmp_path / "no", says=["no series `FLAIR` among"])
    for missing, expected in [("drop", [("anna", None)]), ("zero", [("anna", None), ("berta", ["flair"])])]:
        pretext3d(*common, tmp_path / missing, "--missing", missing)
        found = read_json(tmp_path / missing / "index.json")["subjects"]
        assert [(s["id"].split("/")[0], s.get("missing")) for s in found] == expected


def test_contrasts_that_some_lack(tmp_path):
    """Refused by name with counts; dropped; or zeros after normalisation, in a store and in `predict`."""
    rng, data = np.random.default_rng(1), tmp_path / "data"
    data.mkdir()
    lacking = {"p1": "flair", "p3": "t1"}
    for person in range(5):
        for name in ["t1", "t2", "flair"]:
            if lacking.get(f"p{person}") != name:
                sitk.WriteImage(image(rng, (12, 12, 12), (1, 1, 1), (0, 0, 0)), data / f"p{person}_{name}.nii.gz")
        label = np.zeros((12, 12, 12), np.uint8)
        label[3:8, 3:8, 3:8] = 1
        seg = sitk.GetImageFromArray(label)
        sitk.WriteImage(seg, data / f"p{person}_seg.nii.gz")
    common = ["preprocess", "--data", data, "--labels", "0,1", "--protocol", "modern", "--spacing", 1, "--dtype", "f32", "--out"]
    refused(*common, tmp_path / "no", says=["subject p1: no flair", "subject p3: no t1", "of 5 scans 2 lack a channel (flair in 1, t1 in 1)",
                                            "--missing drop", "--missing zero", "--channels-as-scans"])
    done = pretext3d(*common, tmp_path / "drop", "--missing", "drop")
    assert "subject p1: no flair" in done.stderr
    assert [s["id"] for s in read_json(tmp_path / "drop/index.json")["subjects"]] == ["p0", "p2", "p4"]
    # What is not asked for is not missed.
    pretext3d(*common, tmp_path / "t2", "--missing", "drop", "--channels", "t1,t2")
    assert [s["id"] for s in read_json(tmp_path / "t2/index.json")["subjects"]] == ["p0", "p1", "p2", "p4"]
    zero = [*common, tmp_path / "zero", "--missing", "zero"]
    done = pretext3d(*zero)
    assert "1 of 5 scans have no flair, which is 0 in them: p1" in done.stderr and "no t1, which is 0 in them: p3" in done.stderr
    entries = {s["id"]: s for s in read_json(tmp_path / "zero/index.json")["subjects"]}
    assert {name: entry.get("missing") for name, entry in entries.items()} == {f"p{k}": {1: ["flair"], 3: ["t1"]}.get(k) for k in range(5)}
    for name, entry in entries.items():
        voxels = tensors(tmp_path / "zero" / entry["file"])[0]["image"].numpy()
        empty = [not channel.any() for channel in voxels]
        assert empty == [lacking.get(name) == channel for channel in ["t1", "t2", "flair"]], name
    complete = tensors(tmp_path / "drop" / "p0.safetensors")[0]["image"]
    assert (complete == tensors(tmp_path / "zero" / "p0.safetensors")[0]["image"]).all()
    assert "5 kept" in pretext3d(*zero).stdout

    run = tmp_path / "run"
    flags = ["--patch", 8, "--filters", 2, "--levels", 2, "--epochs", 1, "--steps", 1, "--device", "cpu"]
    pretext3d("finetune", "--data", tmp_path / "zero", "--weights", "none", *flags, "--out", run)
    predict = ["predict", "--weights", run, "--device", "cpu", "--input"]
    pretext3d(*predict, tmp_path / "zero", "--output", tmp_path / "of-store")
    done = pretext3d(*predict, data, "--output", tmp_path / "of-files", "--missing", "zero")
    assert "p1: no flair, which is taken for 0 throughout" in done.stderr
    for name in entries:
        a, b = (sitk.GetArrayFromImage(sitk.ReadImage(tmp_path / of / f"{name}.nii.gz")) for of in ["of-store", "of-files"])
        assert a.shape == (12, 12, 12) and (a == b).mean() > 0.99
    refused(*predict, data, "--output", tmp_path / "bad", says=["subject p1: no flair"])
    refused(*common, tmp_path / "both", "--missing", "zero", "--channels-as-scans", code=2)

    # A manifest has empty cells.
    manifest = tmp_path / "list.csv"
    manifest.write_text("subject,t1,flair\na,data/p0_t1.nii.gz,data/p0_flair.nii.gz\nb,,data/p2_flair.nii.gz\n")
    flags = ["preprocess", "--data", manifest, "--size", 12]
    refused(*flags, "--out", tmp_path / "m", says=["row 3, column `t1`", "empty"])
    pretext3d(*flags, "--out", tmp_path / "m", "--missing", "zero")
    assert [s.get("missing") for s in read_json(tmp_path / "m/index.json")["subjects"]] == [None, ["t1"]]
