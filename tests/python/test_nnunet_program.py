"""nnU-Net itself, as PyPI has it: it plans, trains from our file, and what it saves comes back."""
import json
import os
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import torch
from helpers import pretext3d

TRAINER = '''
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


class OneStep(nnUNetTrainer):
    """At learning rate 0, so that what was loaded is what is saved."""

    def initialize(self):
        self.num_epochs, self.num_iterations_per_epoch, self.num_val_iterations_per_epoch = 1, 1, 1
        self.initial_lr = 0.0
        super().initialize()

    def perform_actual_validation(self, save_probabilities=False):
        pass
'''
CASES, SIDE = 5, 32
DATASET = "Dataset001_Ball"


def nnunet(program, *args, **env):
    folders = {"MPLBACKEND": "Agg", "nnUNet_compile": "f", "OMP_NUM_THREADS": "1"}
    command = [Path(sys.executable).with_name(program), *args]
    done = subprocess.run([str(a) for a in command], env=os.environ | folders | env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def dataset(folder):
    """Noisy balls, in nnU-Net's raw format."""
    random = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*[np.arange(SIDE)] * 3, indexing="ij"))
    for case in range(CASES):
        centre = random.uniform(12, 20, (3, 1, 1, 1))
        ball = (np.square(grid - centre).sum(0) < 64).astype(np.uint8)
        image = (100 * ball + random.normal(0, 10, ball.shape)).astype(np.float32)
        for part, name, array in (("imagesTr", f"ball_{case}_0000", image), ("labelsTr", f"ball_{case}", ball)):
            (folder / part).mkdir(parents=True, exist_ok=True)
            nibabel.Nifti1Image(array, np.eye(4)).to_filename(folder / part / f"{name}.nii.gz")
    settings = {"channel_names": {"0": "T1"}, "labels": {"background": 0, "ball": 1}, "numTraining": CASES, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(settings))


def test_nnunet_trains_from_our_file_and_we_take_its_own(tmp_path):
    places = {f"nnUNet_{name}": str(tmp_path / name) for name in ("raw", "preprocessed", "results")}
    raw = tmp_path / "raw" / DATASET
    dataset(raw)
    nnunet("nnUNetv2_plan_and_preprocess", "-d", 1, "-c", "3d_fullres", "-np", 1, "-npfp", 1, **places)
    store = tmp_path / "store"
    pretext3d("preprocess", "--data", raw, "--out", store, "--protocol", "modern", "--spacing", 1)
    fast = ["--epochs", 1, "--steps", 1, "--batch-size", 2, "--device", "cpu"]
    pretext3d("pretrain", "--data", store, "--task", "rot", "--rot-head", "gap", "--encoder", "plainconv", *fast, "--out", tmp_path / "run",
              "--weights", tmp_path / "rot")
    plans = tmp_path / "preprocessed" / DATASET / "nnUNetPlans.json"
    pretext3d("export", "--run", tmp_path / "run", "--to", "nnunet", "--plans", plans, "--out", tmp_path / "full")
    (tmp_path / "trainers").mkdir()
    (tmp_path / "trainers/one_step.py").write_text(TRAINER)
    given = tmp_path / "full/checkpoint_final.pth"
    nnunet("nnUNetv2_train", 1, "3d_fullres", 0, "-tr", "OneStep", "-device", "cpu", "-pretrained_weights", given, **places,
           nnUNet_extTrainer=str(tmp_path / "trainers"), nnUNet_n_proc_DA="0")

    saved = tmp_path / "results" / DATASET / "OneStep__nnUNetPlans__3d_fullres/fold_0/checkpoint_final.pth"
    weights = [torch.load(path, weights_only=False)["network_weights"] for path in (saved, given)]
    names = [name for name in weights[0] if ".seg_layers." not in name]
    assert len(names) > 100 and all(torch.equal(*(w[name] for w in weights)) for name in names)
    pretext3d("finetune", "--data", store, "--weights", saved, "--transfer", "all", "--arm", "full", *fast, "--out", tmp_path / "tuned")
    said = (tmp_path / "tuned/load.txt").read_text()
    assert f"{sum('all_modules' not in name and 'decoder.encoder' not in name for name in names)} tensors loaded, the decoder" in said
    assert said.count("left out decoder.seg_layers.") == 6 and "voxels of" not in said
