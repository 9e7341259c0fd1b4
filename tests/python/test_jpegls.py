"""DICOM with JPEG-LS pixels, written by CharLS: voxels equal to what CharLS and ITK make of them."""

import jpeg_ls
import numpy as np
from helpers import dump
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, encapsulate_extended
from pydicom.uid import EnhancedMRImageStorage, JPEGLSLossless, JPEGLSNearLossless
from test_dicom import AXIAL, header, of_itk_file, pixels

# Rows, columns.
SHAPE = (37, 53)


def scene(rng, n, bits, signed):
    """Slices with noise, ramps, areas of one value and the extremes, so that runs and codes of every length are there."""
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    smooth = low + (high - low) * (np.sin(x / 9 + np.arange(n)[:, None, None]) * np.cos(y / 7) + 1) / 2
    values = np.clip(smooth + rng.normal(0, 1.5, (n, *SHAPE)), low, high).round().astype(int)
    values[:, :9] = low
    values[:, 9:13, 20:] = high
    values[:, 25:, 30:] = rng.integers(low, high, (n, SHAPE[0] - 25, SHAPE[1] - 30), endpoint=True)
    values[-1] = high
    return values.astype(f"{'i' if signed else 'u'}{1 if bits <= 8 else 2}")


def coded(frame, bits, near):
    kept = frame.view(f"u{frame.itemsize}") & (2**bits - 1)
    return bytes(jpeg_ls.encode_buffer(kept.tobytes(), *SHAPE, 1, bits, near))


def jpegls(values, frames, bits, near=0, pieces=1, table=True):
    """An object of several frames, each a stream in so many fragments, with a table of their offsets or an empty one."""
    ds = header("7", "T1", JPEGLSNearLossless if near else JPEGLSLossless, sop=EnhancedMRImageStorage)
    pixels(ds, values, bits)
    ds.NumberOfFrames = len(values)
    ds.ImageOrientationPatient, ds.PixelSpacing, ds.SliceThickness = list(AXIAL), [2.0, 1.5], 3
    ds.PerFrameFunctionalGroupsSequence = []
    for k in range(len(values)):
        place, frame = Dataset(), Dataset()
        place.ImagePositionPatient = [-10.0, 4.0, 3.0 * k]
        frame.PlanePositionSequence = [place]
        ds.PerFrameFunctionalGroupsSequence.append(frame)
    ds.PixelData = encapsulate(frames, pieces, table)
    ds["PixelData"].is_undefined_length = True
    return ds


def saved(ds, path):
    ds.save_as(path, enforce_file_format=True)
    return path


def test_every_depth_lossless_and_near(tmp_path):
    """8, 12 in 16 and 16 bits and odd ones, signed and not; frames whole and in pieces."""
    rng, files, expected, of_itk = np.random.default_rng(2), [], [], []
    for bits, signed, near in [(8, 0, 0), (8, 1, 0), (8, 0, 3), (7, 0, 2), (2, 0, 0), (4, 0, 1), (12, 0, 0), (12, 1, 0), (12, 0, 5), (10, 0, 255),
                               (16, 0, 0), (16, 1, 0), (16, 0, 1), (16, 0, 255), (9, 0, 0), (15, 0, 7)]:
        values = scene(rng, 4, bits, signed)
        frames = [coded(frame, bits, near) for frame in values]
        raw = [np.frombuffer(jpeg_ls.decode_buffer(frame)[0], f"u{values.itemsize}").reshape(SHAPE).astype(int) for frame in frames]
        raw = np.array(raw)
        raw -= signed * (raw >> (bits - 1)) << bits
        assert abs(raw - values).max() <= near and (near == 0 or (raw != values).any())
        for pieces, table in [(1, True), (1, False), (3, True)]:
            files.append(saved(jpegls(values, frames, bits, near, pieces, table), tmp_path / f"{len(files)}.dcm"))
            expected.append(raw)
            # It reads no frames in pieces, and nothing below 8 bits.
            of_itk += [files[-1]] * (pieces == 1 and bits >= 8)
    # A single slice may be in pieces without a table; offsets of 8 bytes are in an element of their own.
    files.append(saved(jpegls(values[:1], frames[:1], bits, near, 4, False), tmp_path / "single.dcm"))
    expected.append(raw[:1])
    ds = jpegls(values, frames, bits, near)
    ds.PixelData, ds.ExtendedOffsetTable, ds.ExtendedOffsetTableLengths = encapsulate_extended(frames)
    files.append(saved(ds, tmp_path / "extended.dcm"))
    expected.append(raw)
    for (line, stem), path, raw in zip(dump(files, tmp_path / "out"), files, expected, strict=True):
        assert "error" not in line, line
        found = np.fromfile(f"{stem}.native.f32", "<f4").reshape(line["shape"])[0]
        np.testing.assert_array_equal(found, raw.T, err_msg=str(path))
        if path in of_itk:
            np.testing.assert_array_equal(found, of_itk_file(path)[0].reshape(raw.T.shape), err_msg=str(path))


def test_damaged_streams_are_named(tmp_path):
    """What the stream is, beside what its header says, is looked at before room is made for it."""
    values = scene(np.random.default_rng(3), 2, 12, False)
    good = [coded(frame, 12, 0) for frame in values]
    other = lambda array, n, bits: bytes(jpeg_ls.encode_buffer(array.tobytes(), *array.shape[:2], n, bits, 0, None if n == 1 else 2))
    huge = good[1][:7] + bytes([255] * 4) + good[1][11:]
    kinds = {
        "rows": ([good[0], other(values[0, :30].copy(), 1, 12)], ["53 x 30, expected 53 x 37"]),
        "columns": ([good[0], other(values[0, :, :50].copy(), 1, 12)], ["50 x 37, expected 53 x 37"]),
        "huge": ([good[0], huge], ["65535 x 65535"]),
        "colour": ([good[0], other(np.zeros((*SHAPE, 3), "u1"), 3, 8)], ["3 components"]),
        "cut off": ([good[0], good[1][: len(good[1]) // 2]], ["cut off", "row"]),
        "no scan": ([good[0], good[1][:15]], ["cut off or damaged before its pixels"]),
        "empty": ([good[0], bytes(2)], ["ff d8"]),
        "jpeg": ([good[0], b"\xff\xd8\xff\xc0\x00\x0b\x08\x00\x25\x00\x35\x01\x01\x11\x00"], ["another kind of JPEG"]),
    }
    files = [saved(jpegls(values, frames, 12), tmp_path / f"{name}.dcm") for name, (frames, _) in kinds.items()]
    files.append(saved(jpegls(values, good, 12, pieces=2, table=False), tmp_path / "which.dcm"))
    narrow = jpegls(values, good, 12)
    narrow.BitsAllocated, narrow.BitsStored, narrow.HighBit = 8, 8, 7
    files.append(saved(narrow, tmp_path / "narrow.dcm"))
    says = [says for _, says in kinds.values()] + [["table of offsets"], ["12 bits, expected at most 8"]]
    for (line, _), path, parts in zip(dump(files, tmp_path / "out"), files, says, strict=True):
        for part in [path.name, *parts]:
            assert part in line["error"], (path.name, line)
