#!/usr/bin/env bash
# What does the third dimension buy on brain phantoms? The study of phantom.sh on axial slices of the same scans; its 3D figures are the
# sweep's if it has been run here, otherwise those committed. See README.md beside this.
. "$(dirname "${BASH_SOURCE[0]}")/experiment.sh"

study
sweep phantom2d phantom2d
volumes=$OUT/sweep-phantom
[ -f "$volumes/sweep.json" ] || volumes=benches/results/study-phantom
beside phantom2d "$volumes"
