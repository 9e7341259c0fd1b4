"""NRRD, MetaImage, MGH and ANALYZE against SimpleITK and nibabel: types, byte orders, directions, encodings, bad files."""

import bz2
import gzip
import json
import zlib

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from helpers import dump, pretext3d, read_json, refused, tensors

SHAPE = (7, 6, 5)
RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
TYPES = ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8"]
NRRD_TYPES = dict(zip(TYPES, ["uchar", "int8", "ushort", "short", "uint", "int32", "uint64", "long long int", "float", "double"]))
META_TYPES = dict(zip(TYPES, ["UCHAR", "CHAR", "USHORT", "SHORT", "UINT", "LONG", "ULONG_LONG", "LONG_LONG", "FLOAT", "DOUBLE"]))


def voxels(rng, dtype, shape=SHAPE):
    dtype = np.dtype(dtype)
    if dtype.kind == "f":
        return rng.normal(scale=1000, size=shape).astype(dtype)
    # Larger integers are not exact in float32.
    low, high = max(np.iinfo(dtype).min, -(2**24)), min(np.iinfo(dtype).max, 2**24)
    return rng.integers(low, high, size=shape, dtype=dtype, endpoint=True)


def axes(rng, n):
    """Orthonormal directions: every second one a mirror image."""
    matrix, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    return matrix * (1 if n % 2 else [-1, 1, 1])


def permuted(n):
    """Directions along the axes in the n-th order and signs."""
    order = [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)][n % 6]
    return np.eye(3)[:, order] * [1 - 2 * (n >> a & 1) for a in range(3)]


def of_itk(path):
    """What SimpleITK makes of a file: voxels [C, i, j, k], and the affine in RAS+."""
    image = sitk.ReadImage(str(path))
    array = sitk.GetArrayFromImage(image)
    if image.GetNumberOfComponentsPerPixel() > 1:
        array = np.moveaxis(array, -1, 0)
    elif array.ndim < 4:
        array = array[None]
    array = array.transpose(0, *range(array.ndim - 1, 0, -1))
    dims = min(image.GetDimension(), 3)
    affine = np.eye(4)
    direction = np.reshape(image.GetDirection(), (image.GetDimension(), -1))[:dims, :dims]
    affine[:dims, :dims] = direction * image.GetSpacing()[:dims]
    affine[:dims, 3] = image.GetOrigin()[:dims]
    return array.reshape(*array.shape[: dims + 1], *[1] * (3 - dims)), RAS @ affine


def itk_image(array, direction, spacing=(0.8, 1.25, 2.5), origin=(-30.5, 12.25, 4.125), vector=False):
    """An image of an array [i, j, k], or [C, i, j, k] of vectors."""
    spatial = np.moveaxis(array, 0, -1) if vector else array
    spatial = spatial.transpose(2, 1, 0, 3) if vector else spatial.T
    image = sitk.GetImageFromArray(np.ascontiguousarray(spatial), isVector=vector)
    image.SetDirection(np.asarray(direction).ravel().tolist())
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    return image


def nrrd(path, array, *, encoding="raw", endian="little", lines=(), directions="(-0.8,0,0) (0,0,1.25) (0,2.5,0)", space="space: LPS",
         origin="(1,-2,3)", sizes=None, before=b"", data=None, blank=b"\n"):
    """Writes an NRRD by hand: `array` with the fastest axis first."""
    dtype = array.dtype.newbyteorder("<" if endian == "little" else ">")
    raw = array.astype(dtype).tobytes("F")
    packed = {
        "raw": lambda: raw,
        "gzip": lambda: gzip.compress(raw),
        "bzip2": lambda: bz2.compress(raw),
        "ascii": lambda: b"\n".join(b" ".join(str(v).encode() for v in row) for row in array.ravel("F").reshape(-1, array.shape[0])),
        "hex": lambda: raw.hex(" ").encode(),
    }[encoding]()
    header = ["NRRD0004", "# by hand", f"type: {NRRD_TYPES[array.dtype.str[1:]]}", f"dimension: {array.ndim}", space,
              f"sizes: {' '.join(map(str, array.shape if sizes is None else sizes))}", f"encoding: {encoding}", f"endian: {endian}",
              *([f"space directions: {directions}"] if directions else []), *([f"space origin: {origin}"] if origin else []), *lines]
    header += [f"data file: {data}"] if data else []
    text = "".join(f"{line}\n" for line in header if line).encode()
    path.write_bytes(text if data else text + blank + before + packed)
    return packed


def meta(path, array, *, big=False, lines=(), matrix=(0, 1, 0, -1, 0, 0, 0, 0, 1), dims=None, data="LOCAL", packed=None):
    """Writes a MetaImage by hand."""
    raw = array.astype(array.dtype.newbyteorder(">" if big else "<")).tobytes("F")
    header = ["ObjectType = Image", f"NDims = {array.ndim if dims is None else len(dims)}", f"BinaryDataByteOrderMSB = {big}",
              f"TransformMatrix = {' '.join(map(str, matrix))}", "Offset = 5 -6.5 7", "ElementSpacing = 0.5 1.5 2",
              f"DimSize = {' '.join(map(str, array.shape if dims is None else dims))}", f"ElementType = MET_{META_TYPES[array.dtype.str[1:]]}", *lines,
              f"ElementDataFile = {data}"]
    text = "".join(f"{line}\n" for line in header).encode()
    path.write_bytes(text + (packed or raw) if data == "LOCAL" else text)
    return raw


def check(files, folder, expected):
    """Every file as another reader has it; `expected`: from a path to its voxels [C, i, j, k] and affine."""
    for path, (line, stem) in zip(files, dump(files, folder), strict=True):
        assert "error" not in line, line
        values, affine = expected(path)
        assert tuple(line["shape"]) == values.shape, path
        np.testing.assert_allclose(line["affine"], affine, rtol=1e-6, atol=1e-6, err_msg=str(path))
        native = np.fromfile(f"{stem}.native.f32", "<f4").reshape(values.shape)
        np.testing.assert_array_equal(native, values.astype(np.float32), err_msg=str(path))
        yield path, line, stem


