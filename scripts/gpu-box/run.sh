#!/bin/sh
# On a machine with a GPU and no network: what is there, whether the kernels are right, how fast they are.
#
#   sh run.sh                      every step: inventory, correctness, plan, benchmark, step, peers, cpu
#   sh run.sh correctness step     some of them
#
# Each step is useful alone, takes at most 8 minutes, and leaves its part in results/; the last act of every run joins
# the parts to results/gpu-check.json. The exit code is 1 if a step that could run failed. A step that cannot run here
# says why in one line.
set -u
cd "$(dirname "$0")"
limit=480
results=$PWD/results
mkdir -p "$results" programs
[ -n "${XDG_RUNTIME_DIR:-}" ] || { XDG_RUNTIME_DIR=$results/runtime; mkdir -p -m 700 "$XDG_RUNTIME_DIR"; export XDG_RUNTIME_DIR; }
packed=programs.tar.gz
[ -f "$packed" ] || packed=programs.tar.xz
if [ ! -x programs/bench-kernels ] || [ "$packed" -nt programs/bench-kernels ]; then
  case $packed in
    *.gz) tar -xzf "$packed" -C programs || exit 2 ;;
    *) xz -dc "$packed" | tar -xf - -C programs || { echo "$packed needs xz" >&2; exit 2; } ;;
  esac
  touch programs/bench-kernels programs/ptsbench
fi
self=$PWD/run.sh
bench=$PWD/programs/bench-kernels
ptsbench=$PWD/programs/ptsbench
failed=0

say() { printf '%s\n' "$*"; }

# A string as JSON.
quoted() { sed 's/\\/\\\\/g; s/"/\\"/g; s/\t/ /g' | awk 'BEGIN { printf "\"" } NR > 1 { printf "\\n" } { printf "%s", $0 } END { print "\"" }'; }

# `step NAME`: this script again for that step, under a time limit where the system has one; what it prints goes to the
# screen and to a log, its fate into the summary.
step() {
  name=$1
  say ""; say "== $name"
  start=$(date +%s)
  if command -v timeout >/dev/null; then set -- timeout -k 10 "$limit" sh "$self" --one "$name"; else set -- sh "$self" --one "$name"; fi
  { "$@" 2>&1; echo $? >"$results/$name.status"; } | tee "$results/$name.log"
  status=$(cat "$results/$name.status"); rm "$results/$name.status"
  seconds=$(($(date +%s) - start))
  case $status in
    0) fate=passed ;;
    2) fate="not run" ;; # what it needs is not there, which its last line says
    124 | 137) fate="stopped after $limit s"; failed=1 ;;
    *) fate="failed ($status)"; failed=1 ;;
  esac
  say "-- $name: $fate, $seconds s"
  printf '{"step": "%s", "outcome": "%s", "seconds": %s, "last_line": %s}\n' "$name" "$fate" "$seconds" \
    "$(tail -n 1 "$results/$name.log" | quoted)" >"$results/$name.step.json"
}

# The parts that are there, as one JSON.
join() {
  comma=
  printf '{"schema": 1,\n"build": %s,\n"inventory": %s,\n"steps": [' "$(quoted <build.txt)" "$(cat "$results/inventory.log" 2>/dev/null | quoted)"
  for part in "$results"/*.step.json; do
    [ -e "$part" ] || continue
    printf '%s\n' "$comma"; tr -d '\n' <"$part"; comma=,
  done
  printf '\n]'
  for part in check-cuda check-wgpu plan kernels step peers cpu; do
    [ -e "$results/$part.json" ] || continue
    printf ',\n"%s": ' "$part"; cat "$results/$part.json"
  done
  printf '}\n'
}

# Folders that may hold the CUDA toolkit, the one that is asked for first.
toolkits() {
  for folder in "${CUDA_PATH:-}" "${CUDA_HOME:-}" /usr/local/cuda /usr/local/cuda-* /opt/cuda /usr/lib/cuda /usr; do
    [ -n "$folder" ] && [ -d "$folder" ] && printf '%s\n' "$folder"
  done
  # The wheels that PyTorch brings along.
  for python in python3 python; do
    command -v $python >/dev/null || continue
    $python - <<'P' 2>/dev/null
import glob, site, sys
for base in site.getsitepackages() + [site.getusersitepackages()]:
    for folder in sorted(glob.glob(base + "/nvidia/cu*") + glob.glob(base + "/nvidia/cuda_*")):
        print(folder)
P
    break
  done
}

# The first toolkit with headers becomes CUDA_PATH, if none was given; NVRTC's folder joins the library path.
find_cuda() {
  for folder in $(toolkits); do
    if [ -z "${CUDA_PATH:-}" ] && [ -e "$folder/include/cuda_fp16.h" ]; then CUDA_PATH=$folder; export CUDA_PATH; fi
    for library in "$folder"/lib64/libnvrtc.so* "$folder"/lib/libnvrtc.so* "$folder"/lib/*/libnvrtc.so*; do
      [ -e "$library" ] || continue
      nvrtc=${nvrtc:-$library}
      LD_LIBRARY_PATH=$(dirname "$library")${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}; export LD_LIBRARY_PATH
      break
    done
  done
}

