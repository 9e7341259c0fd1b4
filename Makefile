# Everything from a bare clone: `make help` lists the targets.

SHELL := /bin/sh
.SHELLFLAGS := -ec
.ONESHELL:
.NOTPARALLEL:
.DEFAULT_GOAL := help
.PHONY: help setup build pretrain reproduce test bench clean

TASKS := rot rpl jig cpc exe mae gen vf simclr
LONG_TASKS := rotation relative-patch-location jigsaw contrastive-predictive-coding exemplar masked-autoencoding \
	models-genesis volume-fusion

# Recipes read these from their environment, so that paths may hold spaces.
export TASK EXP DATA UNLABELLED SMOKE JOBS OUT ARGS GPUS TORCH_INDEX_URL

# Settings of `pretext3d preprocess`, and further arguments of `pretext3d pretrain` or `sweep` and of pytest.
PREPROCESS_ARGS ?= $(if $(DATA),,--size 64)
ARGS ?=
PYTEST_ARGS ?=

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	sed -n 's/^#: \?//p' $(MAKEFILE_LIST)

#:
#: make pretrain TASK=rot|rpl|jig|cpc|exe|mae|gen|vf|simclr [DATA=dir|manifest.csv] [GPUS=N] [ARGS="--epochs 50 ..."]
#:   TASK             one task, or several separated by commas, trained jointly on one encoder
#:   DATA             your scans; without it 64 generated brains
#:   GPUS             processes that train together, each on a GPU of this machine; without GPUs, on a share of its cores
#:   ARGS             further arguments of `pretext3d pretrain` (--help lists them)
#:   PREPROCESS_ARGS  arguments of `pretext3d preprocess`
#:
#: make reproduce EXP=hippocampus|idrid|brats|brats2d|pancreas|pancreas2d|retina|scaling|phantom|phantom2d|fundus [DATA=dir] [UNLABELLED=dir] [SMOKE=1] [ARGS="..."]
#:   EXP              an experiment of the paper; scripts/README.md says what each asks, needs and costs
#:   DATA             the dataset, as its owners distribute it
#:   UNLABELLED       other scans to pretrain on (brats, brats2d, retina, scaling)
#:   SMOKE            1: every step of the experiment in minutes, on generated phantoms in the dataset's layout (not phantom,
#:                    phantom2d and fundus, which are small themselves)
#:   JOBS             runs side by side (default: 1; without a GPU 2)
#:   OUT              folder of the results' folders (default: runs)
#:   ARGS             further arguments of `pretext3d sweep`, for instance --config my.toml
#:
#: For both:
#:   PYTHON           the Python to use; without torch 2.11.0 it only makes .venv
#:   TORCH_INDEX_URL  package index for torch alone, for instance one with smaller CPU-only wheels

setup: ## Find a Python with torch 2.11.0, or make .venv with it
	@. scripts/env.sh
	echo "Python: $$PYTHON"
	echo "torch:  $$torch"

build: ## Build target/release/pretext3d
	@. scripts/env.sh
	run cargo build --release --locked

pretrain: ## Set up, build, prepare data, train, and export weights/<task>.pt
	@for task in $$(echo "$${TASK:-none}" | tr , ' '); do
	  case " $(TASKS) $(LONG_TASKS) " in
	  *" $$task "*) ;;
	  *) echo "error: TASK=$$TASK: expected one of $(TASKS), or several separated by commas" >&2; exit 2 ;;
	  esac
	done
	if [ -n "$$DATA" ] && [ ! -e "$$DATA" ]; then
	  echo "error: DATA=$$DATA: no such folder or manifest" >&2; exit 2
	fi
	case $${GPUS:=1} in
	*[!0-9]* | 0*) echo "error: GPUS=$$GPUS: expected the number of processes, at least 1" >&2; exit 2 ;;
	esac
	. scripts/env.sh
	run cargo build --release --locked
	pretext3d=$$TARGET/release/pretext3d
	if [ -z "$$DATA" ]; then
	  DATA=data/phantom-brain
	  store=data/stores/phantom-brain
	  if [ ! -d "$$DATA" ]; then
	    rm -rf "$$DATA.part"
	    run "$$pretext3d" phantom --kind brain --subjects 64 --size 64 --seed 0 --out "$$DATA.part"
	    mv "$$DATA.part" "$$DATA"
	  fi
	else
	  # The checksum keeps folders of the same name apart.
	  path=$$(realpath "$$DATA")
	  store=data/stores/$$(basename "$$path" | tr -c 'A-Za-z0-9._\n-' _)-$$(printf %s "$$path" | cksum | cut -d ' ' -f 1)
	fi
	run "$$pretext3d" preprocess --data "$$DATA" --out "$$store" $(PREPROCESS_ARGS)
	set -- "$$pretext3d" pretrain --data "$$store" --task "$$TASK" $(ARGS)
	if [ "$$GPUS" -gt 1 ]; then
	  # torchrun would set it to 1.
	  export OMP_NUM_THREADS=$${OMP_NUM_THREADS:-$$((($$(nproc) + GPUS - 1) / GPUS))}
	  set -- "$$PYTHON" -m torch.distributed.run --standalone --no-python --nproc-per-node "$$GPUS" "$$@"
	fi
	run "$$@"

reproduce: ## Run an experiment of the paper: scripts/EXP.sh
	@case $$EXP in
	hippocampus | idrid | brats | brats2d | pancreas | pancreas2d | retina | scaling | phantom | phantom2d | fundus) exec "scripts/$$EXP.sh" ;;
	*) echo "error: EXP=$$EXP: expected hippocampus, idrid, brats, brats2d, pancreas, pancreas2d, retina, scaling, phantom, phantom2d or fundus" >&2; exit 2 ;;
	esac

test: ## Check formatting and lints, then run the Rust and the Python tests
	@. scripts/env.sh
	overlay .test-venv tests/python/requirements.txt
	run cargo fmt --check
	run cargo clippy --locked --all-targets -- -D warnings
	# Tests that need a GPU are ignored elsewhere.
	run cargo test --locked $$(nvidia-smi -L >/dev/null 2>&1 && echo -- --include-ignored)
	# Of the program that cargo built for its integration tests. Files beside one another, each on a core: their networks are too small for more.
	PRETEXT3D=$$TARGET/debug/pretext3d OMP_NUM_THREADS=1 run .test-venv/bin/python3 -m pytest -q -n auto --maxprocesses 4 --dist loadfile tests/python $(PYTEST_ARGS)

bench: ## Measure against PyTorch, MONAI and TorchIO; figures go to benches/results/
	@. scripts/env.sh
	overlay .bench-venv benches/requirements.txt
	run cargo build --release --locked
	for script in train_steps preprocess sampling photographs dicom; do
	  run .bench-venv/bin/python3 benches/$$script.py
	done

clean: ## Remove builds and the environments of test and bench (.venv, data/, runs/ and weights/ stay)
	rm -rf target .test-venv .bench-venv
