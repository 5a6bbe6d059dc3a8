#!/usr/bin/env bash
# On a machine with an NVIDIA GPU and its driver: every kernel against the CPU, a short training run, the benches, and a
# table of all of it last. Results go to the folder $OUT, or ./out. Nothing is installed.
set -uo pipefail
cd "$(dirname "$0")"
out=${OUT:-$PWD/out}
mkdir -p "$out"
export QLORA_TEST_ROOT=$PWD
for packed in qlora-engine conformance bench assets/tiny-base/model.safetensors; do
  [ -e "$packed" ] || gunzip --keep "$packed.gz" || exit 1
done
rows=()
failed=0

# Runs the rest of its arguments; what is printed goes to $out/$1.log, and one line to the table.
step() {
  local name=$1 began=$SECONDS status
  shift
  "$@" >"$out/$name.log" 2>&1
  status=$?
  [ $status -eq 0 ] || failed=1
  rows+=("$(printf '%-28s %-8s %5d s   %s' "$name" "$([ $status -eq 0 ] && echo ok || echo "FAILED $status")" \
    $((SECONDS - began)) "$(grep -E 'test result|done:|error' "$out/$name.log" | tail -1)")")
}

step environment ./qlora-engine env
# What the compiler says of the kernels (usage) is looked at where they are compiled.
step conformance-on-gpu env QLORA_TEST_DEVICE=cuda QLORA_KERNELS="$PWD/kernels" ./conformance --test-threads 1 --skip usage::
step training ./qlora-engine train configs/medical_qlora.yaml output_dir="$out/run"
step training-again ./qlora-engine train configs/medical_qlora.yaml output_dir="$out/run-again"
step same-bits cmp "$out/run/adapter_model.safetensors" "$out/run-again/adapter_model.safetensors"
step training-on-cpu ./qlora-engine train configs/medical_qlora.yaml output_dir="$out/run-cpu" use_cpu=true bf16=true
step bench env QLORA_KERNELS="$PWD/kernels" ./bench --bench
# The kernels of PyTorch and others beside ours, where the machine has them: nothing fails without them.
if python3 -c 'import torch' >/dev/null 2>&1; then
  before=$failed
  step peers python3 peers/gpu_kernels.py --ours "$out/bench.log" --json "$out/gpu_kernels.json"
  failed=$before
else
  rows+=("$(printf '%-28s %-8s %5d s   %s' peers absent 0 'no python3 with torch is here')")
fi

echo
cat "$out/environment.log"
echo
grep -E '^(time|bench|[A-Za-z0-9_.-]+ .*(TFLOP|GB)/s)' "$out/bench.log"
if [ -f "$out/peers.log" ]; then
  echo
  # The table, or the one line that says why there is none.
  grep -q '^done:' "$out/peers.log" && sed -n '/^done:/,$p' "$out/peers.log" || tail -1 "$out/peers.log"
fi
echo
printf '%s\n' "${rows[@]}"
exit $failed
