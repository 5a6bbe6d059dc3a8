#!/usr/bin/env bash
# On a machine with an NVIDIA GPU and its driver: what only a card can show, in parts of under ten minutes each, and a table of
# all of it last. Nothing is installed. What each part does: `bash run.sh --help`.
set -uo pipefail
cd "$(dirname "$0")" || exit 1

parts=(correct memcheck racecheck measure tiles steps)
usage() {
  cat <<'TEXT'
bash run.sh [PART...]     without a part: all of them, in this order

  correct     a training run twice, and one killed and resumed: same bits; the losses of the CPU; every kernel
              against the CPU; the codes that bitsandbytes' NF4 has otherwise on the GPU, counted
  memcheck    the tests of the kernels under compute-sanitizer, a module at a time: bad accesses to memory
  racecheck   the same: races in shared memory
  measure     our kernels timed, then those of PyTorch and others at the same cases (gpu_kernels.json)
  tiles       the products in every tile: the line of src/ops/tiles.rs, and on an H100 where wgmma wins
  steps       whole training steps beside transformers + PEFT, Liger and Unsloth (gpu_steps.json)

Variables, with what they are unless set:
  OUT=out          where logs and results go
  LIMIT=570        seconds for a part; what does not fit is a row that says so
  TESTS=           the modules of the kernels' tests that are run ("train nf4"), instead of all
  MODELS=          steps: one model alone, qwen3-0.6b or llama-2-7b (gpu_steps-MODEL.json)
  PYTHON=python3   the one that has torch; without it the parts that need the peers say so

Ends with an error if a step failed or did not fit. What is absent on the machine is no failure.
TEXT
}

for part in "$@"; do
  case " ${parts[*]} --help -h " in
    *" $part "*) ;;
    *) usage && exit 2 ;;
  esac
  [[ $part != -* ]] || { usage && exit; }
