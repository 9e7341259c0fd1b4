"""The NIfTI reader and writer against nibabel: every data type, orientation and variant of the format, and bad files."""

import gzip

import nibabel as nib
import numpy as np
import pytest
from helpers import dump
from nibabel.affines import rescale_affine

SHAPE = (20, 33, 70)  # odd, unequal, and larger than the reader's copy tiles
TYPES = ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8"]


def oriented(codes, zooms=(0.8, 1.2, 2.5)):
    """An affine whose axes point to `codes`."""
    affine = nib.orientations.inv_ornt_aff(nib.orientations.axcodes2ornt(codes), SHAPE)
    affine = rescale_affine(affine, SHAPE, np.asarray(zooms, np.float32))
    affine[:3, 3] += [7.25, -11.5, 3.75]
    return affine


def turned(degrees, axis, zooms=(0.9, 1.1, 3.0), flip=(1, 1, 1)):
    """An oblique affine: a rotation about an arbitrary axis, with sheared columns where degrees is not a multiple of 90."""
    axis = np.asarray(axis, float) / np.linalg.norm(axis)
    matrix = nib.quaternions.angle_axis2mat(np.deg2rad(degrees), axis) @ np.diag(np.asarray(zooms) * flip)
    return nib.affines.from_matvec(matrix, [-30.5, 12.25, 4.0])


def voxels(rng, dtype, shape=SHAPE):
    dtype = np.dtype(dtype)
    if dtype.kind == "f":
        return rng.normal(scale=1000, size=shape).astype(dtype)
    info = np.iinfo(dtype)
    return rng.integers(info.min, info.max, size=shape, dtype=dtype, endpoint=True)


def cases(folder):
    """Writes the files; returns their paths."""
    rng = np.random.default_rng(5)
    files = []

    def save(name, data, affine, kind=nib.Nifti1Image, edit=None):
        image = kind(data, affine, dtype=data.dtype)
        if edit:
            edit(image)
        nib.save(image, folder / name)
        files.append(folder / name)
        return image

    small = (5, 6, 7)
    for dtype in TYPES:
        for order, kind in [("<", nib.Nifti1Image), (">", nib.Nifti1Image), ("<", nib.Nifti2Image), (">", nib.Nifti2Image)]:
            name = f"{dtype}_{'le' if order == '<' else 'be'}_{kind.__name__}.nii"
            header = kind.header_class(endianness=order)
            header.set_data_dtype(np.dtype(dtype).newbyteorder(order))
            data = voxels(rng, dtype, small)
            image = kind(data, oriented("LAS"), header)
            image.set_data_dtype(np.dtype(dtype))
            nib.save(image, folder / name)
            assert nib.load(folder / name).header.endianness == order
            files.append(folder / name)
    for codes in ["RAS", "LAS", "LIA", "PSR", "ASL", "IRP", "SAR", "SRA"]:
        save(f"{codes}.nii.gz", voxels(rng, "i2"), oriented(codes))
    for n in range(12):
        affine = turned(rng.uniform(0, 360), rng.normal(size=3), flip=rng.choice([-1, 1], size=3))
        save(f"oblique{n}.nii", voxels(rng, "f4"), affine)
        affine[:3, :3] += rng.uniform(-0.4, 0.4, size=(3, 3))
        save(f"sheared{n}.nii", voxels(rng, "f4", small), affine)

    def only_qform(image):
        image.set_qform(image.affine, code=1)
        image.set_sform(None, code=0)

    for n in range(6):
        affine = turned(rng.uniform(0, 360), rng.normal(size=3), flip=rng.choice([-1, 1], size=3))
        save(f"qform{n}.nii", voxels(rng, "i2", small), affine, edit=only_qform)
    save("qform180.nii", voxels(rng, "i2", small), turned(180, [1, 0, 0]), edit=only_qform)
    save("qform_nifti2.nii", voxels(rng, "i2", small), turned(50, [1, 2, 3]), nib.Nifti2Image, edit=only_qform)

    def no_form(image):
        image.set_qform(None, code=0)
        image.set_sform(None, code=0)
        image.header.set_zooms((0.7, 1.3, 2.9))

    save("no_form.nii", voxels(rng, "i2"), np.eye(4), edit=no_form)

    def both_forms(image):
        image.set_qform(oriented("RAS"), code=1)
        image.set_sform(oriented("PSR"), code=2)

    save("both_forms.nii", voxels(rng, "i2"), oriented("PSR"), edit=both_forms)

    for n, (slope, inter) in enumerate([(2.5, -1024), (0.001, 0), (1, 3), (0, 17), (float("nan"), 0)]):
        for dtype in ["u1", "i2", "f4"]:
            name = f"slope{n}_{dtype}.nii"
            save(name, voxels(rng, dtype, small), oriented("LAS"))
            raw = bytearray((folder / name).read_bytes())
            raw[112:120] = np.array([slope, inter], "<f4").tobytes()
            (folder / name).write_bytes(raw)

    save("4d.nii.gz", voxels(rng, "i2", (*SHAPE, 3)), oriented("LIA"))
    save("4d_one.nii.gz", voxels(rng, "i2", (*small, 1)), oriented("LIA"))
    save("5d_ones.nii.gz", voxels(rng, "i2", (*small, 2, 1)), oriented("PSR"))
    save("one_slice.nii.gz", voxels(rng, "i2", (9, 8, 1)), oriented("LPS"))
    save("one_wide.nii.gz", voxels(rng, "i2", (1, 8, 3)), oriented("PSR"))
    for ending in ["hdr", "img"]:
        save(f"pair_{ending}.img", voxels(rng, "i2"), oriented("PSR"), nib.Nifti1Pair)
        files[-1] = folder / f"pair_{ending}.{ending}"
        save(f"pair2_{ending}.img.gz", voxels(rng, "f4", small), oriented("LIA"), nib.Nifti2Pair)
        files[-1] = folder / f"pair2_{ending}.{ending}.gz"

    # In several gzip members, and with an extension before the voxels.
    source = (folder / "RAS.nii.gz").read_bytes()
    plain = gzip.decompress(source)
    (folder / "members.nii.gz").write_bytes(gzip.compress(plain[:9999]) + gzip.compress(plain[9999:]))
    files += [folder / "members.nii.gz"]
    extended = nib.Nifti1Image(voxels(rng, "i2", small), oriented("LAS"))
    extended.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"x" * 300))
    nib.save(extended, folder / "extension.nii")
    files.append(folder / "extension.nii")
    holes = voxels(rng, "f4", small)
    holes[0, 0, :4] = [np.nan, np.inf, -np.inf, 1e30]
    save("holes.nii", holes, oriented("LAS"))
    assert len(set(files)) == len(files)
    return files