def test_files_of_itk(tmp_path):
    """NRRD and MetaImage as SimpleITK writes them; and what is written in their space lies where they do."""
    rng, files = np.random.default_rng(1), []
    for n in range(24):
        direction = permuted(n) if n < 12 else axes(rng, n)
        image = itk_image(voxels(rng, TYPES[n % 10]), direction, spacing=rng.uniform(0.3, 4, 3), origin=rng.normal(scale=90, size=3))
        for ending in ["nrrd", "mha", "nhdr", "mhd"][n % 2 :: 2]:
            files.append(tmp_path / f"{n}.{ending}")
            sitk.WriteImage(image, str(files[-1]), useCompression=n % 3 == 0)
    vectors = itk_image(voxels(rng, "f4", (3, *SHAPE)), axes(rng, 0), vector=True)
    rgb = sitk.Cast(itk_image(voxels(rng, "u1", (3, *SHAPE)), axes(rng, 1), vector=True), sitk.sitkVectorUInt8)
    slices = sitk.GetImageFromArray(voxels(rng, "i2", (9, 8)).T)
    slices.SetSpacing([0.5, 0.75])
    slices.SetOrigin([3, -4])
    series = sitk.JoinSeries([itk_image(voxels(rng, "i2"), np.eye(3)) for _ in range(4)])
    for name, image in [("vectors", vectors), ("rgb", rgb), ("slice", slices), ("series", series)]:
        for ending in ["nrrd", "mha"]:
            files.append(tmp_path / f"{name}.{ending}")
            sitk.WriteImage(image, str(files[-1]))
    for path, line, stem in check(files, tmp_path / "out", of_itk):
        ending = ".nrrd" if path.suffix in [".nrrd", ".nhdr"] else ".mha"
        assert (line["format"], line["written"]) == ({".nrrd": "NRRD", ".mha": "MetaImage"}[ending], ending)
        scan, channels = sitk.ReadImage(str(path)), line["channels"]
        classes = np.arange(np.prod(line["header_shape"])).reshape(line["header_shape"]) % 3
        for kind, values in [("bytes", [0, 1, 4]), ("shorts", [0, -5, 300])]:
            label = sitk.ReadImage(f"{stem}.{kind}{ending}")
            assert label.GetNumberOfComponentsPerPixel() == 1
            if scan.GetDimension() < 4:
                # The same place in every number.
                for part in ["GetSize", "GetSpacing", "GetOrigin", "GetDirection"]:
                    np.testing.assert_allclose(getattr(label, part)(), getattr(scan, part)(), rtol=0, atol=1e-12, err_msg=f"{path} {part}")
                overlay = sitk.LabelOverlay(sitk.Cast(sitk.VectorIndexSelectionCast(scan, 0) if channels > 1 else scan, sitk.sitkUInt8), sitk.Cast(label, sitk.sitkUInt8))
                assert overlay.GetSize() == scan.GetSize()
            found, affine = of_itk(f"{stem}.{kind}{ending}")
            np.testing.assert_array_equal(found[0], np.array(values)[classes])
            np.testing.assert_allclose(affine, line["affine"], rtol=1e-9, atol=1e-9)
        floats, affine = of_itk(f"{stem}.floats{ending}")
        np.testing.assert_array_equal(floats, [classes / 2, -classes / 2])
        np.testing.assert_allclose(affine, line["affine"], rtol=1e-9, atol=1e-9)


