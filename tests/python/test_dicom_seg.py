"""DICOM Segmentation objects that `predict --seg` writes, read by highdicom, pydicom and SimpleITK, against the NIfTI beside them."""

import json

import highdicom
import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from helpers import pretext3d, refused
from pydicom.uid import ImplicitVRLittleEndian
from test_dicom import MM, enhanced, hashed, oblique, series

# What a segmentation must have of patient and study, with values that the files of a series get.
OF_STUDY = {"PatientName": "Müller^Jörg", "PatientID": "p1", "PatientBirthDate": "19700102", "PatientSex": "O", "StudyDate": "20200304",
            "StudyTime": "101112", "StudyID": "7", "AccessionNumber": "A1", "ReferringPhysicianName": "Weiß^Ä"}
NAMES = ["background", "edema", "core\\necrosis", "enhancing"]
REGIONS = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3}


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """Runs that learnt thresholds of one channel: of classes, and of regions that lie in each other."""
    folder = tmp_path_factory.mktemp("networks")
    rng = np.random.default_rng(1)
    for kind in ["classes", "regions"]:
        data = folder / kind
        for sub in ["imagesTr", "labelsTr"]:
            (data / sub).mkdir(parents=True)
        about = {"channel_names": {"0": "MR"}, "numTraining": 3, "file_ending": ".nii.gz"}
        about["labels"] = {name: n for n, name in enumerate(NAMES)} if kind == "classes" else REGIONS
        if kind == "regions":
            about["regions_class_order"] = [1, 2, 3]
        (data / "dataset.json").write_text(json.dumps(about))
        for n in range(3):
            image = rng.normal(size=(16, 16, 16)).astype("f4")
            label = np.digitize(image, [-0.8, 0, 0.8]).astype("u1")
            nib.save(nib.Nifti1Image(image, np.diag([*MM, 1])), data / "imagesTr" / f"c{n}_0000.nii.gz")
            nib.save(nib.Nifti1Image(label, np.diag([*MM, 1])), data / "labelsTr" / f"c{n}.nii.gz")
        pretext3d("preprocess", "--data", data, "--out", folder / f"{kind}-store", "--protocol", "modern", "--spacing", "1.5,2,3")
        small = ["--filters", 4, "--levels", 2, "--patch", 8, "--steps", 40, "--epochs", 2, "--lr", 0.02, "--device", "cpu", "--threads", 1]
        pretext3d("finetune", "--data", folder / f"{kind}-store", "--weights", "none", *small, "--out", folder / f"{kind}-run")
    return folder


def masks_of(path, members):
    """Masks `[k, row, column, segment]` of a NIfTI prediction, and its affine in LPS."""
    image = nib.load(path)
    values = np.asarray(image.dataobj).T
    return np.stack([np.isin(values, values_of) for values_of in members.values()], -1), np.diag([-1, -1, 1, 1]) @ image.affine


