"""Features that `embed` writes, against PyTorch on the exported encoder, and their scores, against scikit-learn."""
import json
import shutil

import numpy as np
import pytest
import torch
from conftest import SMALL
from helpers import pretext3d, read_json, refused, rows, tensors
from sklearn.linear_model import RidgeClassifierCV, RidgeCV
from sklearn.metrics import accuracy_score, cohen_kappa_score, mean_absolute_error, r2_score
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

EMBED = ["--device", "cpu", "--precision", "fp32"]


@pytest.fixture(scope="module")
def fundus(tmp_path_factory):
    """40 graded photographs, their store, and a 2D encoder."""
    folder = tmp_path_factory.mktemp("fundus")
    pretext3d("phantom", "--kind", "fundus", "--subjects", 40, "--size", 48, "--out", folder / "aptos")
    pretext3d("preprocess", "--data", folder / "aptos", "--out", folder / "store", "--size", 32)
    args = ["--task", "rot", "--epochs", 1, "--steps", 2, *SMALL, "--out", folder / "run", "--weights", folder / "rot"]
    pretext3d("pretrain", "--data", folder / "store", *args)
    return folder


def features(table):
    names = [name for name in table[0] if name.startswith("level")]
    return np.array([[float(row[name]) for name in names] for row in table], dtype=np.float32)


def expected(module, image):
    with torch.no_grad():
        return torch.cat([level.double().flatten(2).mean(2)[0] for level in module(image[None])]).numpy()


def test_features_are_averages_of_the_exported_pyramid(trained, store, tmp_path):
    # A run has the statistics of BatchNorm that its export has, whatever names it.
    outputs = set()
    for form in (trained.run, trained.run / "best.safetensors", *(trained.weights.with_suffix(s) for s in (".safetensors", ".pt"))):
        pretext3d("embed", "--weights", form, "--input", store, "--out", tmp_path / "f", *EMBED, "--overwrite")
        outputs.add(((tmp_path / "f.csv").read_bytes(), read_json(tmp_path / "f.json")["fingerprint"]))
    assert len(outputs) == 1
    table, (found, metadata) = rows(tmp_path / "f.csv"), tensors(tmp_path / "f.safetensors")
    subjects = read_json(store / "index.json")["subjects"]
    assert [row["id"] for row in table] == json.loads(metadata["ids"]) == [s["id"] for s in subjects]
    # No scan has a class: features alone.
    assert list(table[0])[:2] == ["id", "level0.channel0"] and read_json(tmp_path / "f.json")["scores"] == {}
    assert list(table[0])[-1] == "level2.channel15" and [found[f"level{i}"].shape[1] for i in range(3)] == [4, 8, 16]
    np.testing.assert_array_equal(features(table), torch.cat([found[f"level{i}"] for i in range(3)], 1).numpy())
    module = torch.jit.load(trained.weights.with_suffix(".pt")).eval()
    for row, subject in zip(features(table), subjects):
        image = tensors(store / subject["file"])[0]["image"].float()
        np.testing.assert_allclose(row, expected(module, image), rtol=1e-4, atol=1e-5)

    # Larger scans than the window are the mean of their windows.
    cut = ["--out", tmp_path / "cut", "--window", 24]
    pretext3d("embed", "--weights", trained.weights.with_suffix(".pt"), "--input", store, *cut, *EMBED)
    for row, subject in zip(features(rows(tmp_path / "cut.csv")), subjects):
        image = tensors(store / subject["file"])[0]["image"].float()
        parts = [image[:, x : x + 24, y : y + 24, z : z + 24] for x in (0, 8) for y in (0, 8) for z in (0, 8)]
        np.testing.assert_allclose(row, np.mean([expected(module, part) for part in parts], 0), rtol=1e-4, atol=1e-5)


