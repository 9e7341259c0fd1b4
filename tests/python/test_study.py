"""`pretext3d report` on synthetic sweeps, against SciPy."""
import json
import re
from html.parser import HTMLParser
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from helpers import pretext3d, refused, rows
from scipy import stats

EPOCHS = 20


class Sweep:
    """A sweep's folder whose scores are `score(pretext, arm, fraction, seed, unlabelled)`."""

    def __init__(self, folder, arms, score, fractions=(0.1, 1.0), seeds=range(4), folds=(None,), shares=(1.0,), ranks=(3,), **more):
        self.folder, self.results, cells = folder, {}, []
        rng = np.random.default_rng(0)
        for (pretext, arm), fraction, seed, fold, share, rank in product(arms, fractions, seeds, folds, shares, ranks):
            if pretext in ("scratch", "random") and share != shares[0]:
                continue
            cell = {"pretext": pretext, "arm": arm, "fraction": fraction, "seed": seed, "unlabelled": share, "rank": rank}
            cell["id"] = f"{pretext}-{arm}-f{fraction}-s{seed}-u{share}-r{rank}"
            if fold is not None:
                cell["fold"] = fold
                cell["id"] += f"-k{fold}"
            cells.append(cell)
            value = float(score(rng, pretext, arm, fraction, share))
            cases = [{"id": f"case_{i}", "score": float(value + rng.normal(0, 0.05))} for i in range(15)]
            self.results[cell["id"]] = {
                "version": 1, "task": "segmentation", **{k: v for k, v in cell.items() if k != "id"}, "epochs": EPOCHS,
                "best_epoch": 17, "validation_metric": "dice", "seconds": 12.5, "peak_memory_mib": 900, "weights": None,
                "weights_fingerprint": None if pretext == "scratch" else "ab" * 32, "data_fingerprint": "cd" * 32,
                "split_fingerprint": "ef" * 32, "train_subjects": 5, "val_subjects": 12, "test_subjects": 15, "metric": "dice",
                "score": value, "scores": {"dice.oedema": value / 2, "hd95.oedema": None}, "cases": cases,
            }
        settings = {"seeds": list(seeds), "fractions": list(fractions), "unlabelled": "store"}
        if folds != (None,):
            settings["folds"] = len(folds)
        self.sweep = {"version": 1, "name": "synthetic", "settings": settings, "cells": cells, **more}
        self.write()

    def write(self):
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "sweep.json").write_text(json.dumps(self.sweep))
        for name, result in self.results.items():
            cell = self.folder / "cells" / name
            cell.mkdir(parents=True, exist_ok=True)
            (cell / "result.json").write_text(json.dumps(result))
            rate = 4 if result["pretext"] == "scratch" else 2
            curve = [result["score"] * (1 - np.exp(-e / rate)) for e in range(1, EPOCHS + 1)]
            lines = [json.dumps({"epoch": e, "train/loss": 1 / e, "val/dice": v}) for e, v in enumerate(curve, 1)]
            (cell / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))

    def report(self):
        self.printed = pretext3d("report", self.folder).stdout
        self.markdown = (self.folder / "report" / "report.md").read_text()
        return self.markdown

    def of(self, pretext, arm, fraction):
        """Results of an arm by seed and fold."""
        found = {}
        for r in self.results.values():
            if (r["pretext"], r["arm"], r["fraction"]) == (pretext, arm, fraction):
                found[r["seed"], r.get("fold")] = r
        return found

    def table(self, after):
        """The first Markdown table after a heading, as a list of rows of fields."""
        lines = self.markdown.split(after, 1)[1].splitlines()
        start = next(i for i, line in enumerate(lines) if line.startswith("|"))
        table = []
        for line in lines[start:]:
            if not line.startswith("|"):
                break
            table.append([field.strip() for field in line.strip("|").split("|")])
        return [table[0], *table[2:]]


def scores(gain, noise=0.02):
    """Scratch with noise, pretrained arms better by `gain` of their task."""

    def score(rng, pretext, arm, fraction, share):
        return 0.5 + 0.2 * fraction + gain.get(pretext, 0.0) * share + rng.normal(0, noise)

    return score


ARMS = [("scratch", "scratch"), ("rot", "warmup"), ("rpl", "warmup"), ("rpl", "full")]


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """Rotation helps, relative patch location does nothing."""
    sweep = Sweep(tmp_path_factory.mktemp("study") / "sweep", ARMS, scores({"rot": 0.15}))
    sweep.report()
    return sweep


