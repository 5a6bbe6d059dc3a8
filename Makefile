# What a person does with this project. Needed: Rust (the version in Cargo.toml or newer) and a C compiler.

CARGO ?= cargo
CC ?= cc

.PHONY: setup demo test bench

# Checks for what is needed, and says how to get it. Cargo fetches the rest.
setup:
	@command -v $(CARGO) >/dev/null || { echo "setup: no cargo found; install Rust from https://rustup.rs"; exit 1; }
	@command -v $(CC) >/dev/null || { echo "setup: no C compiler found; install one, for example: apt-get install gcc"; exit 1; }

# Builds, fine-tunes the shipped tiny model on the shipped questions, and shows what changed.
demo: setup
	bash assets/demo.sh

# Format, lints and every test.
test: setup
	$(CARGO) fmt --check
	$(CARGO) clippy --all-targets -- -D warnings
	$(CARGO) test

# Timings of the operations and of a whole training step.
bench: setup
	$(CARGO) bench
