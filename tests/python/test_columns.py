"""Classes and quantities of volumes from tables: what a store keeps, and runs on them against scikit-learn."""
import json

import nibabel
import numpy as np
import pytest
import torch
from helpers import pretext3d, read_json, refused, rows, tensors
from pretext3d import Store
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, mean_absolute_error, r2_score

PEOPLE = 24
TRAIN = ["--filters", 4, "--levels", 2, "--batch-size", 4, "--device", "cpu", "--lr", 3e-3]
ONE = ["--epochs", 1, "--steps", 1]


def age(person):
    return 20.5 + 7 * person % 60


def volume(path, rng, side):
    """A bright box of this side in noise."""
    data = rng.random((16, 16, 16), np.float32)
    data[1 : 1 + side, 2 : 2 + side, 3:9] += 3
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(data, np.diag([2.0, 2, 2, 1])), path)


@pytest.fixture(scope="module")
def bids(tmp_path_factory):
    """Folder in BIDS' layout: the older a person, the larger the box. One has no row, one row no scan, three cells are empty."""
    folder = tmp_path_factory.mktemp("bids") / "data"
    rng = np.random.default_rng(0)
    for person in range(PEOPLE):
        volume(folder / f"sub-{person:02}/anat/sub-{person:02}_T1w.nii.gz", rng, 3 + int(age(person) / 8))
    head = "participant_id\tage\tsex\tdiagnosis\tgroup\n"
    people = [f"sub-{p:02}\t{age(p)}\t{'FM'[p % 2]}\t{['control', 'mci', 'dementia'][p % 3]}\t{p % 4}\n" for p in range(PEOPLE - 1)]
    people[3] = "sub-03\tn/a\tNaN\t\t3\n"
    (folder / "participants.tsv").write_text(head + "".join(people) + "sub-99\t50\tF\tmci\t1\n")
    (folder / "participants.json").write_text(json.dumps({"age": {"Units": "years"}, "sex": {"Levels": {"F": "female"}}}))
    return folder


@pytest.fixture(scope="module")
def store(bids, tmp_path_factory):
    out = tmp_path_factory.mktemp("store") / "store"
    done = pretext3d("preprocess", "--data", bids, "--out", out, "--size", 16, "--column", "age,sex,diagnosis,group")
    for said in ["whose column `participant_id` names the scans", "1 of 24 rows have no scan: sub-99",
                 f"column age (years): {PEOPLE - 2} of {PEOPLE} scans have a value, numbers from 20.5", "2 scans without a value: sub-03",
                 "column sex: 22 of 24 scans have a value, names: F 12, M 10"]:
        assert said in done.stderr, done.stderr
    return out


def test_a_store_keeps_columns(store):
    index = read_json(store / "index.json")
    assert index["columns"] == [{"name": "age", "unit": "years"}, {"name": "sex"}, {"name": "diagnosis"}, {"name": "group"}]
    values = {s["id"].split("/")[0]: s.get("values") for s in index["subjects"]}
    assert values["sub-02"] == {"age": age(2), "sex": "F", "diagnosis": "dementia", "group": 2}
    assert values["sub-03"] == {"group": 3} and values["sub-23"] is None
    assert "class" not in index["subjects"][0]
    scans = Store(store, labelled=True)
    assert len(scans) == PEOPLE - 1 and scans[2]["values"] == values["sub-02"]


