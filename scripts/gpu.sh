#!/usr/bin/env bash
# Builds, checks and measures the CUDA backend on a GPU machine in one command, under 10 minutes:
#
#     scripts/gpu.sh [build] [checks] [tests] [floors]      without a part: these four
#     scripts/gpu.sh sanitize                               the checks under compute-sanitizer
#
# The machine needs a GPU and its driver. Node may be carried along: NODE_ARCHIVE, or node.xz (the
# binary alone) or node-*.tar.xz in this folder, the project's or the one above. Without npm, dist/
# and node_modules/node-api-headers must have come along, too; without nvcc, build/.
#
#     NODE_ARCHIVE   file of Node's binary or of its distribution
#     SKIP_BUILD=1   use build/ as it is
#     CUDA_ARCHS     default: that of this GPU
#     ONLY           rows of the floors, as of bench/gpu/floors.js --only
#     RUNS           measurements of each row, default 3
#     JSON           write the floors to this file
#     TIME=1         check programs report times as well
#
# Each part has a time limit and goes on after a failure. Exit code 1 if any part failed.
set -uo pipefail
cd "$(dirname "$0")/.."

parts=("$@")
[ ${#parts[@]} -eq 0 ] && parts=(build checks tests floors)
for part in "${parts[@]}"; do
  case $part in
    build | checks | tests | floors | sanitize) ;;
    *) echo "Unknown part $part: build, checks, tests, floors or sanitize" >&2; exit 2 ;;
  esac
done

summary=()
failed=0
began=$SECONDS

# note NAME STATUS DETAIL
note() {
  summary+=("$(printf '%-28s %-6s %s' "$1" "$2" "$3")")
  [ "$2" = FAIL ] && failed=1
}

# repeat TEXT: its lines in the summary, too
repeat() {
  local line
  while IFS= read -r line; do summary+=("    $line"); done <<< "$1"
}

wants() { [[ " ${parts[*]} " == *" $1 "* ]]; }

# bounded SECONDS COMMAND...: ends it kindly at first, and what it started
bounded() { timeout --kill-after=5 "$@"; }

find_node() {
  command -v node > /dev/null && return 0
  local folder archive
  for archive in "${NODE_ARCHIVE:-}" {scripts,.,..}/node.xz {scripts,.,..}/node-*.tar.xz; do
    [ -f "$archive" ] || continue
    folder=$(mktemp -d)
    echo "unpacking Node from $archive"
    case $archive in
      *.tar.*) tar -xf "$archive" -C "$folder" --strip-components=1 || continue ;;
      *)
        mkdir "$folder/bin"
        xz -dc "$archive" > "$folder/bin/node" || continue
        chmod +x "$folder/bin/node"
        ;;
    esac
    export PATH="$folder/bin:$PATH"
    node --version > /dev/null && return 0
  done
  echo "Node was not found: put it on PATH, or set NODE_ARCHIVE to node.xz or node-*.tar.xz" >&2
  return 1
}

gpu_arch() {
  local capability
  capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2> /dev/null | head -1 | tr -d '. ')
  # Hopper's own instructions are in 90a alone.
  [ "$capability" = 90 ] && capability=90a
  echo "$capability"
}

build() {
  local log
  if [ "${SKIP_BUILD:-}" != 1 ]; then
    log=$(CUDA_ARCHS=${CUDA_ARCHS:-$(gpu_arch)} bounded 240 node scripts/build-cuda.mjs --checks 2>&1)
    local status=$?
    echo "$log"
    if [ $status -ne 0 ] && [ -f build/millrace-cuda.node ] && [[ $log == *'cannot be built'* ]]; then
      note build ok 'not possible here; build/ is used as it came'
    elif [ $status -ne 0 ]; then
      note build FAIL "$(echo "$log" | grep -m1 -E 'millrace:|error' || echo "not done in 240 s")"
    else
      note build ok "$(echo "$log" | tail -1)"
    fi
  fi
  # Some tests compare with the CPU.
  if ! log=$(bounded 120 node scripts/build.mjs native 2>&1); then
    echo "$log"
    note 'CPU code' FAIL "$(echo "$log" | grep -m1 millrace:)"
  fi
  if [ ! -f dist/src/index.js ]; then
    if [ -f node_modules/typescript/bin/tsc ]; then
      node scripts/build.mjs ts || note dist FAIL 'TypeScript does not compile'
    else
      note dist FAIL 'dist/ is missing, and without node_modules it cannot be built: run npm ci where npm is'
    fi
  fi
}

# each_check LABEL SECONDS PREFIX... -- ARGUMENTS...: runs every check program
each_check() {
  local label=$1 seconds=$2 program name log last status
  shift 2
  local prefix=()
  while [ "$1" != -- ]; do prefix+=("$1"); shift; done
  shift
  if ! compgen -G 'build/cuda-checks/check_*' > /dev/null; then
    note checks FAIL 'no programs in build/cuda-checks: npm run build:cuda -- --checks'
    return
  fi
  for program in build/cuda-checks/check_*; do
    [[ $program == *.stamp ]] && continue
    name="$label$(basename "$program")"
    echo "== $name"
    log=$(bounded "$seconds" "${prefix[@]}" "$program" "$@" 2>&1)
    status=$?
    echo "$log"
    last=$(echo "$log" | tail -1)
    [ $status -eq 124 ] && last="not done in $seconds s, after: $last"
    if [ $status -eq 0 ]; then
      note "$name" ok "$last"
    else
      note "$name" FAIL "$last"
      repeat "$(echo "$log" | grep -E 'FAIL|=========' | head -20)"
    fi
  done
}

checks() { each_check '' 60 -- ${TIME:+--time}; }

sanitize() {
  local tool
  tool=$(PATH="$PATH:${CUDA_HOME:-/usr/local/cuda}/bin" command -v compute-sanitizer)
  if [ -z "$tool" ]; then
    note sanitize FAIL 'compute-sanitizer is not in PATH or in the toolkit'
    return
  fi
  each_check 'sanitizer ' 100 "$tool" --error-exitcode 9 -- --quick
}

tests() {
  local log status
  echo '== test:cuda'
  log=$(mktemp)
  bounded 120 node scripts/test.mjs --gpu 2>&1 | tee "$log"
  status=${PIPESTATUS[0]}
  if [ "$status" -eq 0 ]; then
    note tests ok "$(tail -1 "$log")"
  else
    note tests FAIL "$(tail -1 "$log")"
    repeat "$(grep -E '^ *(✖|HANGS)' "$log" | sort -u | head -30)"
  fi
}

floors() {
  local log status
  echo '== floors'
  log=$(mktemp)
  bounded 300 node dist/bench/gpu/floors.js --budget 280 --runs "${RUNS:-3}" \
    ${ONLY:+--only "$ONLY"} ${JSON:+--json "$JSON"} > "$log"
  status=$?
  if [ "$status" -eq 0 ]; then note floors ok 'all met'; else note floors FAIL 'not all met'; fi
  repeat "$(cat "$log")"
}

nvidia-smi --query-gpu=name,memory.total,driver_version,clocks.max.sm --format=csv,noheader \
  || echo 'nvidia-smi does not run: is there a GPU?' >&2
find_node || exit 1
# What is current is not built again, so every part begins with it.
build
wants checks && checks
wants sanitize && sanitize
wants tests && tests
wants floors && floors

printf '\n%s\n' "-- summary, $((SECONDS - began)) s"
printf '%s\n' "${summary[@]}"
exit $failed