def test_nrrd_as_others_write_it(tmp_path):
    rng, files = np.random.default_rng(2), []

    def put(name, array, **how):
        files.append(tmp_path / name)
        return nrrd(files[-1], array, **how)

    for n, encoding in enumerate(["raw", "gzip", "ascii", "hex"]):
        for endian in ["little", "big"]:
            put(f"{encoding}_{endian}.nrrd", voxels(rng, TYPES[2 + n]), encoding=encoding, endian=endian)
    for dtype in TYPES:
        put(f"{dtype}.nrrd", voxels(rng, dtype), endian="big")
        put(f"{dtype}_text.nrrd", voxels(rng, dtype), encoding="ascii")
    spaces = ["right-anterior-superior", "RAS", "left-anterior-superior", "LAS", "left-posterior-superior", "LPS", "Left-Posterior-Superior",
              "scanner-xyz", "3D-right-handed"]
    for n, space in enumerate(spaces):
        put(f"space{n}.nrrd", voxels(rng, "i2"), space=f"space: {space}", directions="(0.5, 0.1,0) (-0.2,1.5,0)(0,0.3,2)")
    # ITK does not unpack bzip2, but teem does.
    twins = {}
    for endian in ["little", "big"]:
        array = voxels(rng, "i4")
        put(f"bzip2_{endian}.nrrd", array, encoding="bzip2", endian=endian)
        twins[files[-1]] = tmp_path / f"twin_{endian}.nrrd"
        nrrd(twins[files[-1]], array, encoding="raw", endian=endian)
    put("dimension.nrrd", voxels(rng, "i2"), space="space dimension: 3")
    put("no_space.nrrd", voxels(rng, "i2"), space="", directions="", origin="", lines=["spacings: 0.5 1.5 2.5"])
    put("nothing.nrrd", voxels(rng, "i2"), space="", directions="", origin="")
    put("key_value.nrrd", voxels(rng, "i2"), lines=["Segment0_Name:=liver: left", "kinds: domain domain domain", "#space: RAS", "content: a:b"])
    put("windows.nrrd", voxels(rng, "i2"), blank=b"\r\n", lines=["kinds: domain domain domain\r"])
    put("vector_first.nrrd", voxels(rng, "f4", (3, *SHAPE)), directions="none (1,0,0) (0,2,0) (0,0,3)", lines=["kinds: vector domain domain domain"])
    put("list_first.nrrd", voxels(rng, "i2", (6, *SHAPE)), directions="none (1,0,0) (0,2,0) (0,0,3)", lines=["kinds: list space space space"])
    put("list_last.nrrd", voxels(rng, "i2", (*SHAPE, 4)), directions="(1,0,0) (0,2,0) (0,0,3) none", lines=["kinds: domain domain domain list"])
    put("nan_last.nrrd", voxels(rng, "i2", (*SHAPE, 4)), directions="(1,0,0) (0,2,0) (0,0,3) (nan,nan,nan)", lines=["kinds: domain domain domain list"])
    put("kinds_alone.nrrd", voxels(rng, "u1", (3, *SHAPE)), space="", directions="", origin="", lines=["kinds: RGB-color domain domain domain"])
    put("skip.nrrd", voxels(rng, "i2"), before=b"a line\nanother\n1234", lines=["line skip: 2", "byte skip: 4"])
    # In other files than the header's: one, in other folders, a list, a series, at the end of one, compressed.
    (tmp_path / "sub").mkdir()
    whole = voxels(rng, "i2", (4, 6, 6))
    for name, data, encoding, lines, parts in [
        ("one.nhdr", "sub/one.raw", "raw", [], {"sub/one.raw": whole}),
        ("packed.nhdr", "packed.raw.gz", "gzip", [], {"packed.raw.gz": whole}),
        ("end.nhdr", "end.raw", "raw", ["byte skip: -1"], {"end.raw": whole}),
        ("list.nhdr", "LIST 3\nsub/a.raw\nb.raw\nsub/c.raw", "raw", [], dict(zip(["sub/a.raw", "b.raw", "sub/c.raw"], np.split(whole, 3, 2)))),
        ("series.nhdr", "s%02d.raw 2 6 2 3", "raw", [], dict(zip(["s02.raw", "s04.raw", "s06.raw"], np.split(whole, 3, 2)))),
        ("series_packed.nhdr", "p%d.raw.gz 9 11 1 3", "gzip", [], dict(zip(["p9.raw.gz", "p10.raw.gz", "p11.raw.gz"], np.split(whole, 3, 2)))),
    ]:
        nrrd(tmp_path / name, whole, encoding=encoding, data=data, lines=lines)
        files.append(tmp_path / name)
        for part, array in parts.items():
            raw = array.tobytes("F")
            (tmp_path / part).write_bytes(b"head" + raw if name == "end.nhdr" else gzip.compress(raw) if encoding == "gzip" else raw)
    for path, line, stem in check(files, tmp_path / "out", lambda path: of_itk(twins.get(path, path))):
        assert line["format"] == "NRRD"
        # Where a file has one more axis ITK takes its place for that axis, too.
        found, affine = of_itk(f"{stem}.bytes.nrrd")
        np.testing.assert_allclose(affine, line["affine"], rtol=1e-9, atol=1e-9, err_msg=str(path))
        assert found.shape == (1, *line["header_shape"])


def test_nrrd_of_other_units_and_time(tmp_path):
    """What ITK does not look at: the unit of length; a series with time as an axis of space."""
    array = voxels(np.random.default_rng(3), "i2")
    nrrd(tmp_path / "um.nrrd", array, lines=['space units: "um" "um" "um"'])
    series = voxels(np.random.default_rng(4), "i2", (*SHAPE, 3))
    directions, origin = "(1,0,0,0) (0,2,0,0) (0,0,3,0) (0,0,0,2.5)", "(1,-2,3,0)"
    nrrd(tmp_path / "time.nrrd", series, space="space: right-anterior-superior-time", directions=directions, origin=origin)
    by_hand = {
        "um.nrrd": (array[None], np.array([[0.8, 0, 0, -1], [0, 0, -2.5, 2], [0, 1.25, 0, 3], [0, 0, 0, 1000]]) / 1000),
        "time.nrrd": (np.moveaxis(series, 3, 0), np.array([[1, 0, 0, 1], [0, 2, 0, -2], [0, 0, 3, 3], [0, 0, 0, 1]])),
    }
    files = [tmp_path / name for name in by_hand]
    assert len(list(check(files, tmp_path / "out", lambda path: by_hand[path.name]))) == 2


def test_metaimage_as_others_write_it(tmp_path):
    rng, files = np.random.default_rng(5), []

    def put(name, array, **how):
        files.append(tmp_path / name)
        return meta(files[-1], array, **how)

    for n, dtype in enumerate(TYPES):
        put(f"{dtype}.mha", voxels(rng, dtype), big=n % 2 == 1)
    put("array.mha", voxels(rng, "u1"), lines=["Comment = a = b", "CenterOfRotation = 1 2 3", "AnatomicalOrientation = LPS"])
    put("spaced.mha", voxels(rng, "i2"), lines=["ElementNumberOfChannels  =  1", "", "HeaderSize = 0"])
    put("channels.mha", voxels(rng, "i2", (3, *SHAPE)), dims=SHAPE, lines=["ElementNumberOfChannels = 3"])
    slab = voxels(rng, "i2")
    packed = zlib.compress(slab.tobytes("F"))
    put("packed.mha", slab, packed=packed, lines=["CompressedData = True", f"CompressedDataSize = {len(packed)}"])
    packed_twin = files[-1]
    put("slice.mha", voxels(rng, "i2", (9, 8)), matrix=(0, 1, -1, 0), lines=[])
    text = files[-1].read_bytes().replace(b"Offset = 5 -6.5 7", b"Offset = 5 -6.5").replace(b"ElementSpacing = 0.5 1.5 2", b"ElementSpacing = 0.5 1.5")
    files[-1].write_bytes(text)
    whole = voxels(rng, "i2", (4, 6, 6))
    parts, letters = np.split(whole, 6, 2), "ABCDEF"
    for name, data, lines, held in [
        ("one.mhd", "one.raw", [], {"one.raw": whole}),
        ("zipped.mhd", "zipped.zraw", ["CompressedData = True"], {"zipped.zraw": whole}),
        ("skip.mhd", "skip.raw", ["HeaderSize = 4"], {"skip.raw": whole}),
        ("end.mhd", "end.raw", ["HeaderSize = -1"], {"end.raw": whole}),
        ("list.mhd", "LIST\n" + "\n".join(f"{a}.raw" for a in letters), [], {f"{a}.raw": part for a, part in zip(letters, parts)}),
        ("series.mhd", "S%03d.raw 7 17 2", [], {f"S{n:03}.raw": part for n, part in zip(range(7, 18, 2), parts)}),
    ]:
        put(name, whole, data=data, lines=lines)
        for part, array in held.items():
            raw = array.tobytes("F")
            raw = b"head" + raw if "HeaderSize" in str(lines) else zlib.compress(raw) if lines else raw
            (tmp_path / part).write_bytes(raw)
    # ITK needs the size, which the format leaves optional, and reads no gzip and no text.
    text = " ".join(map(str, slab.ravel("F"))).encode()
    for name, content in [("unknown_size", packed), ("gzip", gzip.compress(slab.tobytes("F"))), ("text", text)]:
        put(f"{name}.mha", slab, packed=content, lines=["BinaryData = False" if name == "text" else "CompressedData = True"])
    twins = dict.fromkeys(files[-3:], packed_twin)
    for _, line, _ in check(files, tmp_path / "out", lambda path: of_itk(twins.get(path, path))):
        assert line["format"] == "MetaImage"


