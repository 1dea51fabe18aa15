#!/usr/bin/env bash
# Builds, tests and measures on a CUDA GPU, with nothing but torch and triton there, without network, in under 9 minutes:
#
#     bash benchmarks/gpu.sh OUT
#
# OUT gets results.json, a log of every stage, and the figures where matplotlib is present. Every stage has its own time
# limit, and what is there when it ends is kept. pytest, matplotlib, compute-sanitizer and the peers are used if found.
# `bash benchmarks/gpu.sh OUT --dry-run` goes through all stages on a CPU, with tiny shapes, in Triton's interpreter.
set -u
ROOT=$(cd "$(dirname "$0")/.." && pwd)
PYTHON=$(command -v "${PYTHON:-python3}") || exit 2
PYTHON=$(cd "$(dirname "$PYTHON")" && pwd)/$(basename "$PYTHON")
DRY=${2:-}
if [ $# -lt 1 ] || { [ -n "$DRY" ] && [ "$DRY" != --dry-run ]; }; then
  echo "usage: bash benchmarks/gpu.sh OUT [--dry-run]" >&2
  exit 2
fi
mkdir -p "$1/source"
OUT=$(cd "$1" && pwd)
WHOLE=530
PATIENCE=1 # what time limits are multiplied by: a dry run tests the stages, not how fast the machine is
[ -z "$DRY" ] || PATIENCE=100
FAILED=()

# stage NAME SECONDS COMMAND...: runs the command with its output in OUT/NAME.log, and says how it ended. No stage gets
# more than is left of the whole.
stage() {
  local name=$1 limit=$(($2 * PATIENCE)) left=$((WHOLE * PATIENCE - SECONDS)) start=$SECONDS status
  shift 2
  if [ $left -le 0 ]; then
    printf '%-10s  no time left\n' "$name"
    FAILED+=("$name")
    return 1
  fi
  [ "$limit" -le $left ] || limit=$left
  timeout -s INT -k 5 "$limit" "$@" >"$OUT/$name.log" 2>&1
  status=$?
  printf '%-10s %4ss  %s\n' "$name" $((SECONDS - start)) "$(outcome $status)"
  [ $status -eq 0 ] || FAILED+=("$name")
  return $status
}

outcome() {
  case $1 in
    0) echo done ;;
    124 | 137) echo "out of time, what it had is kept" ;;
    *) echo "failed, see the end of its log" ;;
  esac
}

# The package as an installation would lay it out (kernels/ is fgrl.kernels), in OUT. Without pyproject.toml any
# setuptools will do: the metadata is not needed.
cp -R "$ROOT/setup.py" "$ROOT/csrc" "$ROOT/fgrl" "$ROOT/kernels" "$OUT/source/"
build() { (cd "$OUT/source" && "$PYTHON" setup.py -q build --build-lib "$OUT/lib"); }
export -f build
export PYTHON OUT
# The checkout is on the path for tests/ and benchmarks/ only; its fgrl/, without kernels and extension, comes second.
# Peers can come as wheels: WHEELS=FOLDER installs those of a folder into OUT, without network and without dependencies.
if [ -n "${WHEELS:-}" ]; then
  "$PYTHON" -m pip install -q --no-index --no-deps --target "$OUT/peers" "$WHEELS"/*.whl >"$OUT/peers.log" 2>&1 ||
    echo "peers      not all of $WHEELS could be installed, see peers.log"
fi
export PYTHONSAFEPATH=1 PYTHONPATH="$OUT/lib:$ROOT:$OUT/peers" MAX_JOBS=${MAX_JOBS:-8}
cd "$OUT" || exit 1

if [ -n "$DRY" ]; then
  export TRITON_INTERPRET=1 OMP_NUM_THREADS=1
  SUITE=(--suite tiny --device cpu)
  OPS=(whiten)
  TESTS=("$ROOT/tests/ops/test_whiten.py")
else
  SUITE=(--suite gpu --device cuda)
  OPS=()
  # What only compiles needs no GPU, and would take the time of what does.
  TESTS=(--ignore "$ROOT/tests/kernels/test_resources.py" "$ROOT/tests/kernels" "$ROOT/tests/ops")
fi

stage build 110 bash -c build || FGRL_SKIP_EXT=1 stage build-pure 15 bash -c build || exit 1
stage doctor 20 "$PYTHON" -m fgrl.cli doctor
stage measure 230 "$PYTHON" -W ignore -m benchmarks run "${SUITE[@]}" --out "$OUT" --seconds $((200 * PATIENCE)) ${OPS:+--ops "${OPS[@]}"}
if "$PYTHON" -c 'import pytest' 2>/dev/null; then
  PARALLEL=$("$PYTHON" -c 'import xdist' 2>/dev/null && echo "-n 4")
  stage tests 150 "$PYTHON" -m pytest -p no:cacheprovider -c "$ROOT/pyproject.toml" --rootdir "$ROOT" \
    --continue-on-collection-errors $PARALLEL "${TESTS[@]}"
else
  echo "tests      skipped: pytest is not there"
fi
stage step 40 "$PYTHON" -W ignore -m benchmarks step "${SUITE[@]}" --out "$OUT"
stage scale 40 "$PYTHON" -W ignore -m benchmarks scale "${SUITE[@]}" --out "$OUT" --seconds $((25 * PATIENCE)) ${OPS:+--ops "${OPS[@]}"}
if [ -z "$DRY" ] && command -v compute-sanitizer >/dev/null; then
  stage sanitizer 60 compute-sanitizer --error-exitcode 3 "$PYTHON" -W ignore -m benchmarks run --suite tiny \
    --device cuda --out "$OUT/sanitizer" --ops whiten gae ppo_loss linear_ppo_loss
else
  echo "sanitizer  skipped: compute-sanitizer is not there"
fi
if "$PYTHON" -c 'import matplotlib' 2>/dev/null; then
  stage plot 15 "$PYTHON" -m benchmarks plot "$OUT" --out "$OUT"
fi
echo "results in $OUT, ${SECONDS}s"
[ ${#FAILED[@]} -eq 0 ] || { echo "not done: ${FAILED[*]}"; exit 1; }
