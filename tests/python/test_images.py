"""Photographs: reading, cropping and reducing against Pillow, grades, and a 2D run from phantom to weights."""
import io

import numpy
import pytest
from helpers import pretext3d, read_json, refused, rows, tensors
from PIL import Image

SIDE = 40


def scene(rng, height, width, channels=3, dtype=numpy.uint8):
    """Smooth colours with noise, no black border: the crop is the whole image."""
    y, x = numpy.mgrid[0:1:height * 1j, 0:1:width * 1j]
    planes = [0.3 + 0.25 * (numpy.sin(5 * x + c) + numpy.cos(4 * y * x + 2 * c)) + 0.1 * rng.random((height, width)) for c in range(channels)]
    scaled = numpy.clip(numpy.stack(planes, -1), 0.08, 1) * numpy.iinfo(dtype).max
    return scaled.astype(dtype).squeeze()


def reduced(pixels, side=SIDE):
    """Values in [0, 1], on a centred black square, reduced by Pillow: `[C, side, side]`."""
    full = numpy.iinfo(pixels.dtype).max
    planes = numpy.atleast_3d(pixels).transpose(2, 0, 1).astype(numpy.float32) / full
    height, width = planes.shape[1:]
    square = max(height, width)
    top, left = (square - height) // 2, (square - width) // 2
    out = []
    for plane in planes:
        padded = numpy.zeros((square, square), numpy.float32)
        padded[top : top + height, left : left + width] = plane
        out.append(numpy.asarray(Image.fromarray(padded).resize((side, side), Image.Resampling.BILINEAR)))
    return numpy.stack(out)


def stored(store, name):
    tensor, text = tensors(store / f"{name}.safetensors")
    image = tensor["image"].float().numpy()
    assert image.shape[1] == 1
    return image[:, 0], text


def test_formats_depths_and_exif_agree_with_pillow(tmp_path):
    rng = numpy.random.default_rng(0)
    folder, expected = tmp_path / "images", {}
    folder.mkdir()

    def save(name, image, **options):
        image.save(folder / name, **options)
        return name.rsplit(".", 1)[0]

    def keep(name, pixels):
        pixels = numpy.atleast_3d(pixels)
        expected[name] = reduced(pixels if pixels.shape[2] == 3 else numpy.repeat(pixels, 3, 2))

    colour, grey = scene(rng, 97, 120), scene(rng, 90, 60, 1)
    keep(save("png.png", Image.fromarray(colour)), colour)
    keep(save("grey.PNG", Image.fromarray(grey)), grey)
    keep(save("tiff.tif", Image.fromarray(colour), compression="tiff_lzw"), colour)
    deep = scene(rng, 64, 64, 1, numpy.uint16)
    keep(save("deep.tiff", Image.fromarray(deep)), deep)
    keep(save("deep_png.png", Image.fromarray(deep)), deep)
    keep(save("jpeg.jpg", Image.fromarray(colour), quality=95), numpy.asarray(Image.fromarray(colour)))
    with Image.open(folder / "jpeg.jpg") as image:
        keep("jpeg", numpy.asarray(image))
    for orientation, turn in {1: None, 3: "ROTATE_180", 6: "ROTATE_270", 8: "ROTATE_90", 2: "FLIP_LEFT_RIGHT", 5: "TRANSPOSE"}.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        name = save(f"exif{orientation}.jpeg", Image.fromarray(colour), quality=95, exif=exif)
        with Image.open(folder / f"{name}.jpeg") as image:
            turned = image if turn is None else image.transpose(getattr(Image.Transpose, turn))
            keep(name, numpy.asarray(turned))

    done = pretext3d("preprocess", "--data", folder, "--out", tmp_path / "store", "--size", SIDE, "--dtype", "f32")
    assert "layout images" in done.stderr and "channels red, green, blue" in done.stderr
    for name, image in expected.items():
        found, _ = stored(tmp_path / "store", name)
        # Decoders of JPEG may differ by a step of 255 or two.
        tolerance = 2e-5 if "jp" not in name and "exif" not in name else 0.012
        assert found.shape == image.shape and numpy.abs(found - image).max() < tolerance, name