done
[ $# -gt 0 ] || set -- "${parts[@]}"

out=${OUT:-$PWD/out}
python=${PYTHON:-python3}
limit=${LIMIT:-570}
mkdir -p "$out" || exit 1
out=$(cd "$out" && pwd)
export QLORA_TEST_ROOT=$PWD
for packed in qlora-engine conformance bench assets/tiny-base/model.safetensors; do
  [ -e "$packed" ] || gunzip --keep "$packed.gz" || exit 1
done
rows=()
failed=0
part_began=$SECONDS

# Seconds that the part has left.
left() {
  echo $((limit - SECONDS + part_began))
}

# A line of the table: name, how it went, seconds, remark.
row() {
  rows+=("$(printf '%-28s %-8s %5d s   %s' "$1" "$2" "$3" "$4")")
  echo "${rows[-1]}"
}

# Runs the rest of its arguments in what the part has left; what is printed goes to $out/$1.log, and one line to the table. Where
# $must is set, the log has to hold it.
step() {
  local name=$1 log=$out/$1.log began=$SECONDS how=ok seconds status remark
  shift
  rm -f "$log"
  seconds=$(left)
  if [ "$seconds" -le 0 ]; then
    row "$name" 'TIME UP' 0 'was not started'
    failed=1
    return
  fi
  if [ "$(type -t "$1")" = function ]; then
    "$@" >"$log" 2>&1
  else
    timeout --kill-after=5 "$seconds" "$@" >"$log" 2>&1
  fi
  status=$?
  remark=$(grep -aE '^error|^done:|test result|SUMMARY|panicked|are not timed' "$log" | tail -1 | cut -c1-150)
  # What `timeout` says where it had to end, or to kill, a program.
  if [ $status -eq 124 ] || { [ $status -eq 137 ] && [ "$(left)" -le 0 ]; }; then
    how='TIME UP'
    remark="$(grep -acE '^test .* \.\.\. ok$' "$log") tests had passed; the one under way is the last in $name.log"
    [[ $name == *conformance* || $name == *check-* ]] || remark=''
  elif [ $status -ne 0 ]; then
    how="FAILED $status"
  elif [ -n "${must:-}" ] && ! grep -aqE "$must" "$log"; then
    how=FAILED
    remark="nothing like \"$must\" in $name.log"
  fi
  [ "$how" = ok ] || failed=1
  row "$name" "$how" $((SECONDS - began)) "$remark"
}

train() {
  timeout --kill-after=5 "$(left)" ./qlora-engine train configs/medical_qlora.yaml "$@"
}

# Whether the card has wgmma, which no rule of the program chooses yet.
hopper() {
  grep -q 'compute capability 9.0' "$out/environment.log"
}

# What the tests of the kernels are told to run on.
on_gpu=(env QLORA_TEST_DEVICE=cuda "QLORA_KERNELS=$PWD/kernels")

# Whether the Python has these modules; if not, a row says so.
has() {
  rm -f "$out/$1.log"
  "$python" -c "import $2" >/dev/null 2>&1 && return
  row "$1" absent 0 "no $2 for $python is here"
  return 1
}

# A run that writes a checkpoint every few steps, killed at its twentieth, then resumed to its end in the same folder.
killed_and_resumed() {
  local folder=$out/run-resumed line pid
  exec 3< <(exec ./qlora-engine train configs/medical_qlora.yaml output_dir="$folder" save_steps=10 2>&1)
  pid=$!
  while read -r -t "$(left)" line <&3; do
    echo "$line"
    [[ $line != *" step 20/"* ]] || kill -KILL "$pid"
  done
  # One that hangs.
  kill -KILL "$pid" 2>/dev/null
  exec 3<&-
  if [ -e "$folder/adapter_model.safetensors" ] || ! compgen -G "$folder/checkpoint-*" >/dev/null; then
    echo "error: the run was not stopped between its first checkpoint and its end"
    return 1
  fi
  train output_dir="$folder" save_steps=10 resume_from_checkpoint=true
}

correct() {
  step training train output_dir="$out/run"
  step training-again train output_dir="$out/run-again"
  step same-bits cmp "$out/run/adapter_model.safetensors" "$out/run-again/adapter_model.safetensors"
  step killed-and-resumed killed_and_resumed
  step same-bits-resumed cmp "$out/run/adapter_model.safetensors" "$out/run-resumed/adapter_model.safetensors"
  # By itself as well, so that it has a line: the bound stands there.
  must=' 1 passed' step losses-of-the-cpu "${on_gpu[@]}" ./conformance --exact train::losses_are_those_of_the_cpu
  if hopper; then
    must=' 1 passed' step losses-by-wgmma "${on_gpu[@]}" QLORA_GEMM_TILE=wgmma-256 QLORA_NF4_PATH=scratch \
      ./conformance --exact train::losses_are_those_of_the_cpu
  fi
  # What the compiler says of the kernels (usage) is looked at where they are compiled.
  # shellcheck disable=SC2086
  step conformance "${on_gpu[@]}" ./conformance --test-threads 1 --skip usage:: ${TESTS:+${TESTS// /:: }::}
  # bitsandbytes on the GPU against its CPU path, which the tests hold ours to.
  has nf4-of-bitsandbytes 'torch, bitsandbytes' &&
    step nf4-of-bitsandbytes "$python" peers/nf4_count.py tests/golden/nf4/nf4.safetensors
}

# The tests under one tool of compute-sanitizer, a process a module, so that what hangs or takes long costs no other's result.
sanitize() {
  local tool=$1 sanitizer module
  sanitizer=$(command -v compute-sanitizer || compgen -G '/usr/local/cuda*/bin/compute-sanitizer' | tail -1)
  if [ -z "$sanitizer" ]; then
    row "$tool" absent 0 'no compute-sanitizer is here'
    return
  fi
  for module in ${TESTS:-$(./conformance --list --format terse | sed -n 's/::.*: test$//p' | uniq)}; do
    # These two launch nothing on a GPU.
    [ "$module" != usage ] && [ "$module" != runtime ] || continue
    must='SUMMARY: 0 (errors|hazards)' step "$tool-$module" \
      "${on_gpu[@]}" "$sanitizer" --tool "$tool" --error-exitcode 9 ./conformance --test-threads 1 "$module::"
  done
}

memcheck() {
  sanitize memcheck
}

racecheck() {
  sanitize racecheck
}

measure() {
  local budget
  must='TFLOP/s' step bench env QLORA_KERNELS="$PWD/kernels" ./bench --bench
  if hopper; then
    must='TFLOP/s' step bench-wgmma env QLORA_KERNELS="$PWD/kernels" QLORA_GEMM_TILE=wgmma-256 QLORA_NF4_PATH=scratch \
      ./bench --bench linear
  fi
  has peers torch || return
  # Each library's process may outlive the budget by a minute.
  budget=$(($(left) - 75))
  budget=$((budget > 300 ? 300 : budget > 1 ? budget : 1))
  step peers "$python" peers/gpu_kernels.py --ours "$out/bench.log" --json "$out/gpu_kernels.json" --budget "$budget"
}

tiles() {
  must='the line for src/ops/tiles.rs' step tiles env QLORA_KERNELS="$PWD/kernels" ./bench tiles
}

steps() {
  has steps torch || return
  step steps "$python" peers/gpu_steps.py --engine ./qlora-engine --work "$PWD/work" --budget $(($(left) - 15)) \
    --json "$out/gpu_steps${MODELS:+-${MODELS//,/-}}.json" ${MODELS:+--models "$MODELS"}
}

# Without a GPU training would go on, on the CPU.
must='^gpu .* multiprocessors' step environment ./qlora-engine env
[ $failed -eq 0 ] || set --
for part in "$@"; do
  part_began=$SECONDS
  $part
done

echo
cat "$out/environment.log"
for part in "$@"; do
  case $part in
    measure)
      echo
      for log in "$out"/bench.log "$out"/bench-wgmma.log; do
        [ ! -f "$log" ] || { echo "$(basename "$log" .log):" && grep -aE '^[^ ]+ .*((TFLOP|GB)/s|failed:)|, medians of ' "$log"; }
      done
      tables=peers
      ;;
    tiles)
      echo
      grep -aE '^[A-Za-z0-9]+ .*TFLOP/s|tiles.rs' -A1 "$out/tiles.log"
      continue
      ;;
    steps) tables=steps ;;
    *) continue ;;
  esac
  echo
  # The table, or the one line that says why there is none.
  [ ! -f "$out/$tables.log" ] || { grep -q '^done:' "$out/$tables.log" && sed -n '/^done:/,$p' "$out/$tables.log"; } ||
    tail -1 "$out/$tables.log"
done
echo
printf '%s\n' "${rows[@]}"
exit $failed
