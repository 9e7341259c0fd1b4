#!/usr/bin/env bash
# The 2D baseline of brats.sh: the same experiment on axial slices of the same scans. See README.md beside this.
. "$(dirname "${BASH_SOURCE[0]}")/experiment.sh"

brats
brats_sweeps brats2d
beside "brats2d$suffix" "$OUT/sweep-brats$suffix"
if [ -n "$other_store" ]; then
    beside "brats2d$suffix-other" "$OUT/sweep-brats$suffix-other"
fi
