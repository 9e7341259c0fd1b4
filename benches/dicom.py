#!/usr/bin/env python3
"""Reading a DICOM series of 300 slices of 512 x 512, 16 bits, uncompressed: ours against SimpleITK's ImageSeriesReader, alternating, all
files in memory. Ours is `preprocess` of that one scan from start to end: it finds and sorts the slices, turns them to RAS+, takes the
z-score and writes its store. The equal of it in SimpleITK is finding, sorting and reading the series, z-score, and writing float32
without compression; beside it its reading alone. SimpleITK's process runs already. Seconds, and processor seconds of all threads."""
import argparse
import resource
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from common import BINARY, save, summary
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

# Of voxels, in millimetres; resampling is not measured.
SPACING = (0.8, 0.8, 1.5)
# A file system in memory: disks are not measured.
MEMORY = "/dev/shm"


def write(folder, slices, side):
    """An axial CT with noise, in files whose names and InstanceNumbers tell nothing of their order."""
    rng, study, series = np.random.default_rng(0), generate_uid(), generate_uid()
    for k in rng.permutation(slices):
        meta = FileMetaDataset()
        meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = ExplicitVRLittleEndian, CTImageStorage, generate_uid()
        ds = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
        ds.SOPClassUID, ds.SOPInstanceUID, ds.Modality, ds.ImageType = CTImageStorage, meta.MediaStorageSOPInstanceUID, "CT", ["ORIGINAL", "PRIMARY"]
        ds.PatientID, ds.StudyInstanceUID, ds.SeriesInstanceUID = "bench", study, series
        ds.ImageOrientationPatient, ds.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [-200, -200, SPACING[2] * int(k)]
        ds.PixelSpacing, ds.SliceThickness, ds.InstanceNumber = [SPACING[1], SPACING[0]], SPACING[2], int(rng.integers(10**6))
        ds.RescaleSlope, ds.RescaleIntercept = 1, -1024
        ds.Rows, ds.Columns, ds.SamplesPerPixel, ds.PhotometricInterpretation = side, side, 1, "MONOCHROME2"
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
        ds.PixelData = rng.integers(0, 4096, (side, side), dtype="<u2").tobytes()
        ds.save_as(folder / f"{rng.integers(10**12)}", enforce_file_format=True)


def read_with_itk(folder, out):
    reader = sitk.ImageSeriesReader()
    [uid] = reader.GetGDCMSeriesIDs(str(folder))
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder), uid))
    return reader.Execute()


def all_with_itk(folder, out):
    image = sitk.Normalize(sitk.Cast(read_with_itk(folder, out), sitk.sitkFloat32))
    sitk.WriteImage(image, f"{out}/scan.mha", useCompression=False)


def ours(folder, out):
    spacing = ",".join(map(str, SPACING))
    command = [BINARY, "preprocess", "--data", folder, "--out", f"{out}/store", "--protocol", "modern", "--spacing", spacing]
    subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def processor():
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def seconds(work, folder):
    with tempfile.TemporaryDirectory(dir=MEMORY) as out:
        before, start = processor(), time.perf_counter()
        work(folder, out)
        return time.perf_counter() - start, processor() - before


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slices", type=int, default=300, help="(default: %(default)s)")
    parser.add_argument("--side", type=int, default=512, help="rows and columns of a slice (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="(default: %(default)s)")
    args = parser.parse_args()
    cases = {"pretext3d": ours, "SimpleITK": all_with_itk, "SimpleITK, reading alone": read_with_itk}
    rounds = {name: [] for name in cases}
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        write(Path(folder), args.slices, args.side)
        read_with_itk(folder, None)
        for _ in range(args.rounds):
            for name, work in cases.items():
                rounds[name].append(seconds(work, folder))
    print(f"a DICOM series of {args.slices} slices of {args.side} x {args.side} (median of {args.rounds} rounds)")
    figures = {"slices": args.slices, "side": args.side}
    for name, values in rounds.items():
        wall, cpu = zip(*values)
        print(f"  {name:24} {statistics.median(wall):7.3f} s  {statistics.median(cpu):7.3f} processor seconds")
        figures[name] = {**summary(wall), "rounds": wall, "processor": summary(cpu)}
    save("dicom", figures)


if __name__ == "__main__":
    main()
