# Verbs only: each target is a cargo or ptsbench command. `make help` lists them.

CARGO ?= cargo
RUST := 1.95
OUT ?= out
PLAN ?= micro
DEVICE ?= wgpu
PYTHON ?= python3
WHOLE = $(if $(filter 1,$(FULL)),--full)
# The whole workspace is always built together: one set of features for every crate, so nothing is compiled twice.
PROGRAMS = $$($(CARGO) metadata --format-version 1 --no-deps | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')/release
PTSBENCH = $(CARGO) build --release --workspace --quiet && "$(PROGRAMS)/ptsbench"

.PHONY: help rust build bench-all figures test check test-kernels fuzz test-gpu test-gpu-setup gpu-check test-cuda-text bench-kernels bench-data bench-metrics readme-results ship-results micro-zoo check-gpu clean

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

rust:
	@command -v $(CARGO) >/dev/null || { echo "cargo is not installed; install Rust $(RUST) or newer (https://rustup.rs), then run make again" >&2; exit 1; }
	@have=$$(rustc --version | cut -d' ' -f2 | cut -d- -f1); \
	  [ "$$(printf '%s\n%s\n' $(RUST) "$$have" | sort -V | head -n 1)" = "$(RUST)" ] || \
	  { echo "Rust $$have is too old; install $(RUST) or newer (rustup update stable), then run make again" >&2; exit 1; }
	@command -v cc >/dev/null || { echo "there is no C compiler and linker (cc); install one, e.g. gcc or clang, then run make again" >&2; exit 1; }

build: rust ## compile everything (about 10 minutes the first time)
	$(CARGO) build --release --workspace

bench-all: build ## run the micro suite and write out/report.html, out/tables and out/figures; FULL=1 runs all of it
	$(PTSBENCH) run $(PLAN) $(WHOLE) --store $(OUT)/records
	$(PTSBENCH) report --plan $(PLAN) $(WHOLE) --store $(OUT)/records --out $(OUT)
	$(PTSBENCH) figures --plan $(PLAN) $(WHOLE) --store $(OUT)/records --out $(OUT)

figures: rust ## draw all tables and figures again, from the records alone
	$(PTSBENCH) report --plan $(PLAN) $(WHOLE) --store $(OUT)/records --out $(OUT)
	$(PTSBENCH) figures --plan $(PLAN) $(WHOLE) --store $(OUT)/records --out $(OUT)

test: rust ## format, lints, and every test
	@scripts/test

check: rust ## format and lints alone
	$(CARGO) fmt --all --check
	$(CARGO) clippy --release --workspace --all-targets -- -D warnings

test-kernels: rust ## the kernels' tests alone
	$(CARGO) test --release -p ptsbench-tests -p kernels --lib --test products --test linear --test rows --test pointwise --test depthwise --test sparse --test amx --test ops -- --show-output

fuzz: rust ## 10^6 mutated files against every parser
	PTSBENCH_FUZZ=1000000 $(CARGO) test --release --workspace --test fuzz -- --nocapture

bench-kernels: build ## time the kernels beside stock Burn; GATE=1 fails if a goal is missed, ARGS="--filter conv" goes on
	"$(PROGRAMS)/bench-kernels" $(if $(filter 1,$(GATE)),--gate) $(ARGS)

bench-data: rust ## time reading, decoding and resizing of pictures; PEER=python times Pillow and torchvision beside it
	$(CARGO) build --release --workspace --examples
	"$(PROGRAMS)/examples/bench_data" generate $(OUT)/bench-data --classes 10 --each 100
	"$(PROGRAMS)/examples/bench_data" time $(OUT)/bench-data
	$(if $(PEER),$(PEER) tests/peers/data_peer.py $(OUT)/bench-data)

bench-metrics: rust ## time COCO AP and the Frechet distance beside pycocotools and scipy; PYTHON=a python that has them
	$(CARGO) build --release --workspace --examples
	$(PYTHON) tests/peers/metric_peer.py --ours "$(PROGRAMS)/examples/metric_times" $(ARGS)

readme-results: rust ## write the results in README and docs again, from the shipped records
	PTSBENCH_UPDATE_SNAPSHOTS=1 $(CARGO) test --release --workspace --test results

ship-results: build ## run the micro suite and ship its records
	$(PTSBENCH) run micro --store $(OUT)/shipped
	$(PTSBENCH) pack assets/results/micro.jsonl.gz --store $(OUT)/shipped --plan micro

micro-zoo: rust ## train the built-in networks again (several hours; an interrupted run goes on)
	$(PTSBENCH) micro-zoo

check-gpu: rust ## compile-check the GPU builds
	$(CARGO) check --release --workspace --features ptsbench/wgpu
	$(CARGO) check --release --workspace --features ptsbench/cuda,ptsbench/vulkan,ptsbench/autotune

test-cuda-text: rust ## the CUDA kernels without a GPU: text, machine code where PTSBENCH_NVRTC names a library, numbers on the CPU
	$(CARGO) test --manifest-path kernels/cuda-text/Cargo.toml -- --nocapture

gpu-check: rust ## build, pack and run everything a GPU can be asked about; the folder runs elsewhere too
	scripts/pack-gpu $(OUT)/gpu-box
	sh $(OUT)/gpu-box/run.sh

test-gpu: rust ## test the kernels and a small plan on DEVICE, wgpu (a software adapter will do) or cuda
	@scripts/test-gpu $(DEVICE)

test-gpu-setup: ## what make test-gpu needs, and what of it is here
	@scripts/test-gpu setup

clean: ## delete results (not the compiled program)
	rm -rf $(OUT)
