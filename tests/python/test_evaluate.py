"""`pretext3d evaluate` against MONAI, SciPy and scikit-learn, its matching of files, and bad input."""
import json
import math
import shutil

import nibabel
import numpy
import pytest
import torch
from helpers import pretext3d, read_json, refused, rows
from monai.metrics import compute_average_surface_distance, compute_dice, compute_hausdorff_distance, compute_surface_dice
from PIL import Image
from scipy.ndimage import binary_erosion, distance_transform_edt, gaussian_filter
from sklearn.metrics import jaccard_score

METRICS = ("dice", "jaccard", "hd95_mm", "asd_mm", "nsd")
# Exact in the 32-bit floats of a header.
SPACING = (0.75, 1.75, 3.125)
SHAPE = (34, 27, 19)


def affine(spacing=SPACING, flip=1):
    matrix = numpy.diag([flip * spacing[0], spacing[1], spacing[2], 1.0])
    matrix[:3, 3] = [-11.0, 7.5, 30.0]
    return matrix


def write(path, values, matrix=None, dtype=numpy.uint8):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(numpy.asarray(values, dtype), affine() if matrix is None else matrix), path)


def blobs(rng, shape=SHAPE, values=(0, 1, 2, 4)):
    """Smooth random regions that reach the border, each with one of the values."""
    noise = [gaussian_filter(rng.normal(size=shape), 2.0, mode="nearest") for _ in values]
    noise[0] += 0.02
    return numpy.asarray(values)[numpy.argmax(noise, axis=0)]


def disturbed(rng, label):
    """A prediction of the label: moved a little, with some voxels wrong."""
    wrong = rng.random(label.shape) < 0.02
    return numpy.where(wrong, rng.permutation(label.ravel()).reshape(label.shape), numpy.roll(label, 1, axis=rng.integers(2)))


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    """Labels and predictions, by case, that are also on disk; some masks empty, one a single voxel, one touching every border."""
    root = tmp_path_factory.mktemp("evaluate")
    rng = numpy.random.default_rng(3)
    made = {}
    for n in range(5):
        label = blobs(rng)
        made[f"case{n}"] = (label, disturbed(rng, label))
    label, prediction = made["case3"]
    label[label == 4] = 0
    prediction[prediction == 4] = 0
    prediction[prediction == 2] = 0
    point = numpy.zeros(SHAPE)
    point[0, 0, 0] = 1
    box = numpy.ones(SHAPE)
    box[10:20, 10:20, 5:15] = 2
    made["case4"] = (point, box)
    for name, (label, prediction) in made.items():
        write(root / "labels" / f"{name}_seg.nii.gz", label)
        write(root / "predictions" / f"{name}.nii.gz", prediction)
        write(root / "images" / f"{name}.nii.gz", gaussian_filter(label.astype(float), 1) * 100, dtype=numpy.float32)
    return root, made


def evaluate(root, *flags, **kwargs):
    return pretext3d("evaluate", "--predictions", root / "predictions", "--labels", root / "labels", *flags, **kwargs)


def number(cell):
    return None if cell == "" else float(cell)


def monai_distances(truth, prediction, spacing):
    one_hot = [torch.as_tensor(mask[None, None]) for mask in (prediction, truth)]
    options = {"include_background": True, "spacing": list(spacing)}
    hd95 = compute_hausdorff_distance(*one_hot, percentile=95, **options)
    return hd95.item(), compute_average_surface_distance(*one_hot, symmetric=True, **options).item()


TOLERANCE = 2.0


def monai_surface_dice(truth, prediction, spacing, tolerance=TOLERANCE):
    one_hot = [torch.as_tensor(mask[None, None]) for mask in (prediction, truth)]
    return compute_surface_dice(*one_hot, [tolerance], include_background=True, spacing=list(spacing)).item()


def scipy_distances(truth, prediction, spacing):
    edges = [mask & ~binary_erosion(mask) for mask in (truth, prediction)]
    directed = [distance_transform_edt(~b, sampling=spacing)[a] for a, b in (edges, edges[::-1])]
    return max(numpy.percentile(d, 95) for d in directed), numpy.concatenate(directed).mean()