def test_masks(tmp_path, networks):
    """In every reader the masks are those of the NIfTI, slice by slice of the source, and nothing but what is needed is copied."""
    rng, data = np.random.default_rng(2), tmp_path / "data"
    def complete(ds, k):
        ds.SpecificCharacterSet, ds.FrameOfReferenceUID, ds.InstitutionName, ds.PatientAge = "ISO_IR 100", "1.2.3.4", "Hospital", "050Y"
        ds.LossyImageCompression, ds.LossyImageCompressionRatio, ds.LossyImageCompressionMethod = "01", "7.5", "ISO_10918_1"
        for name, value in OF_STUDY.items():
            setattr(ds, name, value)
    series(data / "a", rng, "p1", n=6, shape=(13, 9), orientation=oblique(17), change=complete)
    series(data / "a", rng, "p2", syntax=ImplicitVRLittleEndian)
    enhanced(data / "e", rng, "p3")
    sources = [pydicom.dcmread(path) for path in (*(data / "a").iterdir(), data / "e" / "enhanced")]
    for kind, members in [("classes", {"edema": [1], "core_necrosis": [2], "enhancing": [3]}), ("regions", {"whole": [1, 2, 3], "core": [2, 3], "enhancing": [3]})]:
        out = tmp_path / kind
        args = ["predict", "--weights", networks / f"{kind}-run", "--device", "cpu", "--seg", "--output", out, "--input"]
        done = pretext3d(*args, data)
        assert "Müller" not in done.stdout + done.stderr and len(list(out.rglob("*.*"))) == 6
        refused(*args, data, says=["already there, with 5 others"])
        # One file of frames is a series too.
        pretext3d(*args, data / "e" / "enhanced")
        for patient in ["p1", "p2", "p3"]:
            [path] = (out / hashed(patient, 16)).glob("*.seg.dcm")
            masks, affine = masks_of(str(path).replace(".seg.dcm", ".nii.gz"), members)
            assert masks.any((0, 1, 2)).all()
            seg = highdicom.seg.segread(path)
            assert [segment.SegmentLabel for segment in seg.SegmentSequence] == list(members)
            assert seg.SegmentsOverlap == ("YES" if kind == "regions" else "NO")
            # Frames only where there are voxels.
            frames = np.argwhere(masks.any((1, 2)).T)
            np.testing.assert_array_equal([frame.FrameContentSequence[0].DimensionIndexValues for frame in seg.PerFrameFunctionalGroupsSequence], frames + 1)
            stacked = np.array([masks[k, ..., segment] for segment, k in frames])
            np.testing.assert_array_equal(pydicom.dcmread(path).pixel_array, stacked)
            # ITK unpacks whole bytes only; of scans of usual sizes these are all.
            whole = stacked.size // 8 * 8
            of_itk = sitk.GetArrayFromImage(sitk.ReadImage(path)).ravel() > 0
            np.testing.assert_array_equal(of_itk[:whole], stacked.ravel()[:whole])
            volume = seg.get_volume(rtol=1e-3)
            planes = np.flatnonzero(masks.any((1, 2, 3)))
            assert planes[-1] - planes[0] + 1 == volume.array.shape[0]
            # Its axes are slice, row and column; it may count slices the other way.
            place = lambda k, row, column: affine @ [column, row, k, 1]
            at = lambda k, row, column: volume.affine @ [k, row, column, 1]
            k = [planes[0], planes[-1]]
            k = k if np.allclose(at(0, 0, 0), place(k[0], 0, 0), atol=0.1) else k[::-1]
            for there, here in zip([0, volume.array.shape[0] - 1], k):
                np.testing.assert_allclose(at(there, 3, 4), place(here, 3, 4), atol=2e-3)
            np.testing.assert_array_equal(volume.array, masks[k[0] : k[1] + 1] if k[0] <= k[1] else masks[k[1] : k[0] + 1][::-1])
            of = [ds for ds in sources if ds.PatientID == patient]
            if patient == "p3":
                # In the file's own order, which is not that of the places.
                positions = [frame.PlanePositionSequence[0].ImagePositionPatient[2] for frame in of[0].PerFrameFunctionalGroupsSequence]
                found = seg.get_pixels_by_source_frame(of[0].SOPInstanceUID, range(1, 7), assert_missing_frames_are_empty=True)[np.argsort(positions)]
                alone = highdicom.seg.segread(out / "enhanced.seg.dcm")
                np.testing.assert_array_equal(alone.pixel_array, seg.pixel_array)
            else:
                normal = affine[:3, 2]
                uids = [ds.SOPInstanceUID for ds in sorted(of, key=lambda ds: np.dot(ds.ImagePositionPatient, normal))]
                found = seg.get_pixels_by_source_instance(uids, assert_missing_frames_are_empty=True)
                [referenced] = seg.ReferencedSeriesSequence
                assert sorted(item.ReferencedSOPInstanceUID for item in referenced.ReferencedInstanceSequence) == sorted(uids)
                assert {item.ReferencedSOPClassUID for item in referenced.ReferencedInstanceSequence} == {of[0].SOPClassUID}
            np.testing.assert_array_equal(found, masks)
            assert (seg.StudyInstanceUID, seg.ReferencedSeriesSequence[0].SeriesInstanceUID) == (of[0].StudyInstanceUID, of[0].SeriesInstanceUID)
            assert seg.SeriesInstanceUID != of[0].SeriesInstanceUID and seg.FrameOfReferenceUID
            assert all(str(seg[name].value or "") == str(of[0].get(name, "")) for name in OF_STUDY)
            assert not any(name in seg for name in ["InstitutionName", "PatientAge", "ProtocolName"])
            if patient == "p1":
                assert str(seg.PatientName) == OF_STUDY["PatientName"] and seg.FrameOfReferenceUID == "1.2.3.4"
                assert (seg.LossyImageCompression, seg.LossyImageCompressionRatio) == ("01", 7.5)


def test_what_has_no_series_is_refused(tmp_path, networks):
    args = ["predict", "--weights", networks / "classes-run", "--device", "cpu", "--output", tmp_path / "out", "--seg", "--input"]
    refused(*args, networks / "classes" / "imagesTr" / "c0_0000.nii.gz", says=["--seg", "c0_0000.nii.gz", "no DICOM"])
    refused(*args, networks / "classes-store", says=["--seg", "a store", "give their folder"])
    nameless = tmp_path / "nameless"
    series(nameless, np.random.default_rng(3), "p1", change=lambda ds, k: delattr(ds, "SOPInstanceUID") if k == 2 else None)
    refused(*args, nameless, says=["bad: ", "1 files without SOPInstanceUID"])
    assert not list((tmp_path / "out").rglob("*.*"))
