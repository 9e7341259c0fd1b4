"""Writes the compressed frames beside this file; `pip install pyjpegls pillow simpleitk pydicom`."""

import io
import tempfile
from pathlib import Path

import jpeg_ls
import numpy as np
import pydicom
import SimpleITK as sitk
from PIL import Image

# 7 columns and 6 rows of 12 bits, with a row of one value.
y, x = np.mgrid[:6, :7]
frame = (x * 37 + y * 90 + np.random.default_rng(0).integers(0, 9, (6, 7))).astype("u2")
frame[2], frame[5, 3] = 300, 4095


def of_pillow(array, *how, **options):
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, *how, **options)
    return stream.getvalue()


def lossless_jpeg():
    with tempfile.TemporaryDirectory() as folder:
        writer = sitk.ImageFileWriter()
        writer.SetFileName(f"{folder}/one.dcm")
        writer.UseCompressionOn()
        writer.SetCompressor("JPEG")
        writer.Execute(sitk.GetImageFromArray(frame[None]))
        return next(pydicom.encaps.generate_frames(pydicom.dcmread(f"{folder}/one.dcm").PixelData, number_of_frames=1))


for name, stream in {
    "lossless.jls": jpeg_ls.encode_buffer(frame.tobytes(), *frame.shape, 1, 12, 0),
    "near.jls": jpeg_ls.encode_buffer(frame.tobytes(), *frame.shape, 1, 12, 5),
    "baseline.jpg": of_pillow((frame >> 4).astype("u1"), "JPEG", quality=95),
    "lossless.jpg": lossless_jpeg(),
    "lossless.j2k": of_pillow(frame, "JPEG2000", no_jp2=True, irreversible=False, num_resolutions=2),
}.items():
    (Path(__file__).parent / name).write_bytes(stream)