def check(row, truth, prediction, spacing):
    """One row of scores.csv against three libraries; returns whether the masks have distances."""
    volumes = [mask.sum() * math.prod(spacing) / 1000 for mask in (truth, prediction)]
    assert [number(row["truth_ml"]), number(row["prediction_ml"])] == pytest.approx(volumes, abs=1e-12)
    names = ("dice", "jaccard", "nsd", "hd95_mm", "asd_mm")
    dice, jaccard, nsd, *distances = (number(row[name]) for name in names)
    surface_dice = monai_surface_dice(truth, prediction, spacing)
    if not truth.any() and not prediction.any():
        assert [dice, jaccard, nsd, *distances] == [None] * 5 and math.isnan(surface_dice)
        return False
    assert nsd == pytest.approx(surface_dice, abs=1e-6)
    masks = [torch.as_tensor(mask[None, None]) for mask in (prediction, truth)]
    expected = compute_dice(*masks, include_background=True, ignore_empty=False).item()
    assert dice == pytest.approx(expected, abs=1e-6)
    assert jaccard == pytest.approx(jaccard_score(truth.ravel(), prediction.ravel()), abs=1e-12)
    if not truth.any() or not prediction.any():
        assert (dice, nsd, distances) == (0, 0, [None, None])
        return False
    assert distances == pytest.approx(scipy_distances(truth, prediction, spacing), rel=1e-9)
    assert distances == pytest.approx(monai_distances(truth, prediction, spacing), rel=1e-5)
    return True


@pytest.mark.parametrize("regions", [False, True])
def test_scores_agree_with_monai_scipy_and_scikit_learn(cases, tmp_path, regions):
    root, made = cases
    flags = ["--regions", "brats"] if regions else []
    done = evaluate(root, "--out", tmp_path, *flags)
    groups = {"WT": (1, 2, 4), "TC": (1, 4), "ET": (4,)} if regions else {"1": (1,), "2": (2,), "4": (4,)}
    found = rows(tmp_path / "scores.csv")
    assert [(row["case"], row["group"]) for row in found] == [(c, g) for c in sorted(made) for g in groups]
    measured = 0
    for row in found:
        masks = [numpy.isin(values, groups[row["group"]]) for values in made[row["case"]]]
        measured += check(row, *masks, SPACING)
    assert measured == (13 if regions else 11)

    summary = read_json(tmp_path / "scores.json")["summary"]
    assert [g["group"] for g in summary["groups"]] == list(groups)
    means = []
    for case in made:
        defined = [number(row["dice"]) for row in found if row["case"] == case and row["dice"]]
        means.append(numpy.mean(defined))
    assert summary["mean_dice"] == pytest.approx(numpy.mean(means))
    assert f"mean dice {summary['mean_dice']:.4f} over 5 of 5 cases" in done.stdout
    for group in summary["groups"]:
        for metric in METRICS:
            cells = [number(row[metric]) for row in found if row["group"] == group["group"]]
            values = [v for v in cells if v is not None]
            expected = {
                "mean": numpy.mean(values),
                "sd": numpy.std(values, ddof=1),
                "median": numpy.median(values),
                "cases": len(values),
                "undefined": len(cells) - len(values),
            }
            assert group[metric] == pytest.approx(expected), (group["group"], metric)
            # No mean without the number of cases that it rests on.
            digits = 2 if metric.endswith("mm") else 4
            assert f"{expected['mean']:.{digits}f} ± {expected['sd']:.{digits}f} ({len(values)})" in done.stdout


def test_empty_classes_by_the_rule_of_brats(cases, tmp_path):
    root, _ = cases
    evaluate(root, "--out", tmp_path, "--regions", "brats", "--empty", "brats")
    scores = {(row["case"], row["group"]): row for row in rows(tmp_path / "scores.csv")}
    both = scores["case3", "ET"]
    assert [both[k] for k in METRICS] == ["1", "1", "0", "", "1"]
    evaluate(root, "--out", tmp_path, "--empty", "brats")
    missed = {(row["case"], row["group"]): row for row in rows(tmp_path / "scores.csv")}["case3", "2"]
    assert [missed[k] for k in METRICS] == ["0", "0", "374", "", "0"]
    assert read_json(tmp_path / "scores.json")["settings"]["empty"] == "brats"


def test_images_are_scored_in_two_dimensions(tmp_path):
    rng = numpy.random.default_rng(8)
    label = blobs(rng, (50, 40), (0, 1))
    prediction = disturbed(rng, label)
    write(tmp_path / "labels" / "a.nii.gz", label[..., None])
    write(tmp_path / "predictions" / "a.nii.gz", prediction[..., None])
    evaluate(tmp_path, "--out", tmp_path)
    (row,) = rows(tmp_path / "scores.csv")
    masks = label == 1, prediction == 1
    expected = monai_distances(*masks, SPACING[:2])
    assert [number(row["hd95_mm"]), number(row["asd_mm"])] == pytest.approx(expected, rel=1e-5)
    assert number(row["nsd"]) == pytest.approx(monai_surface_dice(*masks, SPACING[:2]), abs=1e-6)
    for tolerance in (0.4, 0.75, 5):
        done = evaluate(tmp_path, "--out", tmp_path, "--nsd-tolerance", tolerance)
        (row,) = rows(tmp_path / "scores.csv")
        assert number(row["nsd"]) == pytest.approx(monai_surface_dice(*masks, SPACING[:2], tolerance), abs=1e-6)
        assert f"within {tolerance} mm" in done.stdout
        assert read_json(tmp_path / "scores.json")["settings"]["nsd_tolerance_mm"] == tolerance
    command = ["evaluate", "--predictions", tmp_path / "predictions", "--labels", tmp_path / "labels"]
    refused(*command, "--nsd-tolerance", 0, says=["--nsd-tolerance", "above 0", "found 0"])