def with_channels_first(array):
    array = array.reshape(array.shape[:4]) if array.ndim > 4 else array
    return array[None] if array.ndim == 3 else np.moveaxis(array, 3, 0)


def load(path):
    """What nibabel makes of a file: channels first, float32, affine, and the same in RAS+."""
    image = nib.load(path)
    ras = nib.as_closest_canonical(image)
    values = [with_channels_first(np.asarray(i.dataobj, dtype=np.float64)).astype(np.float32) for i in (image, ras)]
    return image, values[0], ras.affine, values[1]


@pytest.fixture(scope="module")
def dumped(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nifti")
    files = cases(folder)
    return list(zip(files, dump(files, folder / "out")))


def test_reads_what_nibabel_reads(dumped):
    assert len(dumped) > 90
    for path, (line, stem) in dumped:
        assert "error" not in line, line
        image, values, ras_affine, ras_values = load(path)
        assert tuple(line["shape"]) == values.shape, path
        assert line["header_shape"] + [line["channels"]] == [*values.shape[1:], values.shape[0]], path
        np.testing.assert_allclose(line["affine"], image.affine, rtol=1e-12, atol=1e-12, err_msg=str(path))
        np.testing.assert_allclose(line["spacing"], nib.affines.voxel_sizes(image.affine), rtol=1e-12, err_msg=str(path))
        native = np.fromfile(f"{stem}.native.f32", "<f4").reshape(values.shape)
        np.testing.assert_array_equal(native, values, err_msg=str(path))
        assert line["non_finite"] == np.count_nonzero(~np.isfinite(values)), path
        assert line["codes"] == "".join(nib.aff2axcodes(image.affine)), path
        assert tuple(line["ras_shape"]) == ras_values.shape, path
        np.testing.assert_allclose(line["ras_affine"], ras_affine, rtol=1e-12, atol=1e-12, err_msg=str(path))
        ras = np.fromfile(f"{stem}.ras.f32", "<f4").reshape(ras_values.shape)
        np.testing.assert_array_equal(ras, ras_values, err_msg=str(path))


def test_nibabel_reads_what_is_written(dumped):
    for path, (_, stem) in dumped:
        image, values, _, _ = load(path)
        copy = nib.load(f"{stem}.copy.nii.gz")
        scaled = (image.dataobj.slope, image.dataobj.inter) != (1, 0)
        stored = image.get_data_dtype().newbyteorder("<")
        kept = stored if stored in (np.dtype("u1"), np.dtype("<i2")) and not scaled else np.dtype("<f4")
        assert copy.get_data_dtype() == kept, path
        np.testing.assert_array_equal(with_channels_first(np.asarray(copy.dataobj)), values, err_msg=str(path))
        scale = np.abs(image.affine).max()
        np.testing.assert_allclose(copy.affine, image.affine, atol=1e-6 * scale, err_msg=str(path))
        assert copy.header.get_xyzt_units()[0] == "mm"
        spacing = nib.affines.voxel_sizes(image.affine)
        np.testing.assert_allclose(copy.header.get_zooms()[:3], spacing, rtol=1e-6, err_msg=str(path))
        assert copy.header["sform_code"] == 1 and copy.header["qform_code"] == 1
        # The qform cannot hold shears; nibabel strips them in the same way.
        expected = nib.Nifti1Header()
        expected.set_qform(image.affine, strip_shears=True)
        np.testing.assert_allclose(copy.get_qform(), expected.get_qform(), atol=2e-6 * scale, err_msg=str(path))


# What describes the voxels themselves, and may differ between a scan and a label of it.
OF_VOXELS = {"magic", "vox_offset", "datatype", "bitpix", "scl_slope", "scl_inter", "cal_max", "cal_min"}
OF_VOXELS |= {"intent_code", "intent_name", "intent_p1", "intent_p2", "intent_p3"}


def test_labels_and_probabilities_keep_the_scans_header(dumped):
    for path, (_, stem) in dumped:
        image = nib.load(path)
        shape = image.shape if np.prod(image.shape[3:]) == 1 else image.shape[:3]
        classes = np.arange(np.prod(shape)).reshape(shape) % 3
        halves = np.stack([classes / 2, -classes / 2], -1).reshape(*image.shape[:3], 2)
        expected = {
            "bytes.nii": ("u1", np.array([0, 1, 4])[classes]),
            "shorts.nii.gz": ("i2", np.array([0, -5, 300])[classes]),
            "floats.nii.gz": ("f4", halves),
        }
        for name, (dtype, values) in expected.items():
            found = nib.load(f"{stem}.{name}")
            assert isinstance(image, type(found)) or isinstance(image, nib.Nifti1Pair), path
            assert found.header.endianness == image.header.endianness, path
            assert found.get_data_dtype().newbyteorder("=") == np.dtype(dtype), path
            assert found.shape == values.shape, path
            np.testing.assert_array_equal(np.asarray(found.dataobj), values, err_msg=f"{path} {name}")
            np.testing.assert_array_equal(found.affine, image.affine, err_msg=str(path))
            assert nib.aff2axcodes(found.affine) == nib.aff2axcodes(image.affine)
            assert (found.dataobj.slope, found.dataobj.inter) == (1, 0)
            assert len(found.header.extensions) == 0
            for field in image.header:
                if field not in OF_VOXELS and (field != "dim" or found.shape == image.shape):
                    before, after = image.header[field], found.header[field]
                    assert before.tobytes() == after.tobytes(), f"{path} {name}: {field} is {after}, was {before}"


def test_compression_is_recognised_by_content(tmp_path):
    data = voxels(np.random.default_rng(7), "i2")
    nib.save(nib.Nifti1Image(data, oriented("RAS")), tmp_path / "scan.nii.gz")
    compressed = (tmp_path / "scan.nii.gz").read_bytes()
    (tmp_path / "compressed.nii").write_bytes(compressed)
    (tmp_path / "plain.nii.gz").write_bytes(gzip.decompress(compressed))
    for line, stem in dump([tmp_path / "compressed.nii", tmp_path / "plain.nii.gz"], tmp_path / "out"):
        assert "error" not in line, line
        np.testing.assert_array_equal(np.fromfile(f"{stem}.native.f32", "<f4").reshape(SHAPE), data)


def test_odd_files_are_read_as_nibabel_reads_them(tmp_path):
    """But for the unit of length, which nibabel leaves to the user."""
    rng, shape = np.random.default_rng(8), (8, 9, 10)
    data = voxels(rng, "i2", (*shape, 2))
    nib.save(nib.Nifti1Image(data[..., 0], turned(20, [1, 2, 3])), tmp_path / "good.nii")
    nib.save(nib.Nifti2Image(data[..., 0], turned(20, [1, 2, 3])), tmp_path / "good2.nii")
    good, good2 = ((tmp_path / name).read_bytes() for name in ("good.nii", "good2.nii"))
    # Path, what it holds, and how many millimetres its unit is.
    files = []

    def odd(name, *edits, base=good, tail=b"", unit=1):
        for at, kind, *values in edits:
            replacement = np.array(values, kind).tobytes()
            base = base[:at] + replacement + base[at + len(replacement) :]
        (tmp_path / name).write_bytes(gzip.compress(base) + tail if name.endswith(".gz") else base + tail)
        files.append((tmp_path / name, unit))

    qform, neither = (252, "<i2", 1, 0), (252, "<i2", 0, 0)
    for name, spacing in [("zero", [0, 0, 0]), ("minus", [-1, -1.25, 1.5]), ("nan", [np.nan, 1, 1])]:
        odd(f"pixdim_{name}_under_sform.nii", (80, "<f4", *spacing))
    for codes in (qform, neither):
        odd(f"minus{codes[2]}.nii", (80, "<f4", -1, 1.25, -1.5), codes)
    for qfac in (-1, 0, 1):
        odd(f"qfac{qfac}.nii", (76, "<f4", qfac), qform)
    for code in (-1, 9):
        odd(f"undefined_sform{code}.nii", (252, "<i2", 1, code))
        odd(f"undefined_both{code}.nii", (252, "<i2", code, code))
    for name, slope in [("zero", 0), ("nan", np.nan), ("inf", np.inf)]:
        odd(f"slope_{name}.nii", (112, "<f4", slope, np.nan))
    odd("intent.nii", (68, "<i2", 1007))
    for endian, name in [("<", "little"), (">", "big")]:
        header = nib.Nifti1Header(endianness=endian)
        header.set_data_dtype(np.dtype("i2").newbyteorder(endian))
        nib.save(nib.Nifti1Image(data[..., 0], turned(20, [1, 2, 3]), header), tmp_path / f"no_size_{name}.nii")
        odd(f"no_size_{name}.nii", (0, "<i4", 0), base=(tmp_path / f"no_size_{name}.nii").read_bytes())
    odd("dim4_beyond_dim0.nii", (40, "<i2", 3, *shape, 7, 0, 0, 0))
    for name, tail in [("zeros.nii", bytes(512)), ("words.nii", b"padding"), ("zeros.nii.gz", bytes(512)), ("words.nii.gz", b"padding")]:
        odd(f"tail_{name}", tail=tail)
    odd("second_member.nii.gz", tail=gzip.compress(bytes(300)) + bytes(100))
    for unit, factor in [(0, 1), (1, 1000), (2, 1), (3, 0.001), (2 | 8, 1), (3 | 16, 0.001)]:
        odd(f"unit{unit}.nii", (123, "u1", unit), unit=factor)
        odd(f"unit{unit}_qform.nii", (123, "u1", unit), qform, unit=factor)
        odd(f"unit{unit}_2.nii", (500, "<i4", unit), base=good2, unit=factor)
    for name, axes in [("vector.nii", (*shape, 1, 2)), ("vector6.nii.gz", (*shape, 1, 1, 2, 1))]:
        nib.save(nib.Nifti1Image(data.reshape(axes, order="F"), oriented("PIL")), tmp_path / name)
        files.append((tmp_path / name, 1))
    # A slice is one voxel deep, whatever its header says of the third axis.
    slice_ = good[:352] + data[..., 0, 0].tobytes("F")
    for codes in ((252, "<i2", 0, 1), qform, neither):
        odd(f"slice{codes[2:]}.nii", (40, "<i2", 2, 8, 9, 1, 0, 0), (88, "<f4", 0 if codes == neither else 3), codes, base=slice_)
    # Colours lie side by side; what shines through does not count.
    colours = rng.integers(0, 256, (*shape, 4), dtype=np.uint8)
    for code, n in [(128, 3), (2304, 4)]:
        raw = np.moveaxis(colours[..., :n], 3, 0).tobytes("F")
        odd(f"rgb{n}.nii.gz", (70, "<i2", code, 8 * n), base=good[:352] + raw)
    for (path, unit), (line, stem) in zip(files, dump([path for path, _ in files], tmp_path / "out"), strict=True):
        assert "error" not in line, line
        image = nib.load(path)
        values = np.asarray(image.dataobj)
        if values.dtype.names:
            values = np.stack([values[name] for name in "RGB"], -1)
        values = values.squeeze().astype(np.float32)
        values = values[..., None] if values.ndim == 2 else values
        values = values[None] if values.ndim == 3 else np.moveaxis(values, 3, 0)
        affine = np.diag([unit, unit, unit, 1]) @ image.affine
        np.testing.assert_allclose(line["affine"], affine, rtol=1e-12, atol=1e-12, err_msg=str(path))
        native = np.fromfile(f"{stem}.native.f32", "<f4").reshape(values.shape)
        np.testing.assert_array_equal(native, values, err_msg=str(path))
        # A prediction has the scan's own header.
        predicted = nib.load(f"{stem}.bytes.nii")
        np.testing.assert_array_equal(predicted.affine, image.affine, err_msg=str(path))
        assert predicted.shape[:3] == (shape if values.shape[3] > 1 else shape[:2]) and predicted.header.get_xyzt_units()[0] == image.header.get_xyzt_units()[0]


def test_bad_files_are_named_with_what_was_expected_and_found(tmp_path):
    rng = np.random.default_rng(6)
    nib.save(nib.Nifti1Image(voxels(rng, "i2", (8, 9, 10)), oriented("LAS")), tmp_path / "good.nii")
    good = (tmp_path / "good.nii").read_bytes()
    assert "error" not in dump([tmp_path / "good.nii"], tmp_path / "out")[0][0]
    expected = {}

    def bad(name, content, *words):
        (tmp_path / name).write_bytes(content)
        expected[tmp_path / name] = words

    def edited(at, kind, *values, base=good):
        replacement = np.array(values, kind).tobytes()
        return base[:at] + replacement + base[at + len(replacement) :]

    bad("empty.nii", b"", "empty file")
    bad("empty.nii.gz", b"", "empty file")
    bad("text.nii", b"subject,age\n1,54\n" * 100, "not a NIfTI file", "subject,age", "348 or 540")
    bad("text.nii.gz", b"subject,age\n1,54\n" * 100, "not a NIfTI file")
    bad("short_header.nii", good[:200], "200 bytes of header", "348")
    bad("short.nii", good[:-7], "expected 1440 bytes", "[8, 9, 10]", "Int16", "found 1433")
    bad("no_voxels.nii", good[:352], "expected 1440 bytes", "found 0")
    packed = gzip.compress(good)
    bad("truncated.nii.gz", packed[: len(packed) // 2], "expected 1440 bytes", "reading failed after")
    bad("cut_checksum.nii.gz", packed[:-3], "reading failed at their end")
    bad("wrong_checksum.nii.gz", packed[:-8] + bytes(4) + packed[-4:], "reading failed at their end")
    bad("larger_header.nii", edited(42, "<i2", 80), "expected 14400 bytes", "found 1440")
    bad("terabytes.nii", edited(40, "<i2", 4, 32767, 32767, 32767, 64), "found 1440")
    bad("terabytes.nii.gz", gzip.compress(edited(40, "<i2", 4, 32767, 32767, 32767, 64)), "found 1440")
    bad("overflow.nii", edited(40, "<i2", 7, *[32767] * 7), "7D file")
    header2 = nib.Nifti2Image(voxels(rng, "i2", (8, 9, 10)), oriented("LAS"))
    nib.save(header2, tmp_path / "good2.nii")
    good2 = (tmp_path / "good2.nii").read_bytes()
    bad("overflow2.nii", edited(16, "<i8", 4, *[2**40] * 4, base=good2), "overflow")
    bad("exabytes2.nii", edited(16, "<i8", 3, 2**40, 2**10, 2**10, base=good2), "found 1440")
    bad("newlines2.nii", good2.replace(b"\r\n\x1a\n", b"\n\x1a\n\n", 1), "newline check", "as text")
    bad("negative.nii", edited(42, "<i2", -8), "-8", "expected positive")
    bad("zero_extent.nii", edited(42, "<i2", 0), "0", "expected positive")
    bad("no_axes.nii", edited(40, "<i2", 0), "dim[0]", "is 0")
    bad("1d.nii", edited(40, "<i2", 1), "1D file", "[8]", "expected 3D, 2D")
    bad("5d.nii", edited(40, "<i2", 5, 8, 9, 1, 5, 2), "5D file", "expected 3D")
    for n, spacing in enumerate([0, np.nan, np.inf]):
        for axis in range(3):
            # Where nothing else says how large a voxel is.
            for code, base in [(0, edited(252, "<i2", 0, 0)), (1, edited(252, "<i2", 1, 0))]:
                says = f"pixdim[{axis + 1}] is", "expected a positive"
                bad(f"spacing{n}{axis}{code}.nii", edited(80 + 4 * axis, "<f4", spacing, base=base), *says)
    bad("units.nii", edited(123, "u1", 5), "xyzt_units", "unit of length 5")
    bad("singular.nii", edited(280, "<f4", *[0] * 12), "sform", "singular")
    bad("nan_sform.nii", edited(280, "<f4", np.nan), "sform", "singular")
    no_sform = edited(252, "<i2", 1, 0)
    bad("quaternion.nii", edited(256, "<f4", 0.9, 0.9, 0, base=no_sform), "quaternion", "longer than 1")
    bad("nan_offset.nii", edited(268, "<f4", np.nan, base=no_sform), "qform", "singular")
    bad("offset.nii", edited(108, "<f4", 100), "vox_offset is 100", "from 352")
    bad("far_offset.nii", edited(108, "<f4", 1e9), "before its voxels begin")
    bad("nan_vox_offset.nii", edited(108, "<f4", np.nan), "vox_offset is NaN")
    bad("intercept.nii", edited(112, "<f4", 2, np.inf), "scl_inter is inf")
    for code, name in [(32, "complex64"), (1536, "float128"), (1792, "complex128"), (7, "unknown")]:
        bad(f"type{code}.nii", edited(70, "<i2", code), name, f"code {code}")
    bad("cifti.nii", edited(504, "<i4", 3006, base=good2), "a CIFTI file", "3006")
    for code, n in [(128, 3), (2304, 4)]:
        bad(f"rgb{n}_4d.nii", edited(70, "<i2", code, base=edited(40, "<i2", 4, 8, 9, 10, 5)), "RGB voxels in a file of 5 volumes")
    bad("rgb_short.nii", edited(70, "<i2", 128), "expected 2160 bytes", "x 3 Uint8", "found 1440")
    bad("analyze.nii", edited(344, "u1", 0, 0, 0, 0), ".img file beside it")
    bad("magic.nii", edited(344, "u1", *b"nope"), 'magic "nope"')
    bad("magic_pair.nii", edited(344, "u1", *b"ni1\0"), ".img file")
    bad("lonely.hdr", edited(344, "u1", *b"ni1\0"), "lonely.img", "found neither")
    bad("headless.img", b"\0" * 100, "headless.hdr", "found neither")
    (tmp_path / "folder.nii").mkdir()
    expected[tmp_path / "folder.nii"] = ("directory",)
    expected[tmp_path / "absent.nii"] = ("No such file",)
    for path, (line, _) in zip(expected, dump(list(expected), tmp_path / "out")):
        assert "error" in line, f"{path.name} was read"
        for word in (str(path), *expected[path]):
            assert word in line["error"], f"{path.name}: {word!r} not in {line['error']!r}"