def numbers(text):
    return [float(v) for v in re.findall(r"-?\d+\.\d+(?:e-?\d+)?", text)]


def test_results_hold_every_scalar(sweep):
    table = rows(sweep.folder / "report" / "results.csv")
    assert len(table) == len(sweep.results) == 32
    for row in table:
        result = sweep.results[row["id"]]
        for name, value in {**result, **{f"scores.{k}": v for k, v in result["scores"].items()}}.items():
            if name in ("scores", "cases"):
                continue
            found = row[name]
            assert (float(found) == value) if isinstance(value, (int, float)) else found == (value or ""), name


def test_means_and_intervals_agree_with_scipy(sweep):
    head, *table = sweep.table("## Test dice")
    assert head == ["arm", "10 % of the labels", "100 % of the labels"]
    assert [row[0] for row in table] == ["scratch", "rot warmup", "rpl warmup", "rpl full"]
    for column, fraction in enumerate((0.1, 1.0), 1):
        means = []
        for row, (pretext, arm) in zip(table, ARMS):
            values = [r["score"] for r in sweep.of(pretext, arm, fraction).values()]
            low, high = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
            means.append(np.mean(values))
            assert np.allclose(numbers(row[column]), [np.mean(values), low, high], atol=5.1e-4), row
        assert [row[column].startswith("**") for row in table] == [m == max(means) for m in means]


def test_differences_and_p_values_agree_with_scipy(sweep):
    head, *table = sweep.table("### Difference to scratch")
    assert len(table) == 6
    expected = []
    for row in table:
        pretext, arm = row[0].split()
        own, other = (sweep.of(p, a, float(row[1][:-2]) / 100) for p, a in ((pretext, arm), ("scratch", "scratch")))
        units = sorted(own)
        a, b = ([r[u]["score"] for u in units] for r in (own, other))
        test = stats.ttest_rel(a, b)
        interval = test.confidence_interval(0.95)
        expected.append(test.pvalue)
        assert np.allclose(numbers(row[2]), [np.mean(a) - np.mean(b), *interval], atol=5.1e-4), row
        assert row[3] == "&lt; 0.001" if test.pvalue < 1e-3 else abs(float(row[3]) - test.pvalue) < 5.1e-4
        assert row[5] == "4 of 4"
        cases = np.mean([[c["score"] - d["score"] for c, d in zip(own[u]["cases"], other[u]["cases"])] for u in units], axis=0)
        wilcoxon = stats.wilcoxon(cases, method="exact").pvalue
        assert row[6].endswith("(15 cases)")
        assert row[6].startswith("&lt; 0.001") if wilcoxon < 1e-3 else abs(numbers(row[6])[0] - wilcoxon) < 5.1e-4
    order = np.argsort(expected)
    adjusted = np.maximum.accumulate(np.minimum(1, np.array(expected)[order] * (6 - np.arange(6))))
    for at, p in zip(order, adjusted):
        assert table[at][4] == "&lt; 0.001" if p < 1e-3 else abs(float(table[at][4]) - p) < 5.1e-4


def test_words_follow_the_interval(sweep):
    for text in (sweep.markdown, sweep.printed):
        sentences = re.findall(r"^- (\w+ \w+, \d+ % of the labels: (?:gain|loss|no gain).*)$", text, re.M)
        assert len(sentences) == 6
        for row, sentence in zip(sweep.table("### Difference to scratch")[1:], sentences):
            difference, low, high = numbers(row[2])
            assert sentence.startswith(f"{row[0]}, {row[1]} of the labels: ")
            said = sentence.split(": ", 1)[1]
            if low > 0:
                assert said.startswith(f"gain of {difference:.3f} ({low:.3f} to {high:.3f}), 4 seeds")
            elif high < 0:
                assert said.startswith(f"loss of {-difference:.3f} ({-high:.3f} to {-low:.3f}), 4 seeds")
            else:
                assert said.startswith(f"no gain shown: difference {difference:.3f} ({low:.3f} to {high:.3f})")
        rotation = [s for s in sentences if s.startswith("rot")]
        assert all(": gain of" in s for s in rotation) and len(rotation) == 2
        gains = sum(": gain of" in s for s in sentences)
        assert f"Of 6 comparisons with training from scratch, {gains} show a gain" in text