def test_mgh_and_what_is_written_in_its_space(tmp_path):
    rng, files = np.random.default_rng(6), []
    for n, dtype in enumerate(["u1", "i4", "f4", "i2", "u2"] * 5):
        affine = nib.affines.from_matvec((permuted(n) if n < 12 else axes(rng, n)) * rng.uniform(0.3, 4, 3), rng.normal(scale=90, size=3))
        shape = (*SHAPE, 2 + n % 3) if n % 2 else SHAPE
        files.append(tmp_path / f"{n}.{['mgz', 'mgh'][n % 2]}")
        nib.MGHImage(voxels(rng, dtype, shape), affine).to_filename(files[-1])
    image = lambda path: nib.load(path)
    expected = lambda path: (np.moveaxis(image(path).get_fdata().reshape(*SHAPE, -1), 3, 0), image(path).affine)
    for path, line, stem in check(files, tmp_path / "out", expected):
        scan, classes = image(path), np.arange(np.prod(SHAPE)).reshape(SHAPE) % 3
        for name, values in [("bytes", np.array([0, 1, 4])[classes]), ("shorts", np.array([0, -5, 300])[classes]),
                             ("floats", np.stack([classes / 2, -classes / 2], -1))]:
            found = image(f"{stem}.{name}.mgz")
            np.testing.assert_array_equal(found.get_fdata(), values)
            np.testing.assert_array_equal(found.affine, scan.affine, err_msg=str(path))
    # Without a place FreeSurfer has coronal slices of 1 mm around 0 (nibabel turns them the other way up).
    plain = bytearray((tmp_path / "1.mgh").read_bytes())
    plain[28:90] = bytes(62)
    (tmp_path / "unplaced.mgh").write_bytes(plain)
    [(line, _)] = dump([tmp_path / "unplaced.mgh"], tmp_path / "unplaced")
    assert line["affine"] == [[-1, 0, 0, 3.5], [0, 0, 1, -2.5], [0, -1, 0, 3], [0, 0, 0, 1]] and line["codes"] == "LIA"


def test_analyze_is_what_nibabel_makes_of_it(tmp_path):
    rng, files = np.random.default_rng(7), []
    for n, dtype in enumerate(["u1", "i2", "i4", "f4", "f8"] * 2):
        image = nib.Spm2AnalyzeImage(voxels(rng, dtype, (*SHAPE, 2) if n == 3 else SHAPE), None)
        header = nib.Spm2AnalyzeHeader(endianness="<" if n % 2 else ">")
        header.set_data_dtype(np.dtype(dtype).newbyteorder("<" if n % 2 else ">"))
        header.set_data_shape(image.shape)
        header.set_zooms([1.5, 2, 2.5, 1][: len(image.shape)])
        if n > 4:
            header["origin"][:3] = [3, 4, 2] if n < 8 else [300, 0, 0]
        if n in (5, 7):
            header["scl_slope"], header["scl_inter"] = 0.5, [0, np.nan][n == 7]
        if n == 6:
            header["cal_max"], header["cal_min"], header["glmax"], header["glmin"] = 8, -2, 110, 10
        path = tmp_path / f"{n}.hdr"
        path.write_bytes(header.binaryblock)
        raw = image.dataobj.astype(header.get_data_dtype()).tobytes("F")
        packed = n in (2, 6)
        path.with_suffix(".img.gz" if packed else ".img").write_bytes(gzip.compress(raw) if packed else raw)
        if packed:
            gz = tmp_path / f"{n}.hdr.gz"
            gz.write_bytes(gzip.compress(path.read_bytes()))
            path.unlink()
            path = gz
        files.append(path)

    def expected(path):
        image = nib.Spm2AnalyzeImage.from_filename(path)
        values = np.asarray(image.dataobj).reshape(*SHAPE, -1)
        return np.moveaxis(values, 3, 0), image.affine

    for path, line, stem in check(files, tmp_path / "out", expected):
        assert (line["format"], line["codes"]) == ("ANALYZE 7.5", "LAS")
        label = nib.load(f"{stem}.bytes.nii")
        assert type(label) is nib.Nifti1Image
        np.testing.assert_allclose(label.affine, line["affine"], rtol=1e-6)
        classes = np.arange(np.prod(SHAPE)).reshape(SHAPE) % 3
        np.testing.assert_array_equal(np.asarray(label.dataobj), np.array([0, 1, 4])[classes])