def test_a_run_needs_its_scans_or_keeps_its_statistics(trained, store, tmp_path):
    def embed(name, weights, *flags):
        pretext3d("embed", "--weights", weights, "--input", store, "--out", tmp_path / name, *EMBED, *flags)
        return (tmp_path / f"{name}.csv").read_bytes()

    moved = tmp_path / "run"
    shutil.copytree(trained.run, moved)
    config = read_json(moved / "config.json")
    config["settings"]["data"] = str(tmp_path / "gone")
    (moved / "config.json").write_text(json.dumps(config))
    new = ["--input", store, "--out", tmp_path / "new", *EMBED]
    says = ["BatchNorm", tmp_path / "gone", "--data", "--keep-statistics"]
    refused("embed", "--weights", moved, *new, says=says)
    exported = embed("exported", trained.weights.with_suffix(".pt"))
    assert embed("told", moved, "--data", store) == exported
    kept = embed("kept", moved, "--keep-statistics")
    pretext3d("export", "--run", trained.run, "--out", tmp_path / "as-trained", "--keep-statistics")
    assert kept == embed("of-export", tmp_path / "as-trained.pt") != exported
    # An export has its own.
    for flags in (["--keep-statistics"], ["--data", store]):
        refused("embed", "--weights", trained.weights.with_suffix(".pt"), *new, *flags, says=["rot.pt is weights without a run"])


def test_files_are_preprocessed_as_in_training(brains, trained, store, tmp_path):
    weights = trained.weights.with_suffix(".pt")
    for name, source in (("store", store), ("files", brains)):
        pretext3d("embed", "--weights", weights, "--input", source, "--out", tmp_path / name, *EMBED)
    assert (tmp_path / "store.csv").read_bytes() == (tmp_path / "files.csv").read_bytes()
    # A scan that cannot be read is named, and the others are written.
    copy = tmp_path / "copy"
    shutil.copytree(brains, copy)
    (copy / "brain_0002/brain_0002_t1.nii.gz").write_bytes(b"no scan")
    text = refused("embed", "--weights", weights, "--input", copy, "--out", tmp_path / "rest", *EMBED, says=["brain_0002"])
    assert "5 embeddings" in text
    assert [row["id"] for row in rows(tmp_path / "rest.csv")] == [f"brain_000{i}" for i in (0, 1, 3, 4, 5)]


def cross_validated(model, x, y, folds):
    """Each of `y` as a pipeline with this model predicts it that was fitted on the other folds."""
    predicted = np.zeros_like(y)
    for fold in range(10):
        tested = folds == fold
        fitted = make_pipeline(StandardScaler(), model).fit(x[~tested], y[~tested])
        predicted[tested] = fitted.predict(x[tested])
    return predicted


def test_scores_equal_those_of_scikit_learn(fundus, tmp_path):
    out = tmp_path / "f"
    printed = pretext3d("embed", "--weights", fundus / "rot.pt", "--input", fundus / "store", "--out", out, *EMBED).stdout
    table, scores = rows(f"{out}.csv"), read_json(f"{out}.json")["scores"]
    truth = np.array([int(row["class"]) for row in table])
    classes = {s["id"]: s["class"] for s in read_json(fundus / "store/index.json")["subjects"]}
    assert [classes[row["id"]] for row in table] == truth.tolist()
    folds = np.array([int(row["fold"]) for row in table])
    assert sorted(set(folds)) == list(range(10)) and max(np.bincount(folds)) - min(np.bincount(folds)) <= 1

    everything = features(table).astype(float)
    deepest = everything[:, [name.startswith("level2") for name in table[0] if name.startswith("level")]]
    models = {
        "linear": RidgeClassifierCV(alphas=[10.0**e for e in range(-2, 7)]),
        "nearest_1": KNeighborsClassifier(1, metric="cosine"),
        "nearest_5": KNeighborsClassifier(5, metric="cosine"),
    }
    for name, x in (("deepest", deepest), ("all", everything)):
        for readout, model in models.items():
            predicted = cross_validated(model, x, truth, folds)
            kappa = cohen_kappa_score(truth, predicted, weights="quadratic")
            wanted = {"quadratic_weighted_kappa": kappa, "accuracy": accuracy_score(truth, predicted)}
            assert scores[name][readout] == pytest.approx(wanted, abs=1e-9), (name, readout)
            assert f"{wanted['accuracy']:.3f}" in printed
    majority = [np.bincount(truth[folds != fold]).argmax() for fold in folds]
    assert scores["majority"]["accuracy"] == pytest.approx(np.mean(truth == majority))