def test_the_same_voxels_in_another_orientation(cases, tmp_path):
    """A prediction stored with its first axis reversed lies on the same grid."""
    root, made = cases
    shutil.copytree(root / "predictions", tmp_path / "predictions")
    shutil.copytree(root / "labels", tmp_path / "labels")
    matrix = affine(flip=-1)
    matrix[0, 3] = affine()[0, 3] + SPACING[0] * (SHAPE[0] - 1)
    write(tmp_path / "predictions" / "case1.nii.gz", made["case1"][1][::-1], matrix)
    evaluate(tmp_path, "--out", tmp_path / "b")
    evaluate(root, "--out", tmp_path / "a")
    assert (tmp_path / "a/scores.csv").read_text() == (tmp_path / "b/scores.csv").read_text()


def test_threads_do_not_change_the_scores(cases, tmp_path):
    root, _ = cases
    texts = []
    for threads in (1, 3):
        evaluate(root, "--out", tmp_path, "--threads", threads)
        texts.append((tmp_path / "scores.csv").read_bytes())
    assert texts[0] == texts[1]


def test_figure(cases, tmp_path):
    root, _ = cases
    evaluate(root, "--out", tmp_path, "--images", root / "images")
    picture = numpy.asarray(Image.open(tmp_path / "cases.png").convert("RGB")).reshape(-1, 3)
    colours = {tuple(c) for c in numpy.unique(picture, axis=0)}
    # Classes 1, 2 and 4 in turn get the first colours of the palette.
    assert {(230, 159, 0), (86, 180, 233), (0, 158, 115)} <= colours


def test_a_dataset_gives_labels_names_and_scans(brains, tmp_path):
    """Predictions beside a folder in the BraTS layout; by subject, in sub-folders or not."""
    subjects = sorted(p.name for p in brains.iterdir() if p.is_dir())
    for n, subject in enumerate(subjects):
        folder = tmp_path / "predictions" / (subject if n % 2 else "")
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(next((brains / subject).glob("*seg.nii.gz")), folder / f"{subject}.nii.gz")
    flags = ["--predictions", tmp_path / "predictions", "--labels", brains, "--regions", "brats"]
    pretext3d("evaluate", *flags, "--out", tmp_path, "--images", brains, "--channel", "flair")
    found = rows(tmp_path / "scores.csv")
    assert sorted({row["case"] for row in found}) == subjects
    assert all((row["dice"], row["hd95_mm"], row["asd_mm"]) == ("1", "0", "0") for row in found if float(row["truth_ml"]))
    assert (tmp_path / "cases.png").is_file()
    refused("evaluate", *flags, "--images", brains, "--channel", "pd", "--out", tmp_path, says=["no channel `pd`", "t1ce"])
    (tmp_path / "predictions" / f"{subjects[0]}.nii.gz").unlink()
    refused("evaluate", *flags, says=["1 labels without a prediction", subjects[0], "--allow-missing"])
    done = pretext3d("evaluate", *flags, "--allow-missing", "--out", tmp_path)
    assert "1 labels without a prediction left out" in done.stdout
    assert read_json(tmp_path / "scores.json")["settings"]["without_prediction"] == [subjects[0]]