def test_convergence_is_that_of_the_mean_curves(sweep):
    def curve(pretext, arm, fraction):
        cells = [name for name in sweep.results if name.startswith(f"{pretext}-{arm}-f{fraction}-")]
        lines = [(sweep.folder / "cells" / name / "metrics.jsonl").read_text().splitlines() for name in cells]
        return np.mean([[json.loads(line)["val/dice"] for line in cell] for cell in lines], axis=0)

    for fraction, (pretext, arm) in product((0.1, 1.0), ARMS[1:]):
        goal = curve("scratch", "scratch", fraction)[-1]
        reached = np.flatnonzero(curve(pretext, arm, fraction) >= goal)
        said = f"{pretext} {arm}, {fraction * 100:.0f} % of the labels: "
        if len(reached):
            said += f"reaches scratch's final {goal:.3f} at epoch {reached[0] + 1} of {EPOCHS}; scratch itself at {EPOCHS}"
        else:
            said += f"never reaches scratch's final {goal:.3f} in {EPOCHS} epochs; scratch itself at {EPOCHS}"
        assert said in sweep.markdown, said
    assert "never reaches" in sweep.markdown and re.search(r"final \d\.\d+ at epoch \d ", sweep.markdown)


def test_tasks_are_ranked_with_corrected_intervals(tmp_path):
    """Against SciPy; joint tasks against the best single one; and when each repetition catches up with its scratch."""
    arms = [("scratch", "scratch"), ("rot", "full"), ("mae", "full"), ("rot-mae", "full")]
    sweep = Sweep(tmp_path / "sweep", arms, scores({"rot": 0.05, "mae": 0.1, "rot-mae": 0.12}), seeds=range(5))
    text = sweep.report()
    tests = {}
    for (pretext, arm), fraction in product(arms[1:], (0.1, 1.0)):
        own, other = sweep.of(pretext, arm, fraction), sweep.of("scratch", "scratch", fraction)
        tests[pretext, fraction] = stats.ttest_rel([own[u]["score"] for u in own], [other[u]["score"] for u in own])
    adjusted = dict(zip(tests, holm([test.pvalue for test in tests.values()])))
    for fraction, heading in ((0.1, "### 10 % of the labels: 5 subjects"), (1.0, "### 100 % of the labels: 5 subjects")):
        head, *table = sweep.table(heading)
        assert head == ["", "arm", "minus scratch (95 %)", "corrected 95 %", "p, Holm"] and [row[0] for row in table] == ["1", "2", "3"]
        differences = [numbers(row[2])[0] for row in table]
        assert differences == sorted(differences, reverse=True) and len({row[1] for row in table}) == 3
        for row in table:
            pretext = row[1].split()[0]
            test, p = tests[pretext, fraction], adjusted[pretext, fraction]
            expected = test.confidence_interval(1 - 0.05 * test.pvalue / p)
            assert np.allclose(numbers(row[3]), expected, atol=5.1e-4) and row[4] == shown(p), row
            assert (expected[0] > 0 or expected[1] < 0) == (p < 0.05)
        means = {pretext: np.mean([r["score"] for r in sweep.of(pretext, "full", fraction).values()]) for pretext in ("rot", "mae")}
        best = max(means, key=means.get)
        joint = np.mean([r["score"] for r in sweep.of("rot-mae", "full", fraction).values()]) - means[best]
        line = re.search(rf"^- rot-mae full against {best} full, {fraction * 100:.0f} % of the labels: .*$", text, re.M)[0]
        assert abs(numbers(line)[0] - abs(joint)) < 5.1e-4
    rate = 2  # of the curves that Sweep writes; scratch's is 4
    for row in sweep.table("The share of scratch's epochs")[1:]:
        pretext, fraction = row[0].split()[0], float(row[1][:-2]) / 100
        shares = []
        for unit, own in sweep.of(pretext, "full", fraction).items():
            goal = sweep.of("scratch", "scratch", fraction)[unit]["score"] * (1 - np.exp(-EPOCHS / 4))
            curve = own["score"] * (1 - np.exp(-np.arange(1, EPOCHS + 1) / rate))
            reached = np.flatnonzero(curve >= goal)
            shares.append(f"{(reached[0] + 1) / EPOCHS * 100:g} %" if len(reached) else "never")
        assert row[5] == ", ".join(shares)


