#!/usr/bin/env bash
# The whole way in a few minutes: build, ask the tiny base a question, fine-tune it with QLoRA, ask again.
set -euo pipefail
cd "$(dirname "$0")/.."
config=configs/medical_qlora.yaml
adapter=saves/tiny/qlora/medical
engine=target/release/qlora-engine
questions=("What does HbA1c measure?" "多久洗一次牙？")

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
ask() { for q in "${questions[@]}"; do printf '  Q: %s\n  A: %s\n' "$q" "$("$engine" generate --greedy --max-new-tokens 128 --prompt "$q" "$config" "$@" 2>/dev/null)"; done; }

say "1. Build"
"${CARGO:-cargo}" build --release
say "2. The base model, before (it was trained on text about many things, and has never seen these answers)"
ask
say "3. QLoRA: the base in 4 bits, an adapter of rank 32 on all linear layers, 28 questions"
"$engine" train "$config"
say "4. The same questions, after"
ask adapter_name_or_path="$adapter"
say "The adapter is in $adapter; PEFT and LLaMA-Factory load it as it is."