def test_ages_are_learnt_and_scored_as_scikit_learn_does(store, bids, tmp_path):
    run = tmp_path / "run"
    flags = ["--task", "regression", "--column", "age", *TRAIN, "--epochs", 8, "--steps", 12, "--folds", 4, "--fold", 1]
    done = pretext3d("finetune", "--data", store, "--weights", "none", *flags, "--out", run)
    assert "column age (years): a quantity from 20.5" in done.stderr
    split, index = read_json(run / "split.json"), read_json(store / "index.json")
    ages = {s["id"]: s["values"]["age"] for s in index["subjects"] if "age" in s.get("values", {})}
    table = rows(run / "test" / "predictions.csv")
    assert sorted(row["id"].split("/")[0] for row in table) == split["test"]
    truth = [float(row["age (years)"]) for row in table]
    found = [float(row["predicted age (years)"]) for row in table]
    assert truth == [ages[row["id"]] for row in table]
    trained = [value for name, value in ages.items() if name.split("/")[0] in split["train"]]
    mean = np.mean(trained)
    scores, result = read_json(run / "test" / "scores.json"), read_json(run / "result.json")
    assert scores["mean_absolute_error"] == pytest.approx(mean_absolute_error(truth, found), rel=1e-9)
    assert scores["r_squared"] == pytest.approx(r2_score(truth, found), rel=1e-9)
    assert scores["baseline"]["prediction"] == pytest.approx(mean)
    assert scores["baseline"]["mean_absolute_error"] == pytest.approx(mean_absolute_error(truth, [mean] * len(truth)))
    assert (scores["column"], scores["unit"], result["metric"], result["lower_is_better"]) == ("age", "years", "mae", True)
    assert result["score"] == scores["mean_absolute_error"] < scores["baseline"]["mean_absolute_error"]
    assert {case["id"]: case["score"] for case in result["cases"]} == pytest.approx(
        {row["id"]: abs(t - f) for row, t, f in zip(table, truth, found)})
    # The epoch with the smallest error is tested.
    history = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    errors = [row["val/regression.mae"] for row in history]
    assert result["best_epoch"] == history[int(np.argmin(errors))]["epoch"]
    assert (run / "test" / "calibration.png").stat().st_size > 1000
    # Every fold has each fifth of the ages.
    assert len({sorted(ages.values()).index(value) // 5 for value in truth}) >= 4

    # The export's output is the age itself, and `predict` gives the same from the store, from the files and from a table beside them.
    pretext3d("export", "--run", run, "--out", tmp_path / "net")
    net = torch.jit.load(tmp_path / "net.pt").eval()
    down = read_json(tmp_path / "net.json")["downstream"]
    assert down["standard"]["mean"] == pytest.approx(mean) and down["standard"]["sd"] == pytest.approx(np.std(trained))
    predict = ["predict", "--weights", run, "--device", "cpu", "--precision", "fp32"]
    files = {s["id"]: s["file"] for s in index["subjects"]}
    for name, data in [("store", store), ("files", bids)]:
        pretext3d(*predict, "--input", data, "--output", tmp_path / name)
        table = rows(tmp_path / name / "predictions.csv")
        images = torch.stack([tensors(store / files[row["id"]])[0]["image"].float() for row in table])
        with torch.no_grad():
            expected = net(images).squeeze(1)
        found = [float(row["predicted age (years)"]) for row in table]
        assert len(found) == PEOPLE and found == pytest.approx(expected.tolist(), abs=2e-2)
        assert [row["age (years)"] for row in table].count("") == 2
        known = [(float(row["age (years)"]), f) for row, f in zip(table, found) if row["age (years)"]]
        assert read_json(tmp_path / name / "scores.json")["r_squared"] == pytest.approx(r2_score(*zip(*known)))
    one = bids / "sub-04/anat/sub-04_T1w.nii.gz"
    pretext3d(*predict, "--input", one, "--output", tmp_path / "one")
    [row] = rows(tmp_path / "one" / "predictions.csv")
    assert list(row) == ["id", "predicted age (years)"] and not (tmp_path / "one" / "scores.json").exists()


def test_classes_of_volumes_are_learnt_and_scored_as_scikit_learn_does(store, tmp_path):
    common = ["finetune", "--data", store, "--weights", "none", "--task", "classification", *TRAIN, *ONE]
    names = {"diagnosis": ["control", "dementia", "mci"], "group": ["0", "1", "2", "3"]}
    for column, ordered in [("diagnosis", False), ("group", True)]:
        run = tmp_path / column
        done = pretext3d(*common, "--column", column, "--folds", 2, "--fold", 0, "--out", run)
        assert f"column {column}: {len(names[column])} classes" in done.stderr
        down, result = read_json(run / "config.json")["downstream"], read_json(run / "result.json")
        assert (down["classes"], down["ordered"]) == (names[column], ordered)
        assert down["classification"]["outputs"] == ("ordinal" if ordered else "softmax")
        table = rows(run / "test" / "predictions.csv")
        truth, found = ([int(row[key]) for row in table] for key in ["truth", "class"])
        scores, labels = read_json(run / "test" / "scores.json"), range(len(names[column]))
        assert scores["confusion"]["counts"] == confusion_matrix(truth, found, labels=labels).tolist()
        assert scores["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(truth, found))
        assert result["metric"] == ("kappa" if ordered else "balanced_accuracy")
        assert result["score"] == scores["quadratic_weighted_kappa" if ordered else "balanced_accuracy"]
    # An order that is given makes the outputs ordered ones.
    order = ["--column", "Diagnosis", "--classes", "control,mci,dementia"]
    pretext3d(*common, *order, "--out", tmp_path / "ordered")
    down = read_json(tmp_path / "ordered/config.json")["downstream"]
    assert down["classes"] == ["control", "mci", "dementia"] and down["ordered"] and down["column"]["name"] == "diagnosis"
    assert read_json(tmp_path / "ordered/result.json")["metric"] == "kappa"
    pretext3d("predict", "--weights", tmp_path / "ordered", "--input", store, "--output", tmp_path / "out", "--device", "cpu")
    values = {s["id"]: s.get("values", {}).get("diagnosis") for s in read_json(store / "index.json")["subjects"]}
    for row in rows(tmp_path / "out" / "predictions.csv"):
        assert row["truth"] == ("" if values[row["id"]] is None else str(down["classes"].index(values[row["id"]])))


def test_what_cannot_be_learnt_is_refused(store, tmp_path):
    common = ["finetune", "--data", store, "--weights", "none", *TRAIN, *ONE, "--out", tmp_path / "run", "--task"]
    for flags, says in [
        (["regression"], ["the columns age, sex, diagnosis, group", "--column"]),
        (["regression", "--column", "height"], ["no column `height`", "age, sex, diagnosis, group"]),
        (["regression", "--column", "sex"], ["column `sex` holds 22 values that are no numbers: F (sub-00", "--task classification"]),
        (["classification", "--column", "sex", "--outputs", "ordinal"], ["F, M have no order", "--classes"]),
        (["classification", "--column", "sex", "--classes", "F"], ["one class only: F"]),
        (["classification", "--column", "diagnosis", "--classes", "control,mci"], ["also holds dementia", "--classes"]),
        (["classification", "--column", "sex", "--classes", "F,M,F"], ["`F` is named twice"]),
        (["classification", "--column", "sex", "--regression-loss", "squared"], ["--regression-loss"]),
        (["regression", "--column", "age", "--outputs", "softmax"], ["--outputs", "--task classification"]),
        (["regression", "--column", "age", "--class-weights", "balanced"], ["--class-weights"]),
        (["regression", "--column", "age", "--patch", 8], ["--patch"]),
        (["segmentation", "--column", "age"], ["--column goes with"]),
        (["segmentation"], ["no labels", "--task classification or regression"]),
    ]:
        refused(*common, *flags, says=says)
    assert not (tmp_path / "run").exists()


def preprocess(folder, *flags, says=(), **kwargs):
    done = pretext3d("preprocess", "--data", folder, "--out", folder.parent / "store", "--size", 16, "--overwrite", *flags, **kwargs)
    for part in says:
        assert part in done.stderr, done.stderr
    index = read_json(folder.parent / "store" / "index.json")
    return {s["id"]: s.get("values") for s in index["subjects"]}


def test_tables_as_people_keep_them(tmp_path):
    """Ids with or without zeros, endings and folders; semicolons and decimal commas; sessions; several rows; no row that fits."""
    data = tmp_path / "data"
    rng = np.random.default_rng(1)
    for name in ["p001_v1", "p001_v2", "p002_v1", "p003_v1"]:
        volume(data / f"{name}.nii.gz", rng, 5)
    ids = ["p001/v1", "p001/v2", "p002/v1", "p003/v1"]
    tables = {
        # Of a person all scans have the value; of a file only that one.
        "\ufeffName;Alter ;\r\np001;63,5;\r\nP002;7;\r\np003_v1.nii.gz;8;\r\n": [63.5, 63.5, 7, 8],
        "scan,Alter\nscans/p001_v1.nii.gz,1\nscans/p001_v2.nii.gz,2\np002/v1,3\n": [1, 2, 3, None],
        # A column of sessions tells the scans of a person apart.
        "id\tsession_id\tAlter\np001\tv1\t60\np001\tv2\t62\np002\tv1\t70\np003\tv9\t80\n": [60, 62, 70, None],
        # The same twice, as 63 and 63.0.
        "id,Alter\np001,63\np001,63.0\np002,n/a\np003,<NA>\n": [63, 63, None, None],
        # A name makes names of all.
        "id,Alter\np001,63\np002,unknown\np003,5\n": ["63", "63", "unknown", "5"],
    }
    for text, expected in tables.items():
        (tmp_path / "t.csv").write_text(text)
        assert preprocess(data, "--column", "Alter", "--table", tmp_path / "t.csv") == {
            scan: None if value is None else {"Alter": value} for scan, value in zip(ids, expected)}, text
    assert "commas in numbers are decimal ones" in pretext3d(
        "preprocess", "--data", data, "--out", tmp_path / "s", "--size", 16, "--column", "Alter", "--table", written(tmp_path, next(iter(tables)))).stderr
    # Beside the scans it is found; of several tables the one that has the column.
    (data / "other.csv").write_text("id,weight\np001,70\n")
    (data / "people.csv").write_text("name,age\n1,40\n2,50\n3,60\n")
    message = refused("preprocess", "--data", data, "--out", tmp_path / "x", "--size", 16, "--column", "age",
                      says=["people.csv: no row names a scan", "`name` holds 1, 2, 3", "p001/v1", "--id-column"])
    assert "other.csv" not in message
    (data / "people.csv").write_text("name,age\np001,40\np002,50\np001,41\n")
    out = ["--out", tmp_path / "y", "--size", 16, "--column", "age"]
    refused("preprocess", "--data", data, *out, says=["p001/v1: column `age`: contradictory values, 40 in row 2 of", "41 in row 4 of"])
    done = pretext3d("preprocess", "--data", data, *out, "--skip-bad")
    assert "3 scans without a value: p001/v1, p001/v2, p003/v1" in done.stderr
    for flags, says in [
        (["--column", "height"], ["no such column", "people.csv has name, age", "other.csv has id, weight"]),
        (["--column", "age,age"], ["named twice"]),
        (["--column", "age", "--id-column", "key"], ["no column `key`; found name, age"]),
        (["--column", "age", "--table", tmp_path / "gone.csv"], ["gone.csv", "No such file"]),
    ]:
        refused("preprocess", "--data", data, "--out", tmp_path / "z", *flags, says=says)
    # A table that no one asked for does no harm.
    assert preprocess(data) == dict.fromkeys(ids)


def written(folder, text):
    path = folder / "written.csv"
    path.write_text(text)
    return path


def test_sessions_of_bids(tmp_path):
    """An age for each session stands in a table a person, unless `participants.tsv` has the column."""
    data, rng = tmp_path / "data", np.random.default_rng(3)
    for person in ["01", "02"]:
        for session in ["a", "b"]:
            volume(data / f"sub-{person}/ses-{session}/anat/sub-{person}_ses-{session}_T1w.nii.gz", rng, 5)
        ages = {"a": int(person) + 50, "b": "n/a" if person == "02" else 53.5}
        (data / f"sub-{person}/sub-{person}_sessions.tsv").write_text(
            "session_id\tage\n" + "".join(f"ses-{session}\t{age}\n" for session, age in ages.items()))
    (data / "participants.tsv").write_text("participant_id\tsex\nsub-01\tF\nsub-02\tM\n")
    values = preprocess(data, "--column", "age", says=["age: from the sessions of each person, NAME_sessions"])
    assert {name.split("_T1w")[0]: value for name, value in values.items()} == {
        "sub-01/ses-a": {"age": 51}, "sub-01/ses-b": {"age": 53.5}, "sub-02/ses-a": {"age": 52}, "sub-02/ses-b": None}
    assert [value["sex"] for value in preprocess(data, "--column", "sex").values()] == ["F", "F", "M", "M"]
    # A column of each.
    both = preprocess(data, "--column", "age,sex")
    assert list(both.values())[:2] == [{"age": 51, "sex": "F"}, {"age": 53.5, "sex": "F"}]


def test_manifests_have_values_beside_scans(tmp_path):
    data = tmp_path / "data"
    rng = np.random.default_rng(2)
    for name in "abc":
        volume(data / f"{name}.nii.gz", rng, 5)
    manifest = written(data, "subject;t1;age;site;note\na;a.nii.gz;63,5;x;good\nb;b.nii.gz;;y;\nc;c.nii.gz;7;x;bad\n")
    assert preprocess(manifest, "--column", "Age,site", says=["columns without scans: note"]) == {
        "a": {"Age": 63.5, "site": "x"}, "b": {"site": "y"}, "c": {"Age": 7, "site": "x"}}
    out = ["--out", tmp_path / "x", "--size", 16]
    refused("preprocess", "--data", manifest, *out, says=["row 2, column `age`", "--column names are scans"])
    refused("preprocess", "--data", manifest, *out, "--column", "weight", says=["no column of values of that name", "subject, t1, age, site, note"])
    refused("preprocess", "--data", manifest, *out, "--column", "label", says=["--column \"label\""])


def test_sweeps_compare_errors(store, tmp_path):
    """Lower is better: means, findings, ranking, rates and convergence."""
    config = tmp_path / "sweep.toml"
    config.write_text(f"""
name = "age"
data = "{store}"
tasks = ["rot"]
arms = ["scratch", "full"]
seeds = [0, 1, 2]
fractions = [1.0]
val_fraction = 0.2
test_fraction = 0.25
lr_grid = [0.001, 0.01]
lr_grid_seeds = [7]
[pretrain]
filters = 4
levels = 2
epochs = 1
steps = 1
batch-size = 2
val-draws = 1
rot-head = "gap"
device = "cpu"
[finetune]
task = "regression"
column = "age"
lr = 0.003
filters = 4
levels = 2
epochs = 2
steps = 2
batch-size = 4
device = "cpu"
""")
    out = tmp_path / "sweep"
    pretext3d("sweep", "--config", config, "--out", out)
    rates = read_json(out / "rates.json")["chosen"]
    assert len(rates) == 2
    for chosen in rates:
        assert chosen["lr"] == min(chosen["grid"], key=lambda tried: tried["score"])["lr"]
    report = (out / "report" / "report.md").read_text()
    assert "mae: lower is better" in report and "interval wholly below (above) 0" in report
    results = rows(out / "report" / "results.csv")
    assert {row["metric"] for row in results} == {"mae"} and {row["lower_is_better"] for row in results} == {"true"}
    # Of the first table: the smallest mean is emphasised.
    lines = [line.strip("|").split("|") for line in report.splitlines() if line.startswith(("| scratch |", "| rot full |"))]
    means = {name.strip(): value.strip() for name, value in (line[:2] for line in lines[1::-1])}
    best = min(means, key=lambda name: float(means[name].strip("*").split()[0]))
    assert len(means) == 2 and [name for name, value in means.items() if value.startswith("**")] == [best]