def test_label_names_of_a_dataset(tmp_path):
    """Groups go by the dataset's names; regions too, in the Decathlon's copy of BraTS, whose values mean something else."""
    values = numpy.arange(60).reshape(3, 4, 5) % 4
    for name in ("imagesTr/a", "labelsTr/a", "predictions/a"):
        write(tmp_path / f"{name}.nii.gz", values)

    def flags(*names):
        description = {"modality": {"0": "MRI"}, "labels": {str(i): name for i, name in enumerate(names)}, "test": []}
        description["training"] = [{"image": "imagesTr/a.nii.gz", "label": "labelsTr/a.nii.gz"}]
        (tmp_path / "dataset.json").write_text(json.dumps(description))
        return ["--predictions", tmp_path / "predictions", "--labels", tmp_path, "--out", tmp_path / "out"]

    described = flags("background", "edema", "non-enhancing", "enhancing")
    pretext3d("evaluate", *described)
    assert [row["group"] for row in rows(tmp_path / "out/scores.csv")] == ["edema", "non-enhancing", "enhancing"]
    for classes in ([], ["--classes", "1,2,3"]):
        pretext3d("evaluate", *described, "--regions", "brats", *classes)
        groups = read_json(tmp_path / "out/scores.json")["settings"]["groups"]
        assert groups == {"WT": [1, 2, 3], "TC": [2, 3], "ET": [3]}
    # Without the description the values are taken for those of the challenges, and that is said.
    assumed = "1 is taken for necrosis, 2 for oedema"
    assert assumed not in pretext3d("evaluate", *described, "--regions", "brats").stderr
    bare = [tmp_path / "labelsTr" if flag == tmp_path else flag for flag in described]
    assert assumed in pretext3d("evaluate", *bare, "--regions", "brats").stderr
    other = flags("background", "edema", "tumour", "enhancing")
    refused("evaluate", *other, "--regions", "brats", says=["\"tumour\" is of none of these", "--labels of preprocess"])
    twice = flags("background", "lesion", "lesion", "other")
    refused("evaluate", *twice, says=["[2]", "both named \"lesion\""])
    pretext3d("evaluate", *twice, "--classes", "3,1,2")
    assert [row["group"] for row in rows(tmp_path / "out/scores.csv")] == ["3", "1", "2"]
    refused("evaluate", *flags("background", "lesion", "other"), says=["label value 3", "expected one of 0, 1, 2"])


def small(root, label=None, prediction=None, matrix=None, dtype=numpy.float32):
    values = numpy.arange(60).reshape(3, 4, 5) % 3
    write(root / "labels" / "p" / "p_seg.nii.gz", values if label is None else label, dtype=dtype)
    write(root / "predictions" / "p.nii.gz", values if prediction is None else prediction, matrix, dtype=dtype)
    return values


def test_bad_input(tmp_path):
    def says(*texts, flags=()):
        command = ["evaluate", "--predictions", tmp_path / "predictions", "--labels", tmp_path / "labels", *flags]
        refused(*command, says=texts)
        assert not (tmp_path / "predictions" / "scores.csv").exists()

    says("predictions: expected a folder")
    values = small(tmp_path)
    evaluate(tmp_path, "--out", tmp_path / "good")
    small(tmp_path, prediction=values[:2])
    says("1 of 1 cases", "p.nii.gz: shape [2, 4, 5]", "expected [3, 4, 5]")
    moved = affine()
    moved[1, 3] += 0.05
    small(tmp_path, matrix=moved)
    says("p.nii.gz: its corners are up to 0.050 mm", "expected the same affine")
    half = values.astype(float)
    half[1, 2, 3] = 0.5
    small(tmp_path, prediction=half)
    says("p.nii.gz: value 0.5", "whole numbers")
    half[1, 2, 3] = numpy.nan
    small(tmp_path, label=half)
    says("p_seg.nii.gz: value NaN", "whole numbers")
    small(tmp_path, prediction=numpy.repeat(values[..., None], 2, axis=3))
    says("p.nii.gz: 2 channels")
    small(tmp_path)
    says("label value 2", "expected one of 0, 1, 4", flags=["--classes", "1,4"])
    says("--classes: 0 is the background", flags=["--classes", "0,1"])
    says("--classes: a value is given twice", flags=["--classes", "1,1"])
    says("the values 1, 2 and either 3 or 4", flags=["--classes", "1,2", "--regions", "brats"])
    small(tmp_path, prediction=values + 3 * (values == 2))
    says("p.nii.gz: label value 5", flags=["--regions", "brats"])
    small(tmp_path, label=values + (values == 2), prediction=values + 2 * (values == 2))
    says("label value 3 in case p and 4 in case p", flags=["--regions", "brats"])
    small(tmp_path, label=values * 0, prediction=values * 0)
    says("background alone")

    small(tmp_path)
    write(tmp_path / "predictions" / "q.nii.gz", values)
    says("1 predictions without a label", "q.nii.gz")
    write(tmp_path / "predictions" / "p_seg.nii.gz", values)
    says("duplicate case `p`", "p.nii.gz", "p_seg.nii.gz")
    shutil.rmtree(tmp_path / "predictions")
    (tmp_path / "predictions").mkdir()
    says("no segmentations found")
    shutil.rmtree(tmp_path / "labels")
    write(tmp_path / "predictions" / "p.nii.gz", values)
    says("labels: cannot be opened")
    (tmp_path / "labels").mkdir()
    says("labels: no segmentations found")
    (tmp_path / "labels" / "p.nii.gz").write_bytes(b"not a scan")
    says("p.nii.gz: not a NIfTI file")