inventory() {
  if command -v sha256sum >/dev/null; then
    sha256sum -c --quiet sums.txt || { say "the folder is not as it was packed; copy it again"; return 1; }
  fi
  say "machine: $(uname -srm), $(getconf _NPROCESSORS_ONLN) processors, $(getconf GNU_LIBC_VERSION 2>/dev/null || echo 'C library unknown')"
  if command -v nvidia-smi >/dev/null; then
    nvidia-smi --query-gpu=name,driver_version,memory.total,compute_cap,power.limit --format=csv,noheader || nvidia-smi -L
  else
    say "nvidia-smi: not found"
  fi
  say "driver: $(head -n 1 /proc/driver/nvidia/version 2>/dev/null || echo 'no NVIDIA driver')"
  say "toolkit headers: ${CUDA_PATH:-none found; CUDA kernels are compiled on this machine and need them}"
  say "NVRTC: ${nvrtc:-none found; CUDA kernels are compiled with it}"
  if ldconfig -p 2>/dev/null | grep -q libvulkan.so.1; then
    say "Vulkan loader: found; drivers: $(ls /usr/share/vulkan/icd.d /etc/vulkan/icd.d 2>/dev/null | grep json | tr '\n' ' ')"
  else
    say "Vulkan loader: not found; --device wgpu needs libvulkan.so.1"
  fi
  cat build.txt
  "$ptsbench" doctor --store "$results/records"
}

# The test list on every device; a device that is not there is not a failure.
correctness() {
  worst=2
  for device in cuda wgpu; do
    "$bench" check --device $device --json "$results/check-$device.json"
    status=$?
    case $status in 0) [ $worst = 2 ] && worst=0 ;; 2) ;; *) worst=$status ;; esac
  done
  return $worst
}

# The fastest device that answers, or one line and "not run".
choose_device() {
  for chosen in cuda wgpu; do
    "$bench" check --device $chosen --probe >/dev/null 2>&1 && return
  done
  "$bench" check --device wgpu --probe
  return 2
}

# `smoke DEVICE`: the smallest plan from allocation to scores; its lines stay in results/smoke-DEVICE.log.
smoke() {
  rm -rf "$results/store-$1"
  "$ptsbench" run smoke --device "$1" --store "$results/store-$1" --assets assets >"$results/smoke-$1.log" 2>&1
  status=$?
  cat "$results/smoke-$1.log"
  return $status
}

# The smoke plan on the CPU and on the GPU: the top-1 of both, side by side.
plan() {
  choose_device || return 2
  smoke flex && smoke "$chosen" || return 1
  printf '{"device": "%s",\n"cpu": %s,\n"gpu": %s}\n' "$chosen" \
    "$(quoted <"$results/smoke-flex.log")" "$(quoted <"$results/smoke-$chosen.log")" >"$results/plan.json"
}

benchmark() {
  choose_device || return 2
  "$bench" --device "$chosen" $quick --json "$results/kernels.json"
}

# One reconstruction step of a ResNet-50-shaped and a ViT-B-shaped block.
block_step() {
  choose_device || return 2
  "$bench" --device "$chosen" --set "$block_rows" $quick --filter "block " --json "$results/step.json"
}

peers() {
  for python in python3 python; do
    command -v $python >/dev/null || continue
    $python -c 'import torch, sys; sys.exit(not torch.cuda.is_available())' 2>/dev/null || continue
    $python torch_gpu.py --ours "$results/kernels.json" --json "$results/peers.json"
    return
  done
  say "no Python with PyTorch and CUDA, so no cuBLAS and no cuSPARSELt to compare with"
  return 2
}

# What needs no GPU: the CPU's kernels at sizes of seconds, the smoke plan, the data sets' readers.
cpu() {
  "$bench" --quick --json "$results/cpu.json" && smoke flex || return 1
  for folder in golden/datasets/valid/cifar/* golden/datasets/valid/[!c]* golden/datasets/valid/coco; do
    "$ptsbench" data check "$folder" || return 1
  done
  say "the CPU's part works"
}

find_cuda
# QUICK=1: the smallest rows, three rounds; for trying the folder on a software adapter.
quick=${QUICK:+--quick}
block_rows=${QUICK:+smoke}
block_rows=${block_rows:-gpu_step}
if [ "${1:-}" = --one ]; then
  case $2 in step) block_step ;; *) "$2" ;; esac
  exit
fi
[ $# -gt 0 ] || set -- inventory correctness plan benchmark step peers cpu
for name in "$@"; do
  case $name in
    inventory | correctness | plan | benchmark | step | peers | cpu) step "$name" ;;
    *) say "no step is called $name; the steps are inventory, correctness, plan, benchmark, step, peers, cpu" >&2; exit 2 ;;
  esac
done
join >"$results/gpu-check.json.part" && mv "$results/gpu-check.json.part" "$results/gpu-check.json"
say ""; say "written to $results/gpu-check.json"
exit $failed