def test_every_arm_at_its_own_rate_and_all_at_the_common_one(tmp_path):
    """Scratch is better at another rate, rot at the common one: the gain at the common rate is none at the own ones."""
    arms = [("scratch", "scratch"), ("rot", "full")]
    sweep = Sweep(tmp_path / "sweep", arms, scores({"rot": 0.1}, 0.005), fractions=(1.0,))
    plain = sweep.report()
    for cell in sweep.sweep["cells"]:
        cell["lr"] = 0.001
    own = {}
    for name, result in sweep.results.items():
        if result["pretext"] == "scratch":
            own[f"{name}-lr0.01"] = {**result, "score": result["score"] + 0.2}
    sweep.results |= own
    sweep.write()
    grid = [{"lr": 0.001, "score": 0.5, "runs": 2}, {"lr": 0.01, "score": 0.75, "runs": 2}]
    chosen = [{"pretext": "scratch", "arm": "scratch", "lr": 0.01, "grid": grid}]
    rates = sweep.folder / "rates.json"
    rates.write_text(json.dumps({"version": 1, "chosen": chosen}))
    text = sweep.report()
    # That of rot is still to be chosen.
    assert "missing: rot-full-f1.0-s0-u1.0-r3 at its own rate, not chosen yet" in text
    chosen.append({"pretext": "rot", "arm": "full", "lr": 0.001, "grid": [{**grid[0], "score": 0.8}, grid[1]]})
    rates.write_text(json.dumps({"version": 1, "chosen": chosen}))
    text = sweep.report()
    at_own, at_common = text.index("## Test dice, every arm at its own learning rate"), text.index("## Test dice, all at the common learning rate")
    assert at_own < at_common and "incomplete" not in text
    found = []
    for start in (at_own, at_common):
        sweep.markdown = text[start:]
        found.append(numbers(sweep.table("### Difference to scratch")[1][2])[0])
    assert found[0] < -0.05 < 0.05 < found[1] and abs(found[1] - found[0] - 0.2) < 2e-3
    assert "rot full, 100 % of the labels: loss of" in text[at_own:at_common] and "gain of" in text[at_common:]
    sweep.markdown = text
    assert sweep.table("## Learning rates") == [
        ["arm", "0.001", "0.01", "own rate", "common rate"],
        ["scratch", "0.500", "**0.750**", "0.01", "0.001"],
        ["rot full", "**0.800**", "0.750", "0.001", "0.001"],
    ]
    table = {row["id"]: row["lr"] for row in rows(sweep.folder / "report/results.csv")}
    assert len(table) == 12 and sorted(table.values()) == ["0.001"] * 8 + ["0.01"] * 4
    assert "learning rate" not in plain


def test_no_gain_is_said(tmp_path):
    sweep = Sweep(tmp_path / "sweep", [("scratch", "scratch"), ("rot", "warmup")], scores({}), seeds=range(6))
    # The same scores in another order: every mean is equal, so no interval can lie beside 0.
    for fraction in (0.1, 1.0):
        own, other = sweep.of("rot", "warmup", fraction), sweep.of("scratch", "scratch", fraction)
        for seed in range(6):
            own[seed, None]["score"] = other[5 - seed, None]["score"]
    sweep.write()
    text = sweep.report()
    assert "No gain over training from scratch is shown. Of 2 comparisons" in text
    assert text.count("no gain shown: difference") == 2 and ": gain of" not in text and ": loss of" not in text


def test_a_loss_is_said(tmp_path):
    text = Sweep(tmp_path / "sweep", [("scratch", "scratch"), ("rot", "warmup")], scores({"rot": -0.2})).report()
    assert text.count(": loss of 0.") == 2 and "No gain over training from scratch is shown" in text


def test_one_seed_has_no_interval(tmp_path):
    text = Sweep(tmp_path / "sweep", ARMS, scores({"rot": 0.3}), seeds=[0]).report()
    assert text.count("no verdict, which needs 3 seeds: difference 0.") == 6 and ": gain of" not in text
    assert "No statement on gain or loss is possible" in text