@pytest.fixture(scope="module")
def measured(fundus):
    """The photographs without grades: a quantity that their features tell in part, and others; three have no values."""
    pretext3d("embed", "--weights", fundus / "rot.pt", "--input", fundus / "store", "--out", fundus / "known", *EMBED)
    table, folder = rows(fundus / "known.csv"), fundus / "measured"
    shutil.copytree(fundus / "aptos", folder, ignore=shutil.ignore_patterns("*.csv"))
    x, noise = StandardScaler().fit_transform(features(table))[:, -3:].sum(1), np.random.default_rng(5).normal(size=len(table))
    lines = ["image,thickness,eye,site"]
    for i, row in enumerate(table):
        values = "n/a,,1" if i in (2, 11, 30) else f"{250 + 20 * x[i] + 8 * noise[i]:.3f},{'right' if i % 3 else 'left'},1"
        lines.append(f"{row['id']},{values}")
    (folder / "values.csv").write_text("\n".join(lines) + "\n")
    pretext3d("preprocess", "--data", folder, "--out", fundus / "columns", "--size", 32, "--column", "thickness,eye,site")
    return folder


def test_a_quantity_is_scored_as_scikit_learn_does(fundus, measured, tmp_path):
    embed = ["embed", "--weights", fundus / "rot.pt", *EMBED, "--column"]
    for name, source in (("store", fundus / "columns"), ("files", measured)):
        done = pretext3d(*embed, "thickness", "--input", source, "--out", tmp_path / name)
        assert "column thickness: a quantity from" in done.stderr
    assert (tmp_path / "store.csv").read_bytes() == (tmp_path / "files.csv").read_bytes()
    table, description = rows(tmp_path / "store.csv"), read_json(tmp_path / "store.json")
    scores = description["scores"]
    assert (description["column"], description["unit"], description["classes"]) == ("thickness", None, [])
    truth = {s["id"]: s.get("values", {}).get("thickness") for s in read_json(fundus / "columns/index.json")["subjects"]}
    assert list(table[0])[:4] == ["id", "value", "fold", "level0.channel0"]
    assert [float(row["value"]) if row["value"] else None for row in table] == [truth[row["id"]] for row in table]
    kept, _ = tensors(tmp_path / "store.safetensors")
    assert kept["value"].dtype == torch.float64 and "class" not in kept
    np.testing.assert_array_equal(kept["value"].numpy(), [np.nan if v is None else v for v in (truth[r["id"]] for r in table)])

    known = [row for row in table if row["value"]]
    y, folds = np.array([float(row["value"]) for row in known]), np.array([int(row["fold"]) for row in known])
    assert len(known) == 37 and all(row["fold"] == "" for row in table if not row["value"])
    # Each fold has one of almost each fifth.
    fifth = np.argsort(np.argsort(y)) * 5 // len(y)
    assert sorted(set(folds)) == list(range(10)) and all(len(set(fifth[folds == fold])) >= 3 for fold in range(10))

    everything = features(known).astype(float)
    deepest = everything[:, [name.startswith("level2") for name in known[0] if name.startswith("level")]]
    models = {
        "linear": RidgeCV(alphas=[10.0**e for e in range(-2, 7)]),
        "nearest_1": KNeighborsRegressor(1, metric="cosine"),
        "nearest_5": KNeighborsRegressor(5, metric="cosine"),
    }

    def wanted(predicted):
        return {"mean_absolute_error": mean_absolute_error(y, predicted), "r_squared": r2_score(y, predicted)}

    for name, x in (("deepest", deepest), ("all", everything)):
        for readout, model in models.items():
            predicted = cross_validated(model, x, y, folds)
            assert scores[name][readout] == pytest.approx(wanted(predicted), abs=1e-7), (name, readout)
            assert f"R squared {scores[name][readout]['r_squared']:.3f}, 37 scans" in done.stdout
    assert scores["mean"] == pytest.approx(wanted([np.mean(y[folds != fold]) for fold in folds]), abs=1e-9)
    assert scores["all"]["linear"]["r_squared"] > 0.3 > 0 > scores["mean"]["r_squared"]


