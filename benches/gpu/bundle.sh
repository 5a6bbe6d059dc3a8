#!/usr/bin/env bash
# Puts everything that a machine with a GPU and nothing but its driver needs into one folder: `make gpu-bundle`.
set -euo pipefail
cd "$(dirname "$0")/../.."
out=${1:-target/gpu-bundle}
features=(--features host-kernels)
rm -rf "$out"
mkdir -p "$out/configs"

# The path of the one executable that a cargo command builds for `$1`.
built() {
  local name=$1
  shift
  "$@" --message-format=json | python3 -c '
import json, sys
paths = [m["executable"] for m in map(json.loads, sys.stdin)
         if m.get("reason") == "compiler-artifact" and m.get("executable") and m["target"]["name"] == sys.argv[1]]
print(paths[-1])' "$name"
}

cp "$(built qlora-engine cargo build --release --bin qlora-engine)" "$out/qlora-engine"
# The kernels are in the program; the other executables load the same from a folder, so that the bundle holds them twice and not
# four times.
mkdir "$out/kernels"
cargo build --release --bin qlora-engine --message-format=json 2>/dev/null | python3 -c '
import json, re, shutil, sys
from pathlib import Path
ran = [m for m in map(json.loads, sys.stdin) if m["reason"] == "build-script-executed" and "qlora-engine" in m["package_id"]]
table = Path(ran[-1]["out_dir"], "kernels.rs").read_text()
found = re.findall(r"\"([^\"]*/([a-z0-9_]+)-[0-9a-f]+\.fatbin)\"", table)
for path, stem in found:
    shutil.copy(path, Path(sys.argv[1], stem + ".fatbin"))
sys.exit(0 if found else "gpu-bundle: the program was built without kernels; run make setup")' "$out/kernels"
export QLORA_NO_NVCC=1
cp "$(built kernels cargo test --release "${features[@]}" --test kernels --no-run)" "$out/conformance"
cp "$(built kernels cargo bench "${features[@]}" --bench kernels --no-run)" "$out/bench"
strip "$out/qlora-engine" "$out/conformance" "$out/bench"
mkdir "$out/assets"
cp -r assets/tiny-base assets/data "$out/assets/"
cp configs/medical_qlora.yaml "$out/configs/"
cp benches/gpu/run.sh "$out/run.sh"
mkdir -p "$out/tests/golden/models"
# What the tests of the kernels load: the models, without the results of others.
for model in gpt2 llama3 mistral phi3 qwen3; do
  cp -r "tests/golden/models/$model" "$out/tests/golden/models/"
  rm -rf "$out/tests/golden/models/$model/golden"
done
cp tests/golden/models/nf4.safetensors "$out/tests/golden/models/"
cp -r tests/golden/nf4 "$out/tests/golden/"
mkdir "$out/peers"
cp benches/peers/gpu_common.py benches/peers/gpu_kernels.py benches/peers/gpu_steps.py benches/peers/nf4_count.py "$out/peers/"

# What the executables ask of the machine: the C library of the oldest system in use, and no C++ library.
for exe in qlora-engine conformance bench; do
  newest=$(objdump -T "$out/$exe" | grep -o 'GLIBC_[0-9.]*' | sort -uV | tail -1)
  if [ "$(printf '%s\nGLIBC_2.34\n' "$newest" | sort -V | tail -1)" != GLIBC_2.34 ]; then
    echo "gpu-bundle: $exe needs $newest; 2.34 is the newest that every supported system has" >&2
    exit 1
  fi
  if objdump -p "$out/$exe" | grep -q 'NEEDED.*libstdc++'; then
    echo "gpu-bundle: $exe needs libstdc++" >&2
    exit 1
  fi
done
# What is large is packed, and unpacked by run.sh: the folder has to travel.
gzip -9 "$out/qlora-engine" "$out/conformance" "$out/bench" "$out/assets/tiny-base/model.safetensors"
size=$(du -sb "$out" | cut -f1)
if [ "$size" -ge 40000000 ]; then
  echo "gpu-bundle: $out has $size bytes; the limit is 40 MB" >&2
  exit 1
fi
echo "gpu-bundle: $out, $size bytes; on the machine with the GPU: bash run.sh"
