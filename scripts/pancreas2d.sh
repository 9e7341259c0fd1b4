#!/usr/bin/env bash
# The 2D baseline of pancreas.sh: the same experiment on axial slices of the same scans. See README.md beside this.
. "$(dirname "${BASH_SOURCE[0]}")/experiment.sh"

pancreas
sweep "pancreas2d$suffix" pancreas2d --data "$store"
beside "pancreas2d$suffix" "$OUT/sweep-pancreas$suffix"