def test_missing_cells_are_said(tmp_path):
    sweep = Sweep(tmp_path / "sweep", ARMS, scores({"rot": 0.15}))
    for name in ("rot-warmup-f0.1-s1-u1.0-r3", "scratch-scratch-f0.1-s2-u1.0-r3"):
        (sweep.folder / "cells" / name / "result.json").unlink()
    text = sweep.report()
    assert "incomplete: 30 of 32 cells" in text.split("##")[0] and "incomplete: 30 of 32 cells" in sweep.printed
    assert re.search(r"rot warmup, 10 % of the labels: no verdict.*2 seeds; 2 of 4 pairs missing", text)
    assert re.search(r"rpl full, 10 % of the labels: .*3 seeds; 1 of 4 pairs missing", text)
    assert next(row for row in sweep.table("### Difference to scratch") if row[:2] == ["rot warmup", "10 %"])[5] == "2 of 4"


def test_shares_ranks_folds_and_random_encoders(tmp_path):
    arms = [("scratch", "scratch"), ("random", "frozen"), ("rot", "warmup"), ("rot", "frozen")]
    options = {"folds": (0, 1, 2), "seeds": [0], "shares": (0.1, 1.0), "ranks": (2, 3)}
    sweep = Sweep(tmp_path / "sweep", arms, scores({"rot": 0.2}, 0.005), **options)
    for result in sweep.results.values():
        result["metric"] = "kappa"
    sweep.write()
    text = sweep.report()
    assert (sweep.folder / "report" / "scaling.png").stat().st_size > 5000
    for share in ("10 %", "100 %"):
        table = sweep.table(f"Test kappa, pretrained on {share} of the unlabelled scans")
        names = [row[0] for row in table[1:]]
        assert sorted(names) == sorted(f"{a} {r}D" for a in ("scratch", "random frozen", "rot warmup", "rot frozen") for r in (2, 3))
    assert "3 folds" in text and "Folds share training subjects" in text
    assert text.count("### Difference to random frozen") == 2
    scaling = sweep.table("## Gain against the share of unlabelled scans")
    assert scaling[0] == ["arm", "labels", "10 % unlabelled", "100 % unlabelled"]
    row = next(row for row in scaling if row[:2] == ["rot warmup 3D", "10 %"])
    assert abs(numbers(row[2])[0] - 0.02) < 0.02 < 0.15 < numbers(row[3])[0]
    # In 3D minus in 2D, of every arm.
    assert text.count("### Difference to 2D") == 2 and len(sweep.table("### Difference to 2D")) == 1 + 4 * 2


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Sweeps of one study in 3D and in 2D, where the third dimension helps scratch alone, and their common report."""
    folder = tmp_path_factory.mktemp("both")

    def in_3d(rng, pretext, arm, fraction, share):
        return scores({})(rng, pretext, arm, fraction, share) + rng.normal(0.3 if pretext == "scratch" else 0, 0.02)

    number = {"pretext": "rot", "fraction": 0.1, "value": 0.7, "metric": "Dice", "source": "a paper"}
    volumes = Sweep(folder / "3d", ARMS, in_3d, title="Volumes", published=[number])
    slices = Sweep(folder / "2d", ARMS[:3], scores({}), ranks=(2,), title="Slices", published=[number])
    slices.sweep["name"] = "flat"
    slices.write()
    printed = pretext3d("report", volumes.folder, slices.folder, "--out", folder / "out").stdout
    volumes.markdown = (folder / "out/report.md").read_text()
    return volumes, slices, folder / "out", printed


def test_several_sweeps_stand_in_one_report(both):
    volumes, slices, out, printed = both
    assert volumes.markdown.startswith("# Volumes and Slices") and "Volumes and Slices" in printed
    assert "should share" not in volumes.markdown and volumes.markdown.count("a paper") == 1
    table = {row["id"]: row for row in rows(out / "results.csv")}
    assert len(table) == len(volumes.results) + len(slices.results) == 32 + 24
    for sweep, name in ((volumes, "synthetic"), (slices, "flat")):
        assert all(float(table[f"{name}/{cell}"]["score"]) == result["score"] for cell, result in sweep.results.items())
        # Each compares with its own scratch.
        rank = sweep.sweep["cells"][0]["rank"]
        for row in volumes.table("### Difference to scratch")[1:]:
            pretext, arm, dimension = row[0].split()
            if dimension != f"{rank}D":
                continue
            own, other = (sweep.of(p, a, float(row[1][:-2]) / 100) for p, a in ((pretext, arm), ("scratch", "scratch")))
            assert abs(numbers(row[2])[0] - np.mean([own[u]["score"] - other[u]["score"] for u in own])) < 5.1e-4


def test_3d_minus_2d_agrees_with_scipy(both):
    volumes, slices, _, printed = both
    table = volumes.table("### Difference to 2D")[1:]
    # What only one of them has is not compared.
    names = ["scratch 3D", "rot warmup 3D", "rpl warmup 3D"]
    assert [row[:2] for row in table] == [list(place) for place in product(names, ("10 %", "100 %"))]
    for row, ((pretext, arm), fraction) in zip(table, product(ARMS[:3], (0.1, 1.0))):
        deep, flat = (sweep.of(pretext, arm, fraction) for sweep in (volumes, slices))
        test = stats.ttest_rel([deep[u]["score"] for u in deep], [flat[u]["score"] for u in deep])
        mean = np.mean([deep[u]["score"] - flat[u]["score"] for u in deep])
        assert np.allclose(numbers(row[2]), [mean, *test.confidence_interval(0.95)], atol=5.1e-4), row
        assert row[3] == "&lt; 0.001" if test.pvalue < 1e-3 else abs(float(row[3]) - test.pvalue) < 5.1e-4
        assert (pretext == "scratch") == (f"{row[0]}, {row[1]} of the labels: gain of" in printed.split("Difference to 2D")[1])


def test_sweeps_that_do_not_fit_together(both, tmp_path):
    volumes, slices, _, _ = both
    refused("report", volumes.folder, slices.folder, says=["--out"])
    common = ["report", "--out", tmp_path / "out", volumes.folder]
    refused(*common, volumes.folder, says=["the same pretext", volumes.folder])
    refused(*common, tmp_path, says=[tmp_path, "not a sweep's folder"])
    graded = Sweep(tmp_path / "graded", ARMS, scores({}), ranks=(2,))
    for result in graded.results.values():
        result["metric"] = "kappa"
    graded.write()
    refused(*common, graded.folder, says=[graded.folder, "kappa", volumes.folder, "dice"])
    assert not (tmp_path / "out").exists()
    # Other test cases make no fair pair: said, and left to the reader.
    other = Sweep(tmp_path / "other", ARMS[:1], scores({}), ranks=(2,), seeds=[0])
    for result in other.results.values():
        result["cases"].pop()
    other.write()
    pretext3d(*common, other.folder)
    text = (tmp_path / "out/report.md").read_text()
    assert "should share their subjects in 2D and in 3D" in text and "differ in their test cases" in text
    # Sweeps of the same name are told apart by their folders.
    assert f"{volumes.folder}/scratch-scratch-f0.1-s0-u1.0-r3" in text and f"{other.folder}/scratch" in text


def corrected(differences, share):
    """Mean, 95 % interval and p-value of differences whose trainings overlap, after Nadeau and Bengio (2003)."""
    n, mean = len(differences), np.mean(differences)
    error = np.std(differences, ddof=1) * np.sqrt(1 / n + share)
    reach = stats.t.ppf(0.975, n - 1) * error
    return mean, [mean - reach, mean + reach], 2 * stats.t.sf(abs(mean) / error, n - 1)


def shown(p):
    return "&lt; 0.001" if p < 1e-3 else f"{p:.3f}"


def holm(values):
    order = np.argsort(values)
    adjusted = np.maximum.accumulate(np.minimum(1, np.array(values)[order] * (len(values) - np.arange(len(values)))))
    return [adjusted[list(order).index(i)] for i in range(len(values))]


def test_folds_are_no_independent_repetitions(tmp_path):
    """Seeds of a fold are averaged, and the variance is corrected; with splits of their own as well."""
    arms = [("scratch", "scratch"), ("rot", "warmup")]
    folded = Sweep(tmp_path / "folds", arms, scores({"rot": 0.03}), folds=(0, 1, 2, 3), seeds=(0, 1))
    splits = Sweep(tmp_path / "splits", arms, scores({"rot": 0.03}), seeds=range(5))
    splits.sweep["settings"]["split_seeds"] = [10, 11, 12, 13, 14]
    splits.write()
    for sweep, n in ((folded, "4 folds"), (splits, "5 seeds")):
        text = sweep.report()
        for rank, (row, fraction) in enumerate(zip(sweep.table("### Difference to scratch")[1:], (0.1, 1.0))):
            own, other = (sweep.of(*arm, fraction) for arm in reversed(arms))
            if sweep is folded:
                means = [np.mean([own[s, k]["score"] - other[s, k]["score"] for s in (0, 1)]) for k in range(4)]
                mean, interval, p = corrected(means, 1 / 3)
                assert row[5] == "8 of 8"
            else:
                # 15 tested beside 12 for validation and the training side, of which 5 are a tenth or all.
                mean, interval, p = corrected([own[u]["score"] - other[u]["score"] for u in own], 15 / (5 / fraction + 12))
            assert np.allclose(numbers(row[2]), [mean, *interval], atol=5.1e-4) and row[3] == shown(p), row
            assert re.search(rf"of the labels: .*, {n}$", text, re.M)
        assert "Nadeau and Bengio" in text


def test_a_verdict_needs_three_repetitions_that_differ(tmp_path):
    """Two seeds that gain the same have no spread: the t-test would be certain of it."""
    arms = [("scratch", "scratch"), ("rot", "warmup")]
    for seeds in (2, 4):
        sweep = Sweep(tmp_path / f"{seeds}", arms, lambda rng, pretext, *_: 0.75 if pretext == "rot" else 0.5, seeds=range(seeds))
        text = sweep.report()
        assert ": gain of" not in text and text.count("of the labels: no verdict") == 2
        assert [row[3:5] for row in sweep.table("### Difference to scratch")[1:]] == [["-", "-"]] * 2


FUNDUS = Path(__file__).parents[2] / "benches/results/study-fundus"


def test_the_committed_fundus_study_by_the_corrected_statistics(tmp_path):
    """The report that stands beside its records, against SciPy on the same records."""
    pretext3d("report", FUNDUS, "--out", tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert text == (FUNDUS / "report/report.md").read_text(), "run `pretext3d report benches/results/study-fundus` and commit it"
    by_fold = {}
    for row in rows(tmp_path / "results.csv"):
        by_fold.setdefault((row["pretext"], row["arm"], row["fraction"]), {})[row["fold"]] = float(row["score"])
    sweep = Sweep.__new__(Sweep)
    sweep.markdown = text
    table = sweep.table("### Difference to scratch")[1:]
    tests = []
    for row in table:
        fraction = {"10 %": "0.1", "100 %": "1.0"}[row[1]]
        own, other = by_fold[*row[0].split(), fraction], by_fold["scratch", "scratch", fraction]
        tests.append(corrected([own[fold] - other[fold] for fold in sorted(own)], 1 / 4))
    for row, (mean, interval, p), adjusted in zip(table, tests, holm([p for *_, p in tests])):
        assert np.allclose(numbers(row[2]), [mean, *interval], atol=5.1e-4) and row[3:5] == [shown(p), shown(adjusted)], row
        verdict = "gain of" if interval[0] > 0 else "loss of" if interval[1] < 0 else "no gain shown"
        assert f"{row[0]}, {row[1]} of the labels: {verdict}" in text
    # One encoder served all folds: the first lines say so.
    first = text.split("##")[0]
    assert "Repetitions (5 folds of 1 seed) vary" in first and "the encoder (one for all repetitions)" in first


class Page(HTMLParser):
    """Checks that tags close in order, and collects what a page would load."""

    VOID = {"meta", "polyline"}

    def __init__(self, text):
        super().__init__()
        self.open, self.seen, self.links, self.words = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.seen.append(tag)
        self.links += [v for k, v in attributes if k in ("src", "href", "xlink:href", "data", "srcset")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, tag

    def handle_data(self, data):
        self.words.append(data)


def test_the_page_stands_alone_and_escapes(tmp_path):
    published = [{"pretext": "rot", "fraction": 0.1, "value": 0.74, "metric": "Dice <pooled> & all", "source": "a | \"paper\""}]
    arms = [("scratch", "scratch"), ("rot<b>", "warmup"), ("rot", "warmup")]
    title = "<script>alert(1)</script> & co"
    sweep = Sweep(tmp_path / "sweep", arms, scores({}), title=title, published=published)
    for result in (0.98, None):
        run = sweep.folder / "pretrain" / f"rot{result}"
        run.mkdir(parents=True)
        record = {"version": 1, "pretext": "rot", "unlabelled": 1.0, "metric": "rot.accuracy", "value": result, "chance": 0.1}
        (run / "result.json").write_text(json.dumps({**record, "seconds": 90.0, "epochs": 3}))
    markdown = sweep.report()
    page = Page((sweep.folder / "report" / "report.html").read_text())
    assert not page.links and "script" not in page.seen and "b" not in page.seen and "link" not in page.seen
    assert page.seen.count("svg") == 2 and "url(" not in (sweep.folder / "report" / "report.html").read_text()
    words = " ".join(page.words)
    for text in (title, "rot<b> warmup", "Dice <pooled> & all", 'a | "paper"', "0.74", "rot.accuracy", "0.980", "1.5"):
        assert text in words, text
    assert "<script" not in markdown and r"a \| " in markdown
    # The statistics know nothing of published numbers.
    assert "0.74" not in markdown.split("## Published numbers")[0]


def test_points_stand_at_their_share_of_the_labels(tmp_path):
    """With as many arms as there are: each error bar is within a few pixels of its tick, and no two are at one place."""
    arms = [("scratch", "scratch"), *product(("rot", "rpl", "jig", "cpc", "exe"), ("warmup", "frozen"))]
    sweep = Sweep(tmp_path / "sweep", arms, scores({}))
    sweep.report()
    page = (sweep.folder / "report" / "report.html").read_text()
    figure = re.search(r'<svg[^>]*against the share of labels".*?</svg>', page, re.S)[0]
    lines = re.findall(r'<polyline points="([\d.]+),[\d.]+ ([\d.]+),[\d.]+" fill="none" stroke="([^"]*)" stroke-width="([^"]*)"', figure)
    upright = [(float(x), color, width) for x, other, color, width in lines if x == other]
    ticks = [x for x, color, width in upright if color == "rgb(228,230,234)"]
    bars = [x for x, color, width in upright if width == "1.5"]
    assert len(ticks) == 2 and len(set(bars)) == len(bars) == 2 * len(arms)
    assert max(min(abs(bar - tick) for tick in ticks) for bar in bars) <= 6.1


def test_unfair_cells_are_named(tmp_path):
    sweep = Sweep(tmp_path / "sweep", ARMS, scores({}))
    sweep.results["rot-warmup-f0.1-s1-u1.0-r3"]["split_fingerprint"] = "another"
    sweep.results["rpl-full-f1.0-s0-u1.0-r3"]["epochs"] = 400
    sweep.results["rpl-full-f0.1-s2-u1.0-r3"]["warnings"] = ["trained on other channels"]
    sweep.write()
    text = sweep.report()
    assert "rot-warmup-f0.1-s1-u1.0-r3 differ in their split" in text
    assert "rpl-full-f1.0-s0-u1.0-r3 differ in their epochs" in text
    assert "fine-tuning warned of the weights of rpl-full-f0.1-s2-u1.0-r3; the first: trained on other channels" in text


def test_bad_folders_are_refused(tmp_path):
    refused("report", tmp_path, says=["not a sweep's folder", "sweep.json"])
    sweep = Sweep(tmp_path / "sweep", [("scratch", "scratch"), ("rot", "warmup")], scores({}))
    name = "rot-warmup-f0.1-s0-u1.0-r3"
    path = sweep.folder / "cells" / name / "result.json"
    whole = json.loads(path.read_text())
    without = {k: v for k, v in whole.items() if k != "best_epoch"}
    cases = [
        ("{", ["not valid JSON"]),
        (json.dumps({**whole, "version": 2}), ["version 2", "reads 1"]),
        (json.dumps({**whole, "surprise": 1}), ["surprise"]),
        (json.dumps(without), ["best_epoch"]),
        (json.dumps({**whole, "seed": 9}), ["seed", "9", "sweep.json"]),
        (json.dumps({**whole, "metric": "kappa"}), ["kappa", "dice"]),
        (json.dumps({**whole, "cases": [{"id": "a", "score": 1.0}] * 2}), ['"a"', "twice"]),
    ]
    for text, says in cases:
        path.write_text(text)
        refused("report", sweep.folder, says=[name, "result.json", *says])
    assert not (sweep.folder / "report").exists()
    for result in sweep.folder.glob("cells/*/result.json"):
        result.unlink()
    refused("report", sweep.folder, says=["no finished cell"])
    twice = {**sweep.sweep, "cells": sweep.sweep["cells"] + [{**sweep.sweep["cells"][0], "id": "again"}]}
    (sweep.folder / "sweep.json").write_text(json.dumps(twice))
    refused("report", sweep.folder, says=["sweep.json", "again", "the same pretext"])
