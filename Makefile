# What a person does with this project. Needed: Rust (the version in Cargo.toml or newer) and a C compiler.

CARGO ?= cargo
CC ?= cc

# What the tests need beside Rust: nvcc, libclang and the openai client, from PyPI into .toolchain/ where the machine has none.
TOOLCHAIN := .toolchain
NVCC_WHEELS := nvidia-cuda-nvcc nvidia-nvvm nvidia-cuda-crt nvidia-cuda-runtime nvidia-cuda-cccl
OPENAI := 3.*
MINUTES ?= 10
LIBCLANG_PATH ?= $(CURDIR)/$(TOOLCHAIN)/clang/native
export LIBCLANG_PATH
KERNEL_FEATURES := --features host-kernels,bindings

.PHONY: tools setup nvcc demo soak test test-asan test-results bindings kernels-report gpu-bundle bench

# Checks for what a build needs, and says how to get it. Cargo fetches the rest.
tools:
	@command -v $(CARGO) >/dev/null || { echo "setup: no cargo found; install Rust from https://rustup.rs"; exit 1; }
	@command -v $(CC) >/dev/null || { echo "setup: no C compiler found; install one, for example: apt-get install gcc"; exit 1; }

# Brings what compiles the kernels (nvcc 13.0, libclang) and what the server is tested with (the openai client), without root,
# only where they are lacking.
setup: tools nvcc
	@if ! ls $(LIBCLANG_PATH)/libclang*.so* >/dev/null 2>&1; then \
		python3 -m pip install --quiet --target $(TOOLCHAIN) libclang; fi
	@if ! test -d $(TOOLCHAIN)/python/openai; then \
		python3 -m pip install --quiet --target $(TOOLCHAIN)/python 'openai==$(OPENAI)'; fi

nvcc:
	@if ! { command -v nvcc || test -x "$$CUDA_HOME/bin/nvcc" || test -x $(TOOLCHAIN)/nvidia/cu13/bin/nvcc; } >/dev/null; then \
		python3 -m pip install --quiet --target $(TOOLCHAIN) $(NVCC_WHEELS:%='%==13.0.*') && touch build.rs; fi

# Builds, fine-tunes the shipped tiny model on the shipped questions, and shows what changed.
demo: tools
	bash assets/demo.sh

# Format, lints and every test.
test: setup test-results
	$(CARGO) fmt --check
	$(CARGO) clippy --all-targets $(KERNEL_FEATURES) -- -D warnings
	$(CARGO) test $(KERNEL_FEATURES)
	$(MAKE) test-asan

# That README.md's performance tables are what the committed results say, and the tests of the script that writes them.
test-results:
	python3 benches/peers/readme_table.py --check
	python3 benches/peers/test_readme_table.py --quiet

# The host-run kernels under AddressSanitizer. Dependencies are shared with the other tests; code for GPUs is not needed.
test-asan: setup
	QLORA_NO_NVCC=1 ASAN_OPTIONS=detect_leaks=0 $(CARGO) test --features host-asan,bindings --test kernels

# Writes src/device/abi.rs anew from kernels/*.h.
bindings: setup
	QLORA_WRITE_BINDINGS=1 $(CARGO) check $(KERNEL_FEATURES)

# The server under random clients for MINUTES, and what it leaves behind.
soak: setup
	$(CARGO) build --release
	PYTHONPATH=$(TOOLCHAIN)/python python3 tests/serve/soak.py --binary target/release/qlora-engine --minutes $(MINUTES)

# Registers, spills and occupancy of every kernel on every architecture.
kernels-report: setup
	$(CARGO) test $(KERNEL_FEATURES) --test kernels usage -- --nocapture

# One folder that a machine with a GPU and nothing but its driver can run: bash run.sh there.
gpu-bundle: setup
	bash benches/gpu/bundle.sh

# Timings of the operations and of a whole training step.
bench: tools
	$(CARGO) bench
