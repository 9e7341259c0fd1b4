#!/usr/bin/env bash
# Does pretraining help on brain phantoms? The study whose results are in benches/results/; hours on two cores. See README.md
# beside this.
. "$(dirname "${BASH_SOURCE[0]}")/experiment.sh"

study
sweep phantom phantom
sweep phantom-frozen phantom-frozen