def test_content_decides_whatever_the_name(tmp_path):
    rng = np.random.default_rng(8)
    image, array = itk_image(voxels(rng, "i2"), axes(rng, 1)), voxels(rng, "i2")
    sitk.WriteImage(image, str(tmp_path / "x.nrrd"))
    sitk.WriteImage(image, str(tmp_path / "x.mha"))
    nib.MGHImage(array, np.diag([1, 2, 3, 1])).to_filename(tmp_path / "x.mgh")
    nib.Nifti1Image(array, np.diag([1, 2, 3, 1])).to_filename(tmp_path / "x.nii")
    names = {"NRRD": "x.nrrd", "MetaImage": "x.mha", "MGH": "x.mgh", "NIfTI": "x.nii"}
    wrong = {"NRRD": "a.nii", "MetaImage": "b.mgz", "MGH": "c.mha", "NIfTI": "d.nrrd"}
    packed = {"NRRD": "e.nii.gz", "MetaImage": "f.mha.gz", "MGH": "g.mgz", "NIfTI": "h.nii.bz2"}
    files = {}
    for kind, name in names.items():
        content = (tmp_path / name).read_bytes()
        (tmp_path / wrong[kind]).write_bytes(content)
        (tmp_path / packed[kind]).write_bytes((bz2 if kind == "NIfTI" else gzip).compress(content))
        files |= {tmp_path / table[kind]: kind for table in (names, wrong, packed)}
    found = dict(zip(files, dump(list(files), tmp_path / "out")))
    for path, kind in files.items():
        line, stem = found[path]
        assert line["format"] == kind, (path, line)
        _, plain = found[tmp_path / names[kind]]
        assert (plain.parent / f"{stem.name}.native.f32").read_bytes() == (plain.parent / f"{plain.name}.native.f32").read_bytes()
        assert line["affine"] == found[tmp_path / names[kind]][0]["affine"]


def test_bad_files_are_named_with_what_was_expected_and_found(tmp_path):
    array, expected = voxels(np.random.default_rng(9), "i2"), {}

    def bad(name, *says, edit=(), make=nrrd, cut=0, **how):
        path = tmp_path / name
        make(path, array, **how)
        content = path.read_bytes()
        for old, new in [edit] if edit else []:
            assert old in content, name
            content = content.replace(old, new, 1)
        path.write_bytes(content[: len(content) - cut])
        expected[path] = says

    voxels_wanted = "expected 420 bytes of voxels ([7, 6, 5] x 1 Int16)"
    bad("short.nrrd", voxels_wanted, "found 413", cut=7)
    bad("short.gz.nrrd", voxels_wanted, "reading failed", cut=40, encoding="gzip")
    bad("short.bz2.nrrd", voxels_wanted, "reading failed", cut=40, encoding="bzip2")
    bad("short.text.nrrd", voxels_wanted, "found", cut=400, encoding="ascii")
    bad("terabytes.nrrd", "expected", "found 420", sizes=(10000, 10000, 10000))
    bad("overflow.nrrd", "overflow", sizes=(2**40, 2**40, 2**40))
    bad("zero.nrrd", "hold 0", sizes=(0, 6, 5))
    bad("negative.nrrd", "`sizes`", "-7", sizes=(-7, 6, 5))
    bad("words.nrrd", "`sizes`", "a 6 5", sizes=("a", 6, 5))
    bad("type.nrrd", 'type "block"', "expected integers", edit=(b"type: short", b"type: block"))
    bad("no_type.nrrd", "no field `type`", edit=(b"type: short\n", b""))
    bad("encoding.nrrd", 'encoding "zrl"', "expected raw, gzip", edit=(b"encoding: raw", b"encoding: zrl"))
    bad("endian.nrrd", "`endian`", "expected little or big", edit=(b"endian: little\n", b""))
    bad("space.nrrd", "`space`", "upside-down", space="space: upside-down")
    bad("flat.nrrd", "singular", directions="(1,0,0) (0,1,0) (1,1,0)")
    bad("nan.nrrd", "singular", directions="(1,0,0) (0,1,0) (0,0,nan)")
    bad("bracket.nrrd", "`space directions`", "bracket", directions="(1,0,0) (0,1,0) (0,0,1")
    bad("two.nrrd", "`space directions`", "expected 3, found 2", directions="(1,0,0) (0,1,0)")
    bad("twice.nrrd", "twice", lines=["type: short"])
    bad("no_colon.nrrd", "expected a field's name", lines=["nonsense"])
    bad("not_a_number.nrrd", '"seven"', "number that Int16 holds", encoding="ascii", edit=(b"\n\n", b"\n\nseven "))
    bad("too_large.nrrd", '"40000"', "number that Int16 holds", encoding="ascii", edit=(b"\n\n", b"\n\n40000 "))
    bad("no_digit.nrrd", "hexadecimal digit", encoding="hex", edit=(b"\n\n", b"\n\nzz "))
    bad("absent.nhdr", "nowhere.raw", "No such file", data="nowhere.raw")
    bad("pattern.nhdr", "expected 1 to 65536", data="x%d.raw 1 1000000000 1")
    bad("stuck.nhdr", "step of 0", data="x%d.raw 1 9 0")
    bad("uneven.nhdr", "no whole number", data="LIST\na.raw\nb.raw\nc.raw\nd.raw\ne.raw\nf.raw\ng.raw\nh.raw\ni.raw\nj.raw\nk.raw")
    bad("middle.nrrd", "expected one, the first or the last", sizes=(7, 2, 3, 5), edit=(b"dimension: 3", b"dimension: 4"),
        directions="(1,0,0) none (0,1,0) (0,0,1)")
    bad("short.mha", voxels_wanted, "found 413", make=meta, cut=7)
    bad("terabytes.mha", "expected", "found 420", make=meta, dims=(10000, 10000, 10000))
    bad("overflow.mha", "overflow", make=meta, dims=(2**40, 2**40, 2**40))
    bad("no_end.mha", "ends in its header", make=meta, edit=(b"ElementDataFile = LOCAL\n", b""), cut=420)
    bad("kind.mha", "ObjectType is Tube", "expected Image", make=meta, edit=(b"ObjectType = Image", b"ObjectType = Tube"))
    bad("type.mha", "ElementType MET_OTHER", make=meta, edit=(b"MET_SHORT", b"MET_OTHER"))
    bad("dims.mha", "NDims is 7", make=meta, edit=(b"NDims = 3", b"NDims = 7"))
    bad("matrix.mha", "`TransformMatrix`", "expected 9 numbers", make=meta, matrix=(1, 0, 0, 1))
    bad("singular.mha", "singular", make=meta, matrix=(0,) * 9)
    bad("checksum.mha", "reading failed", make=meta, packed=zlib.compress(array.tobytes("F"))[:-4] + b"1234", lines=["CompressedData = True"])
    bad("absent.mhd", "nowhere.raw", "No such file", make=meta, data="nowhere.raw")
    bad("channels.mha", "found both", make=meta, dims=(7, 6, 5, 2), matrix=(1,) * 16, lines=["ElementNumberOfChannels = 2"],
        edit=(b"Offset = 5 -6.5 7\nElementSpacing = 0.5 1.5 2\n", b""))

    def mgh(path, array, at=None, value=b""):
        nib.MGHImage(array, np.eye(4)).to_filename(path)
        content = bytearray(path.read_bytes())
        content[at : at + len(value)] = value
        path.write_bytes(content)

    bad("cut.mgh", "header, expected 284", make=mgh, at=0, cut=600)
    bad("short.mgh", voxels_wanted, make=mgh, at=0, cut=30)
    bad("type.mgh", "data type 9", make=mgh, at=20, value=b"\0\0\0\x09")
    bad("version.mgh", "version 7", make=mgh, at=0, value=b"\0\0\0\x07")
    bad("extents.mgh", "expected positive", make=mgh, at=4, value=b"\xff\xff\xff\xff")
    bad("huge.mgh", "overflow", make=mgh, at=4, value=b"\x7f\xff\xff\xff" * 2)
    nib.Spm2AnalyzeImage(array, None).to_filename(tmp_path / "spm.hdr")
    (tmp_path / "spm.mat").write_bytes(b"MATLAB 5.0")
    expected[tmp_path / "spm.hdr"] = ("orientation is in", "spm.mat", "convert both to NIfTI")
    (tmp_path / "letter.mha").write_bytes(b"Dear Sir or Madam,\n" * 40)
    expected[tmp_path / "letter.mha"] = ("Dear Sir",)
    (tmp_path / "surface.mgz").write_bytes(b"")
    nib.MGHImage(np.zeros((2562, 1, 1), "f4"), np.eye(4)).to_filename(tmp_path / "surface.mgz")
    expected[tmp_path / "surface.mgz"] = ("line of 2562 values", "surface")
    for path, (line, _) in zip(expected, dump(list(expected), tmp_path / "out")):
        assert "error" in line, f"{path.name} was read"
        for word in (str(path), *expected[path]):
            assert word in line["error"], f"{path.name}: {word!r} not in {line['error']!r}"