def test_damaged_files_are_refused(tmp_path):
    """No pixel is made up; what follows a whole image does no harm."""
    rng = numpy.random.default_rng(3)
    picture = Image.fromarray(scene(rng, 90, 110))
    kinds = {"baseline": (".jpg", {"quality": 95}), "progressive": (".jpg", {"quality": 95, "progressive": True}),
             "restarts": (".jpg", {"restart_marker_rows": 1, "optimize": True}), "png": (".png", {}),
             "plain": (".tif", {}), "lzw": (".tif", {"compression": "tiff_lzw"}), "deflate": (".tif", {"compression": "tiff_adobe_deflate"})}
    (tmp_path / "data").mkdir()
    whole, damaged = set(), set()
    for kind, (ending, options) in kinds.items():
        path = tmp_path / f"data/{kind}_whole{ending}"
        picture.save(path, **options)
        good = path.read_bytes()
        n = len(good)
        harmless = {"whole": good, "zeros_after": good + bytes(300), "words_after": good + b"\xff\xd8\xffwords" * 20}
        cut = {f"cut{share}": good[: n * share // 100] for share in (30, 60, 90)}
        # The size is kept, as by a disk or a transfer that lost the end; uncompressed pixels do not show it.
        zeros = {f"zero{share}": good[: n * share // 100] + bytes(n - n * share // 100) for share in (30, 60, 99)}
        if ending == ".jpg":
            cut |= {"cut99": good[: n * 99 // 100], "no_end": good[:-2]}
        for name, content in [*harmless.items(), *cut.items(), *(zeros.items() if ending != ".tif" else [])]:
            (tmp_path / f"data/{kind}_{name}{ending}").write_bytes(content)
            (whole if name in harmless else damaged).add(f"{kind}_{name}")
            if name in harmless:
                assert (numpy.asarray(Image.open(io.BytesIO(content))) == numpy.asarray(Image.open(io.BytesIO(good)))).all()
            elif name in cut:
                with pytest.raises((OSError, SyntaxError)):
                    Image.open(io.BytesIO(content)).load()
    message = refused("preprocess", "--data", tmp_path / "data", "--out", tmp_path / "store", "--size", 32, "--dtype", "f32")
    index = read_json(tmp_path / "store" / "index.json")
    stems = {key: {entry["id"].split("/")[-1]: entry for entry in index[key]} for key in ("subjects", "left_out")}
    assert set(stems["subjects"]) == whole and set(stems["left_out"]) == damaged
    assert len(whole) == 3 * 7 and len(damaged) == 3 * 7 + 3 * 4 + 3 * 2 and message.count("the JPEG is cut off or damaged") > 24
    for kind in kinds:
        images = [tensors(tmp_path / "store" / stems["subjects"][f"{kind}_{name}"]["file"])[0]["image"]
                  for name in ("whole", "zeros_after", "words_after")]
        assert (images[0] == images[1]).all() and (images[0] == images[2]).all()


def test_several_images_in_one_file_are_refused(tmp_path):
    """Only the first would be read."""
    rng = numpy.random.default_rng(4)
    pages = [Image.fromarray(scene(rng, 60, 70)) for _ in range(3)]
    (tmp_path / "data").mkdir()
    for name, frames in [("stack.tif", pages), ("zipped.tif", pages[:2]), ("film.png", pages), ("one.tif", pages[:1]), ("single.png", pages[:1])]:
        options = {"compression": "tiff_adobe_deflate"} if name == "zipped.tif" else {}
        frames[0].save(tmp_path / "data" / name, save_all=True, append_images=frames[1:], **options)
    out = ["--out", tmp_path / "store", "--size", 32]
    says = ["stack.tif: a TIFF of 3 pages", "zipped.tif: a TIFF of 2 pages", "film.png: an animated PNG", "each page as a file of its own"]
    refused("preprocess", "--data", tmp_path / "data", *out, says=says)
    assert sorted(s["id"] for s in read_json(tmp_path / "store/index.json")["subjects"]) == ["one", "single"]


def test_the_fundus_is_cut_out_and_fills_the_square(tmp_path):
    rng = numpy.random.default_rng(1)
    height, width, radius, centre = 400, 600, 150, (210, 320)
    y, x = numpy.mgrid[:height, :width]
    inside = (y - centre[0]) ** 2 + (x - centre[1]) ** 2 <= radius**2
    pixels = numpy.where(inside[..., None], [160, 90, 50], rng.integers(0, 8, (height, width, 1))).astype(numpy.uint8)
    (tmp_path / "images").mkdir()
    Image.fromarray(pixels).save(tmp_path / "images" / "eye.png")
    pretext3d("preprocess", "--data", tmp_path / "images", "--out", tmp_path / "store", "--size", 100)
    image, _ = stored(tmp_path / "store", "eye")
    y, x = numpy.mgrid[:100, :100]
    away = numpy.hypot(y - 49.5, x - 49.5)
    assert numpy.abs(image[0][away < 47] - 160 / 255).max() < 1e-3
    assert image[0][away > 52].max() < 9 / 255


def test_grades_are_kept_and_what_does_not_fit_is_named(tmp_path):
    rng = numpy.random.default_rng(2)
    data = tmp_path / "data"
    (data / "train_images").mkdir(parents=True)
    for name in "abcde":
        Image.fromarray(scene(rng, 50, 50)).save(data / "train_images" / f"{name}.png")
    (data / "train_images" / "copy.png").write_bytes((data / "train_images" / "a.png").read_bytes())
    (data / "train_images" / "broken.png").write_bytes((data / "train_images" / "a.png").read_bytes()[:500])
    (data / "train.csv").write_text("id_code,diagnosis\na,0\nb,4\nc,2\nlost,1\nd,9\nbroken,1\n")
    out = ["--out", tmp_path / "store", "--size", 32]
    message = refused("preprocess", "--data", data, *out, says=["no image `lost`", "grade `9` of `d`", "broken.png", "3 scans cannot be used"])
    assert "2 without a class: copy, e" in message
    done = pretext3d("preprocess", "--data", data, *out, "--skip-bad")
    assert "2 subjects hold the same scan: a, copy" in done.stderr
    index = read_json(tmp_path / "store" / "index.json")
    assert {s["id"]: s.get("class") for s in index["subjects"]} == {"a": 0, "b": 4, "c": 2, "copy": None, "e": None}
    assert len(index["classes"]) == 5 and len(index["left_out"]) == 3
    # Of copies the one with a grade stays; where grades differ, which is right is not known.
    (data / "train_images" / "twin.png").write_bytes((data / "train_images" / "b.png").read_bytes())
    (data / "train.csv").write_text("id_code,diagnosis\na,0\nb,4\nc,2\nlost,1\nd,9\nbroken,1\ntwin,3\n")
    done = pretext3d("preprocess", "--data", data, *out, "--skip-bad")
    assert "2 subjects hold the same scan: b, twin; their classes or labels differ; --skip-duplicates" in done.stderr
    done = pretext3d("preprocess", "--data", data, *out, "--skip-bad", "--skip-duplicates")
    assert "copy: a copy of a" in done.stderr and "hold the same scan" not in done.stderr
    index = read_json(tmp_path / "store" / "index.json")
    assert {s["id"]: s.get("class") for s in index["subjects"]} == {"a": 0, "c": 2, "e": None}
    reasons = {left["id"]: left["reason"] for left in index["left_out"]}
    assert reasons["b"] == reasons["twin"] == "the same scan as b, twin, whose classes or labels differ"
    refused("preprocess", "--data", data, "--out", tmp_path / "other", "--protocol", "modern", says=["no spacing in millimetres"])


def test_idrid_as_it_is_distributed(tmp_path):
    """The same names on two sides, tables with spaces after names and empty columns; the test side is kept."""
    data, rng = tmp_path / "B. Disease Grading", numpy.random.default_rng(5)
    grades = {"a. Training Set": [0, 2, 4, 1, 3, 0], "b. Testing Set": [3, 1]}
    tables = dict(zip(grades, ["a. IDRiD_Disease Grading_Training Labels.csv", "b. IDRiD_Disease Grading_Testing Labels.csv"]))
    (data / "2. Groundtruths").mkdir(parents=True)
    for side, values in grades.items():
        folder = data / "1. Original Images" / side
        folder.mkdir(parents=True)
        lines = ["Image name,Retinopathy grade,Risk of macular edema ,,,,,,,,,"]
        for k, grade in enumerate(values, 1):
            Image.fromarray(scene(rng, 50, 60)).save(folder / f"IDRiD_{k:03}.jpg", quality=95)
            lines.append(f"IDRiD_{k:03},{grade},{k % 3},,,,,,,,,")
        (data / "2. Groundtruths" / tables[side]).write_text("\n".join(lines) + "\n")
    out = ["--out", tmp_path / "store", "--size", 32, "--overwrite"]
    pretext3d("preprocess", "--data", data, *out)
    index = read_json(tmp_path / "store" / "index.json")
    found = {s["id"]: (s["class"], s["split"]) for s in index["subjects"]}
    assert found == {f"train_IDRiD_{k:03}": (grade, None) for k, grade in enumerate(grades["a. Training Set"], 1)} | {
        f"test_IDRiD_{k:03}": (grade, "test") for k, grade in enumerate(grades["b. Testing Set"], 1)}
    assert len(index["classes"]) == 5
    # Another column of the same tables, named without the space.
    pretext3d("preprocess", "--data", data, *out, "--column", "Risk of macular edema,Retinopathy grade")
    index = read_json(tmp_path / "store" / "index.json")
    assert {s["id"]: s["values"]["Risk of macular edema"] for s in index["subjects"]} == {name: int(name[-1]) % 3 for name in found}
    assert {s["id"]: (s["values"]["Retinopathy grade"], s["split"]) for s in index["subjects"]} == found and "classes" not in index
    # Messidor's grades are on a scale of their own and asked for by name.
    messidor = tmp_path / "messidor"
    messidor.mkdir()
    for k in range(3):
        Image.fromarray(scene(rng, 50, 60)).save(messidor / f"2005_{k}.png")
    (messidor / "Annotation_Base11.csv").write_text(
        "Image name;Ophthalmologic department;Retinopathy grade;Risk of macular edema \n" + "".join(f"2005_{k}.tif;Service;{k};0\n" for k in range(3)))
    done = pretext3d("preprocess", "--data", messidor, *out)
    assert "Messidor's own scale, 0 to 3; --column" in done.stderr
    pretext3d("preprocess", "--data", messidor, *out, "--column", "Retinopathy grade")
    assert [s["values"] for s in read_json(tmp_path / "store/index.json")["subjects"]] == [{"Retinopathy grade": k} for k in range(3)]


def test_photographs_in_a_manifest(tmp_path):
    rng = numpy.random.default_rng(6)
    for name in "abc":
        Image.fromarray(scene(rng, 50, 60)).save(tmp_path / f"{name}.png")
    manifest = tmp_path / "list.csv"
    manifest.write_text("subject,photo,grade,split\n" + "".join(f"p{k}/{name},{name}.png,{k},{'test' if k else ''}\n" for k, name in enumerate("abc")))
    out = ["--out", tmp_path / "store", "--overwrite"]
    pretext3d("preprocess", "--data", manifest, *out, "--column", "grade")
    index = read_json(tmp_path / "store" / "index.json")
    assert index["channels"] == ["red", "green", "blue"] and index["subjects"][0]["shape"] == [1, 224, 224]
    assert [(s["id"], s["values"], s["split"]) for s in index["subjects"]] == [
        ("p0/a", {"grade": 0}, None), ("p1/b", {"grade": 1}, "test"), ("p2/c", {"grade": 2}, "test")]
    pretext3d("preprocess", "--data", tmp_path, "--out", tmp_path / "plain")
    plain = {s["id"]: s["fingerprint"] for s in read_json(tmp_path / "plain/index.json")["subjects"]}
    assert [s["fingerprint"] for s in index["subjects"]] == [plain[name] for name in "abc"]
    (tmp_path / "x.nii").write_bytes(b"")
    for text, says in [
        ("subject,photo,label\na,a.png,b.png\n", ["no labels of pixels"]),
        ("subject,one,two\na,a.png,b.png\n", ["a photograph is one file, found the columns one, two"]),
        ("subject,photo\na,a.png\nb,x.nii\n", ["a.png is a photograph", "x.nii is none"]),
        ("subject,photo\na,a.bmp\n", ["row 2, column `photo`"]),
    ]:
        manifest.write_text(text)
        refused("preprocess", "--data", manifest, "--out", tmp_path / "bad", says=says)


def test_stores_of_scans_have_no_classes(store):
    index = read_json(store / "index.json")
    assert "classes" not in index and all("class" not in subject for subject in index["subjects"])


@pytest.mark.slow
def test_a_two_dimensional_run_from_phantom_to_weights(tmp_path):
    data, store = tmp_path / "fundus", tmp_path / "store"
    pretext3d("phantom", "--kind", "fundus", "--subjects", 8, "--size", 128, "--out", data)
    table = rows(data / "train.csv")
    assert [row["id_code"] for row in table] == [f"fundus_{k:04}" for k in range(8)]
    pretext3d("preprocess", "--data", data, "--out", store, "--size", 64)
    classes = [subject["class"] for subject in read_json(store / "index.json")["subjects"]]
    assert classes == [int(row["diagnosis"]) for row in table]
    small = ["--filters", 4, "--levels", 3, "--batch-size", 4, "--epochs", 1, "--draws", 1, "--device", "cpu"]
    change = ["--mirror", 0.5, "--zoom", "0.9,1.1"]
    for task, more in [("rot", change), ("rpl,jig", change), ("cpc", []), ("exe", []), ("mae,rot", change), ("vf,simclr,gen", [])]:
        weights = tmp_path / "weights" / task.replace(",", "-")
        pretext3d("pretrain", "--data", store, "--task", task, *small, *more, "--out", tmp_path / task, "--weights", weights)
        described = read_json(f"{weights}.json")
        assert described["input"]["axes"] == "B, C, H, W" and described["input"]["channels"] == ["red", "green", "blue"]
    args = ["pretrain", "--data", store, *small, "--out", tmp_path / "bad"]
    refused(*args, "--task", "cpc", *change, says=["--mirror and --zoom are not for cpc"])
    refused(*args, "--task", "rot", "--mirror", 2, says=["--mirror", "0 to 1"])
    refused(*args, "--task", "rot", "--zoom", "1.1,0.9", says=["--zoom", "LO <= HI"])
