#!/bin/sh
# Builds and runs bench/attention.cpp: attention.sh [ISA [THREADS [quick or sampler]]]
# ISA: portable, avx2, avx512 or avx512bf16 (the default).
set -e
cd "$(dirname "$0")/.."
isa=${1:-avx512bf16}
avx512="-mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma -mf16c"
case $isa in
  portable) flags="" ;;
  avx2) flags="-mavx2 -mfma -mf16c" ;;
  avx512) flags="$avx512" ;;
  avx512bf16) flags="$avx512 -mavx512bf16" ;;
  *) echo "expected portable, avx2, avx512 or avx512bf16 but received $isa" >&2; exit 2 ;;
esac
mkdir -p build/bench
g++ -std=c++17 -O3 -pthread -Wno-uninitialized -Wno-maybe-uninitialized $flags -DMILLRACE_ISA=$isa \
  bench/attention.cpp native/cpu/attention.cpp -o build/bench/attention-$isa
exec build/bench/attention-$isa "${2:-2}" $3