def test_classes_of_a_column_and_columns_that_say_nothing(fundus, measured, tmp_path):
    embed = ["embed", "--weights", fundus / "rot.pt", *EMBED]
    for name, source in (("store", fundus / "columns"), ("files", measured)):
        pretext3d(*embed, "--column", "eye", "--input", source, "--out", tmp_path / name)
        table, description = rows(tmp_path / f"{name}.csv"), read_json(tmp_path / f"{name}.json")
        assert description["classes"] == ["left", "right"] and {*description["scores"]} == {"majority", "deepest", "all"}
        assert [row["class"] for row in table[:4]] == ["0", "1", "", "0"]
    # Photographs have grades without a column of that name, and `--column` is another word for what is known anyway.
    for name, flags in (("usual", []), ("named", ["--column", "grade"])):
        for source in ("store", "aptos"):
            pretext3d(*embed, *flags, "--input", fundus / source, "--out", tmp_path / f"{source}-{name}")
    for source in ("store", "aptos"):
        assert (tmp_path / f"{source}-usual.csv").read_bytes() == (tmp_path / f"{source}-named.csv").read_bytes()
        usual, named = (read_json(tmp_path / f"{source}-{name}.json") for name in ("usual", "named"))
        assert named == {**usual, "column": "grade", "unit": None} and "column" not in usual

    few = tmp_path / "few.csv"
    few.write_text("image,size\n" + "".join(f"{row['id']},{i}.5\n" for i, row in enumerate(table[:2])))
    out = ["--out", tmp_path / "new"]
    for source, flags, says in [
        (fundus / "columns", ["--column", "age"], ["columns: no column `age`", "there are thickness, eye, site"]),
        (measured, ["--column", "age"], ["no such column", "values.csv has image, thickness, eye, site"]),
        (fundus / "columns", ["--column", "site"], ["column `site` holds one class only: 1"]),
        (measured, ["--column", "size", "--table", few], ["--column size: 2 subjects have a value, a cross-validation needs 3"]),
        (fundus / "columns", ["--column", "size", "--table", few], ["--table", "for folders"]),
    ]:
        refused(*embed, *flags, "--input", source, *out, says=says)
        assert not (tmp_path / "new.csv").exists()


def test_a_copy_of_a_photograph_is_in_the_fold_of_the_photograph(fundus, tmp_path):
    images = tmp_path / "aptos"
    shutil.copytree(fundus / "aptos", images)
    table = next(images.rglob("*.csv"))
    line = table.read_text().splitlines()[8]
    name = line.split(",")[0]
    photograph = next(images.rglob(f"{name}.*"))
    shutil.copy(photograph, photograph.with_stem("zzz_copy"))
    with table.open("a") as file:
        file.write(line.replace(name, "zzz_copy") + "\n")
    for i, source in enumerate((images, None)):
        if source is None:
            source = tmp_path / "store"
            pretext3d("preprocess", "--data", images, "--out", source, "--size", 32)
        pretext3d("embed", "--weights", fundus / "rot.pt", "--input", source, "--out", tmp_path / f"f{i}", *EMBED)
        fold = {row["id"]: row["fold"] for row in rows(tmp_path / f"f{i}.csv")}
        assert len(fold) == 41 and fold[name] == fold["zzz_copy"]


def test_slices_and_what_is_refused(fundus, trained, store, tmp_path):
    args = ["--task", "rot", "--slices", "axial", "--epochs", 1, "--steps", 1, *SMALL]
    pretext3d("pretrain", "--data", store, *args, "--out", tmp_path / "run", "--weights", tmp_path / "axial")
    pretext3d("embed", "--weights", tmp_path / "axial.pt", "--input", store, "--out", tmp_path / "f", *EMBED)
    module = torch.jit.load(tmp_path / "axial.pt").eval()
    subject = read_json(store / "index.json")["subjects"][3]
    image = tensors(store / subject["file"])[0]["image"].float()
    wanted = np.mean([expected(module, image[..., k].contiguous()) for k in range(image.shape[-1])], 0)
    np.testing.assert_allclose(features(rows(tmp_path / "f.csv"))[3], wanted, rtol=1e-4, atol=1e-5)

    weights, out = trained.weights.with_suffix(".pt"), ["--out", tmp_path / "f", *EMBED]
    refused("embed", "--weights", weights, "--input", store, *out, says=["f.csv", "--overwrite"])
    new = ["--out", tmp_path / "new", *EMBED]
    refused("embed", "--weights", weights, "--input", fundus / "store", *new, says=["rot.pt", "3D", "2D"])
    refused("embed", "--weights", weights, "--input", store, "--window", 3, *new, says=["--window", "4", "3"])
    # Weights that do not say how scans are prepared: a store is, files are not.
    (tmp_path / "bare.safetensors").write_bytes(trained.weights.with_suffix(".safetensors").read_bytes())
    message = refused("embed", "--weights", tmp_path / "bare.safetensors", "--input", store / "none.nii", *new, says=["store"])
    assert "bare" in message
    done = pretext3d("embed", "--weights", tmp_path / "bare.safetensors", "--input", store, *new)
    assert "does not say what scans" in done.stderr
    refused("embed", "--weights", weights, "--input", store, "--overwrite", "--out", trained.weights, *EMBED, says=["would replace"])