def save(path, array, affine):
    """An array in RAS+ millimetres, in the format of the name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.name.endswith((".nii", ".nii.gz")):
        nib.Nifti1Image(array, affine).to_filename(path)
    elif path.suffix in [".mgz", ".mgh"]:
        nib.MGHImage(array, affine).to_filename(path)
    else:
        lps = RAS @ affine
        spacing = np.linalg.norm(lps[:3, :3], axis=0)
        sitk.WriteImage(itk_image(array, lps[:3, :3] / spacing, spacing, lps[:3, 3]), str(path), useCompression=True)


SUBJECTS = ["p1", "p2", "p3", "p4"]
LABELS = {"0": "background", "1": "left", "2": "right"}


def scans():
    """Of each subject a scan and its label, turned in different ways."""
    for n, subject in enumerate(SUBJECTS):
        rng = np.random.default_rng(n)
        label = np.zeros((16, 18, 20), np.int16)
        label[3:8, 4:12, 5:15], label[9:14, 4:12, 5:15] = 1, 2
        image = (100 * label + rng.normal(50, 5, label.shape)).astype(np.int16)
        affine = nib.affines.from_matvec(permuted(5 * n) * 2.0, [-10 - n, 20, 5])
        yield subject, image, label.astype(np.uint8), affine


def dataset(folder, layout, ending):
    """The scans in a layout, every file of one format."""
    name = {
        "folder": ("{0}_t1{1}", "{0}_seg{1}"),
        # A folder, too, with Slicer's name for a label.
        "slicer": ("{0}{1}", "{0}.seg{1}"),
        "manifest": ("scans/{0}{1}", "labels/{0}{1}"),
        "nnunet": ("imagesTr/{0}_0000{1}", "labelsTr/{0}{1}"),
        "decathlon": ("imagesTr/{0}{1}", "labelsTr/{0}{1}"),
        "brats": ("{0}/{0}_t1ce{1}", "{0}/{0}_seg{1}"),
    }[layout]
    pairs = []
    for subject, image, label, affine in scans():
        pair = [part.format(subject, ending) for part in name]
        save(folder / pair[0], image, affine)
        save(folder / pair[1], label, affine)
        if layout == "brats":
            for other in ["t1", "t2", "flair"]:
                save(folder / subject / f"{subject}_{other}{ending}", image, affine)
        pairs.append((subject, *pair))
    described = {"nnunet": {"channel_names": {"0": "t1"}, "labels": {v: int(k) for k, v in LABELS.items()}, "file_ending": ending, "numTraining": 4},
                 "decathlon": {"modality": {"0": "t1"}, "labels": LABELS, "training": [{"image": f"./{i}", "label": f"./{l}"} for _, i, l in pairs]}}
    if layout in described:
        (folder / "dataset.json").write_text(json.dumps(described[layout]))
    if layout == "manifest":
        table = folder / "scans.csv"
        table.write_text("subject,t1,label\n" + "".join(",".join(row) + "\n" for row in pairs))
        return table
    return folder


def preprocess(data, out, *flags):
    done = pretext3d("preprocess", "--data", data, "--out", out, "--protocol", "modern", "--spacing", 2, "--foreground", 0, *flags)
    stored = {}
    for entry in read_json(out / "index.json")["subjects"]:
        stored[entry["id"]] = tensors(out / entry["file"])
    return stored, done.stderr


@pytest.mark.parametrize("layout, ending", [
    ("slicer", ".nrrd"), ("nnunet", ".mha"), ("decathlon", ".nrrd"), ("brats", ".mgz"), ("manifest", ".mhd"), ("manifest", ".nhdr"),
])
def test_every_layout_holds_every_format(tmp_path, layout, ending):
    given = [] if layout in ["nnunet", "decathlon", "brats"] else ["--labels", "0,1=left,2=right"]
    found, said = preprocess(dataset(tmp_path / "other", layout, ending), tmp_path / "stores" / "other", *given)
    expected, _ = preprocess(dataset(tmp_path / "nifti", layout, ".nii.gz"), tmp_path / "stores" / "nifti", *given)
    assert sorted(found) == sorted(expected) == SUBJECTS
    for subject, (arrays, metadata) in found.items():
        for name, array in expected[subject][0].items():
            assert array.equal(arrays[name]), (subject, name)
        np.testing.assert_allclose(json.loads(metadata["affine"]), json.loads(expected[subject][1]["affine"]), atol=1e-4)
    # The voxels' own files are no strangers.
    assert "not a scan" not in said, said
    if ending in [".mhd", ".nhdr"]:
        # A scan whose voxels changed is read again, another is kept.
        voxels = next((tmp_path / "other" / "scans").glob(f"p2.*raw*"))
        voxels.write_bytes(voxels.read_bytes())
        again = pretext3d("preprocess", "--data", tmp_path / "other" / "scans.csv", "--out", tmp_path / "stores" / "other", "--protocol", "modern",
                          "--spacing", 2, "--foreground", 0, *given)
        assert "(3 kept)" in again.stdout, again.stdout


def test_predictions_have_the_scans_format(tmp_path):
    data = {ending: dataset(tmp_path / ending[1:], "folder", ending) for ending in [".nii.gz", ".mha", ".nrrd", ".mgz"]}
    preprocess(data[".nii.gz"], tmp_path / "store", "--labels", "0,1=left,2=right")
    run, small = tmp_path / "run", ["--filters", 2, "--levels", 2, "--patch", 16, "--steps", 1, "--epochs", 1, "--device", "cpu"]
    pretext3d("finetune", "--data", tmp_path / "store", "--weights", "none", *small, "--out", run)
    predicted = {}
    for ending, folder in data.items():
        out = tmp_path / f"predicted{ending}"
        pretext3d("predict", "--weights", run, "--input", folder, "--output", out, "--probabilities", "--device", "cpu", "--precision", "fp32")
        assert sorted(path.name for path in out.iterdir()) == sorted(f"{s}{kind}{ending}" for s in SUBJECTS for kind in ["", ".probabilities"])
        for subject in SUBJECTS:
            path = out / f"{subject}{ending}"
            if ending in [".mha", ".nrrd"]:
                scan, label = sitk.ReadImage(str(folder / f"{subject}_t1{ending}")), sitk.ReadImage(str(path))
                assert label.GetPixelID() == sitk.sitkUInt8
                assert sitk.LabelOverlay(sitk.Cast(scan, sitk.sitkUInt8), label).GetSize() == scan.GetSize()
                for part in ["GetOrigin", "GetSpacing", "GetDirection"]:
                    assert getattr(label, part)() == getattr(scan, part)(), part
                values, probabilities = of_itk(path)[0][0], of_itk(out / f"{subject}.probabilities{ending}")[0]
            else:
                scan, label = nib.load(folder / f"{subject}_t1{ending}"), nib.load(path)
                np.testing.assert_array_equal(label.affine, scan.affine)
                values = label.get_fdata()
                probabilities = np.moveaxis(nib.load(out / f"{subject}.probabilities{ending}").get_fdata(), 3, 0)
            assert probabilities.shape[0] == 3 and (probabilities.argmax(0) == values).all()
            predicted.setdefault(subject, []).append(values)
            (out / f"{subject}.probabilities{ending}").unlink()
        truth = dataset(tmp_path / f"truth{ending}", "nnunet", ending)
        assert "left" in pretext3d("evaluate", "--predictions", out, "--labels", truth).stdout
    for values in predicted.values():
        assert all((other == values[0]).all() for other in values[1:])
    # Again: nothing is replaced, in whatever format.
    refused("predict", "--weights", run, "--input", data[".mha"], "--output", tmp_path / "predicted.mha", "--device", "cpu", says=["already there"])


FOREIGN = {
    "brain.mnc": (b"CDF\x01" + bytes(400), "a MINC file", "mnc2nii"),
    "brain2.mnc": (b"\x89HDF\r\n\x1a\n" + bytes(400), "a MINC file", "mnc2nii"),
    "philips.PAR": (b"# === DATA DESCRIPTION FILE =====\n" * 20, "a Philips PAR/REC file", "parrec2nii"),
    "anat+orig.HEAD": (b"\ntype = string-attribute\nname = TYPESTRING\n" * 20, "an AFNI file", "3dAFNItoNIFTI"),
    "mask.mif": (b"mrtrix image\ndim: 4,5,6\n" * 20, "an MRtrix file", "mrconvert"),
    "pet.v": (b"MATRIX72v" + bytes(400), "an ECAT file", "nibabel"),
    "scan.nii.xz": (b"\xfd7zXZ\0" + bytes(400), "compressed with xz", "xz -d"),
    "lh.gii": (b"<?xml version='1.0'?><GIFTI>" + bytes(400), "a GIFTI surface", "no volume"),
    "array.npy": (b"\x93NUMPY" + bytes(400), "an array of NumPy", "affine"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a pointer to a file", "git lfs pull"),
    "page": (b"<!DOCTYPE html><html><body>404</body></html>", "a web page", "download failed"),
}


def test_what_is_not_read_is_named_with_the_way_to_convert_it(tmp_path):
    for folder, name in [("named", "{}"), ("renamed", "{}.nii.gz")]:
        for file, (content, *_) in FOREIGN.items():
            (tmp_path / folder).mkdir(exist_ok=True)
            (tmp_path / folder / name.format(file)).write_bytes(gzip.compress(content) if file == "brain.mnc" and folder == "renamed" else content)
    files = [tmp_path / "renamed" / f"{file}.nii.gz" for file in FOREIGN]
    for (file, (_, what, way)), (line, _) in zip(FOREIGN.items(), dump(files, tmp_path / "out")):
        assert f"{file}.nii.gz: {what}" in line["error"] and way in line["error"], line
    # Beside a scan they are left out by name, in a folder, a manifest and as an input; and so is DICOM, which has a layout of its own.
    (tmp_path / "named" / "slice.dcm").write_bytes(bytes(128) + b"DICM" + bytes(400))
    save(tmp_path / "named" / "scan.mha", np.arange(4096, dtype="i2").reshape(16, 16, 16), np.eye(4))
    done = pretext3d("preprocess", "--data", tmp_path / "named", "--out", tmp_path / "store", "--no-labels", "--size", 16)
    for file, (_, what, way) in [*FOREIGN.items(), ("slice.dcm", (b"", "a DICOM file", "--layout dicom"))]:
        [line] = [line for line in done.stderr.splitlines() if f"/{file}:" in line]
        assert line.startswith("ignored: ") and what in line and way in line, line
    (tmp_path / "table.csv").write_text("subject,t1\na,named/brain.mnc\n")
    refused("preprocess", "--data", tmp_path / "table.csv", "--out", tmp_path / "none", says=["row 2", "a MINC file", "mnc2nii"])
    refused("preprocess", "--data", tmp_path / "named" / "slice.dcm", "--out", tmp_path / "none", says=["found a DICOM file", "give the folder"])
    # A scan needs no name that says so where it is named by the user.
    (tmp_path / "named" / "scan.mha").rename(tmp_path / "scan")
    (tmp_path / "table.csv").write_text("subject,t1\na,scan\n")
    pretext3d("preprocess", "--data", tmp_path / "table.csv", "--out", tmp_path / "by_content", "--size", 16)
    # A scan under the name of a photograph.
    (tmp_path / "photos").mkdir()
    nib.Nifti1Image(np.ones((4, 5, 6), "i2"), np.eye(4)).to_filename(tmp_path / "x.nii")
    (tmp_path / "x.nii").rename(tmp_path / "photos" / "x.png")
    (tmp_path / "photos" / "y.jpg").write_bytes(FOREIGN["brain.mnc"][0])
    refused("preprocess", "--data", tmp_path / "photos", "--out", tmp_path / "none", says=["x.png: a NIfTI scan under the name", "y.jpg: a MINC file"])


def test_series_become_what_is_asked_for(tmp_path):
    """4D files of several volumes, not of equally many: each, their mean, or the first; and the network takes them so."""
    given = ["--labels", "0,1=left,2=right"]
    for n, (subject, image, label, affine) in enumerate(scans()):
        series = np.stack([image + np.float32(t * t) for t in range(3 + n % 2)], -1)
        for folder, values in [("series", series), ("mean", series.mean(-1, dtype=np.float64)), ("first", series[..., 0])]:
            save(tmp_path / folder / f"{subject}.nii.gz", values.astype("f4"), affine)
            save(tmp_path / folder / f"{subject}_seg.nii.gz", label, affine)
    for volumes in ["mean", "first"]:
        found, _ = preprocess(tmp_path / "series", tmp_path / "stores" / f"of_{volumes}", "--volumes", volumes, *given)
        expected, _ = preprocess(tmp_path / volumes, tmp_path / "stores" / volumes, *given)
        assert sorted(found) == SUBJECTS
        for subject, (arrays, _) in expected.items():
            assert arrays["image"].equal(found[subject][0]["image"]) and arrays["label"].equal(found[subject][0]["label"])
    each, _ = preprocess(tmp_path / "series", tmp_path / "stores" / "each", "--volumes", "each", *given)
    assert len(each) == 2 * 3 + 2 * 4 and all(arrays["image"].shape[0] == 1 for arrays, _ in each.values())
    # Otherwise every volume is a channel, which is said, and they must be equally many.
    done = pretext3d("preprocess", "--data", tmp_path / "series", "--out", tmp_path / "stores" / "channels", *given, "--size", 16, fails=1)
    assert "every volume of a 4D file is a channel; of a series, --volumes" in done.stderr and "channels, expected" in done.stderr
    run, small = tmp_path / "run", ["--filters", 2, "--levels", 2, "--patch", 16, "--steps", 1, "--epochs", 1, "--device", "cpu"]
    pretext3d("finetune", "--data", tmp_path / "stores" / "of_mean", "--weights", "none", *small, "--out", run)
    predicted = []
    for n, source in enumerate(["series", "series/p1.nii.gz", "mean"]):
        pretext3d("predict", "--weights", run, "--input", tmp_path / source, "--output", tmp_path / str(n), "--device", "cpu")
        predicted.append(nib.load(tmp_path / str(n) / "p1.nii.gz").get_fdata())
        assert predicted[-1].shape == (16, 18, 20) and (predicted[-1] == predicted[0]).all()
