#!/bin/bash
# Verifies Puna on a Mac, in one go, and writes one file that can be shown to anybody: the home folder, the folders of
# models and peers, the host's and the user's names are taken out of it. bash 3.2, which macOS has, is enough.
#
#   tests/on_mac.sh [--model FILE.gguf] [--llama FOLDER] [--mlx-lm PYTHON --mlx-model FOLDER] [--out FILE] [--quick]
#                   [--no-service] [--only STEP] [--dry-run]
#
# --model      a GGUF file to measure with (default: cria, which is small and says little about speed)
# --llama      llama.cpp's binaries (llama-bench, llama-batched-bench), for a run side by side
# --mlx-lm     a python that has mlx_lm, and an MLX folder of the same model, for its own benchmark
# --quick      short measurements: a look whether all works
# --no-service leaves the LaunchAgent alone; a service that is installed already is left alone in any case
# --only       one step, by its name
# --dry-run    says what would be done, and does nothing
#
# A step that fails is noted and the next one goes on; the exit code is the number of failed steps, at most 99. Ctrl-C
# ends a step, twice within two seconds everything; the report is written and the service removed in any case.
set -u
HERE=$PWD
cd "$(dirname "$0")/.." || exit 1
ROOT=$PWD
BIN=.venv/bin
PORT=7863

model=models/cria/cria.gguf llama='' mlx_python='' mlx_model='' out=$HERE/on_mac_report.txt only=''
quick='' service=yes dry=''

usage() { sed -n '2,18s/^# \{0,1\}//p' "$ROOT/tests/on_mac.sh"; }

wanted() { # an option's name and what follows it
  if [ $# -lt 2 ] || [ -z "$2" ]; then
    echo "$1: what? See --help" >&2
    exit 2
  fi
  printf '%s' "$2"
}

absolute() { # a path as the caller means it; a bare name may be a program's
  case $1 in
    /*) printf '%s' "$1" ;;
    *) printf '%s' "$HERE/$1" ;;
  esac
}

redact_only=''
while [ $# -gt 0 ]; do
  case $1 in
    --model | --llama | --mlx-lm | --mlx-model | --out | --only)
      value=$(wanted "$@") || exit 2
      case $1 in
        --model) model=$(absolute "$value") ;;
        --llama) llama=$(absolute "$value") ;;
        --mlx-lm) case $value in */*) mlx_python=$(absolute "$value") ;; *) mlx_python=$value ;; esac ;;
        --mlx-model) mlx_model=$(absolute "$value") ;;
        --out) out=$(absolute "$value") ;;
        --only) only=$value ;;
      esac
      shift
      ;;
    --quick) quick=--quick ;;
    --no-service) service='' ;;
    --dry-run) dry=yes ;;
    --redact) redact_only=yes ;; # standard input as the report would have it; for the tests
    -h | --help) usage && exit 0 ;;
    *) echo "$1: no such option; see --help" >&2 && exit 2 ;;
  esac
  shift
done

on_mac() { [ "$(uname -s)" = Darwin ]; }

folder() { # a folder and what it is called instead, by the way that one went and as programs say it
  local path=${1%/} real
  [ -n "$path" ] || return 0
  printf '%s\t%s\tpath\n' "$path" "$2"
  real=$(cd "$path" 2> /dev/null && pwd -P) && printf '%s\t%s\tpath\n' "$real" "$2"
}

# What the report must not hold, what stands there instead, and whether it is a path, or a word that may lie in others.
private() {
  local path name
  for path in "$model" "$llama" "$mlx_python" "$mlx_model"; do
    case $path in
      /*) folder "$(dirname "$path")" ... ;;
    esac
  done
  folder "$ROOT" puna
  folder "${TMPDIR:-/tmp}" tmp
  folder "${HOME:-/nowhere}" '~'
  for name in "$(hostname 2> /dev/null)" "$(hostname -s 2> /dev/null)" "$(scutil --get ComputerName 2> /dev/null)" \
    "$(scutil --get LocalHostName 2> /dev/null)"; do
    [ ${#name} -ge 4 ] && printf '%s\thost\tpath\n' "$name"
  done
  for name in "${USER:-}" "$(id -un 2> /dev/null)" "$(id -F 2> /dev/null)"; do
    [ "$name" != root ] && printf '%s\tuser\tword\n' "$name"
  done
}

# Longest first: a folder lies in another. By bytes: what programs say need not be text.
redact() {
  private | LC_ALL=C awk -F '\t' '
    NR == FNR { if (length($1) > 1) { from[++n] = $1; to[n] = $2; kind[n] = $3 } next }
    FNR == 1 { for (i = 1; i < n; i++) for (j = i + 1; j <= n; j++) if (length(from[j]) > length(from[i])) {
        t = from[i]; from[i] = from[j]; from[j] = t; t = to[i]; to[i] = to[j]; to[j] = t
        t = kind[i]; kind[i] = kind[j]; kind[j] = t } }
    { rest = $0
      for (i = 1; i <= n; i++) {
        done = ""
        while ((at = index(rest, from[i])) > 0) {
          before = at > 1 ? substr(rest, at - 1, 1) : substr(done, length(done))
          after = substr(rest, at + length(from[i]), 1)
          within = kind[i] == "word" && (before ~ /[A-Za-z0-9]/ || after ~ /[A-Za-z0-9]/)
          done = done substr(rest, 1, at - 1) (within ? from[i] : to[i])
          rest = substr(rest, at + length(from[i]))
        }
        rest = done rest
      }
      print rest
      fflush() }' - "${1:-/dev/stdin}"
}

if [ -n "$redact_only" ]; then
  input=$(mktemp) || exit 1
  cat > "$input"
  redact "$input"
  rm -f "$input"
  exit 0
fi

raw='' failed=0 summary='' unbuilt='' installed='' stopped=-9 met=''
begin() {
  [ -n "$dry" ] && return
  : > "$out" || exit 2
  raw=$(mktemp) || exit 1
  trap 'finish' EXIT
  trap 'interrupted' INT
  if on_mac; then caffeinate -i -w $$ & fi # what sleeps is not measured
}

interrupted() { # the step that runs got it too, and ends
  [ $((SECONDS - stopped)) -le 2 ] && exit 130
  stopped=$SECONDS
  echo "  interrupted: on to the next step (again to end everything)"
}

# Also where something ended the script: the service is gone, and what was found is in the report.
finish() {
  trap '' INT
  [ -n "$installed" ] && "$BIN/puna" service remove >> "$raw" 2>&1
  {
    printf 'Puna, verified by tests/on_mac.sh\n\n%s' "$summary"
    cat "$raw"
  } > "$raw.all"
  redact "$raw.all" > "$out"
  rm -f "$raw" "$raw.all"
  printf '\n%s\nthe report: %s\n' "$summary" "$out"
}

# One step: its name, what it is for, where it runs (any, mac), and its command.
step() {
  local name=$1 what=$2 where=$3 code begun
  shift 3
  [ -n "$only" ] && [ "$only" != "$name" ] && return
  met=yes
  if [ "$where" = mac ] && ! on_mac; then
    note "$name: left out: $what; this is no Mac"
    return
  fi
  if [ -n "$unbuilt" ]; then
    note "$name: left out: $what; nothing was built"
    return
  fi
  if [ -n "$dry" ]; then
    printf '%s: %s\n' "$name" "$what"
    if [ "$(type -t "$1")" = function ]; then declare -f "$1" | sed '1,2d;$d'; else printf '    %s\n' "$*"; fi
    return
  fi
  echo "$name: $what ..."
  printf '\n== %s: %s\n$ %s\n' "$name" "$what" "$*" >> "$raw"
  begun=$SECONDS
  "$@" >> "$raw" 2>&1 < /dev/null
  code=$?
  [ "$code" -ne 0 ] && failed=$((failed + 1))
  printf -- '-- exit code %s after %s s\n' "$code" $((SECONDS - begun)) >> "$raw"
  summary="$summary$(printf '%-12s %s' "$name" "$([ "$code" -eq 0 ] && echo ok || echo "FAILED ($code)")")
"
}

note() {
  [ -n "$only" ] && return
  if [ -n "$dry" ]; then echo "$1"; else echo "$1" | tee -a "$raw"; fi
}

about() {
  date -u '+%Y-%m-%d %H:%M UTC'
  git rev-parse HEAD && git status --short --untracked-files=no | head -20
  uname -srm
  "${PYTHON:-python3}" --version
  c++ --version | head -1
  on_mac || return 0
  sw_vers
  for key in machdep.cpu.brand_string hw.memsize hw.nperflevels hw.perflevel0.name hw.perflevel0.physicalcpu \
    hw.perflevel0.cpusperl2 hw.perflevel1.physicalcpu hw.optional.arm.FEAT_I8MM hw.optional.arm.FEAT_SME \
    hw.optional.arm.FEAT_SME2 hw.optional.arm.sme_max_svl_b iogpu.wired_limit_mb; do
    echo "$key: $(sysctl -n "$key" 2> /dev/null || echo none)"
  done
  pmset -g batt | head -1
}

gpu() {
  "$BIN/python" -c '
import mlx.core as mx
print("mlx", mx.__version__, mx.default_device())
for name, value in sorted(mx.device_info().items()):
    print(f"{name}: {value}")'
}

has_sme() { [ "$(sysctl -n hw.optional.arm.FEAT_SME2 2> /dev/null)" = 1 ]; }

sme() { # our matrix-unit kernels against portable C++, bit for bit, on the unit itself
  if ! has_sme; then
    echo "this chip has no SME2"
    return
  fi
  PUNA_CPU=sme "$BIN/python" -c 'from engine import _native; print(_native.kernels())' &&
    "$BIN/pytest" -q tests/engine/test_matmul.py tests/engine/test_attention.py tests/engine/test_same_bits.py &&
    PUNA_CPU=sme "$BIN/puna" bench "$model" --device cpu --quick &&
    PUNA_CPU=neon_i8mm "$BIN/puna" bench "$model" --device cpu --quick
}

one_answer() { "$BIN/puna" run "$model" 'What is Puna?' --max-tokens 24 --temperature 0 "$@"; }

devices() { # each device answers, and what cannot be had is refused in one clear line
  for device in auto cpu builtin; do
    echo "-- --device $device" && one_answer --device "$device" || return 1
  done
  echo "-- --prefill gpu" && one_answer --prefill gpu || return 1
  echo "-- --prefill cpu, or why not" && one_answer --prefill cpu
  return 0
}

whole_engine() { # on MLX's default device, with its own kernels: same answers as ours, no copy of the pool
  MLX_ENABLE_TF32=0 "$BIN/pytest" -q tests/engine/test_builtin_whole.py tests/engine/test_builtin_ops.py tests/engine/test_two_streams.py
}

bench() {
  "$BIN/puna" bench "$model" ${quick:+"$quick"} &&
    echo "-- our own kernels on the CPU" && "$BIN/puna" bench "$model" --device cpu ${quick:+"$quick"}
}

command_buffers() { # docs/placement.md: what Puna chose, what MLX has by itself
  "$BIN/puna" bench "$model" ${quick:+"$quick"} &&
    for operations in 40 200 2000; do
      echo "-- $operations operations a buffer" &&
        MLX_MAX_OPS_PER_BUFFER="$operations" MLX_MAX_MB_PER_BUFFER=40 "$BIN/puna" bench "$model" ${quick:+"$quick"} || return 1
    done
}

fast_cores() { sysctl -n hw.perflevel0.physicalcpu 2> /dev/null || getconf _NPROCESSORS_ONLN; }

beside_llama() { # the GPUs one after the other, then the CPUs in turns
  "$llama/llama-bench" -m "$model" -p 512 -n 128 -ngl 99 &&
    "$BIN/puna" bench "$model" ${quick:+"$quick"} &&
    "$BIN/python" -m tests.peers.speed "$model" --peer "$llama" --threads "$(fast_cores)"
}

beside_mlx_lm() {
  "$mlx_python" -m mlx_lm.benchmark --model "$mlx_model" -p 512 -g 128 -n 3 &&
    "$BIN/puna" bench "$mlx_model" ${quick:+"$quick"}
}

contention() { "$BIN/python" -m tests.peers.two_streams models/cria/cria.gguf; }

answers_on() { # somebody answers there within half a minute
  for _ in $(seq 60); do
    curl -fsS "http://127.0.0.1:$1/health" 2> /dev/null && return 0
    sleep 0.5
  done
  return 1
}

daemon() { # from nothing to nothing
  if "$BIN/puna" service status > /dev/null 2>&1; then
    echo "a service is installed already; it is left alone"
    return
  fi
  case $ROOT/ in
    "$HOME"/Desktop/* | "$HOME"/Documents/* | "$HOME"/Downloads/*)
      echo "macOS keeps agents out of this folder unless somebody allows it: should nothing answer, that is why"
      ;;
  esac
  installed=yes
  "$BIN/puna" service install "$model" --port "$PORT" || return 1
  answers_on "$PORT"
  local code=$?
  echo
  "$BIN/puna" service status || code=1
  curl -fsS "http://127.0.0.1:$PORT/v1/models" || code=1
  echo
  "$BIN/puna" service logs || code=1
  if "$BIN/puna" service remove; then installed=''; else code=1; fi
  if "$BIN/puna" service status > /dev/null 2>&1; then
    echo "it is still there" && code=1
  fi
  curl -fsS "http://127.0.0.1:$PORT/health" > /dev/null 2>&1 && echo "it still answers" && code=1
  return "$code"
}

begin
step about "the machine" any about
step build "the extension and the environment" any make build
case $summary in *'build '*FAILED*) unbuilt=yes ;; esac
step gpu "what MLX says of the GPU" any gpu
# MLX multiplies float32 in fewer bits on an M5 unless told not to; the tests' bounds are those of float32.
step tests "linters, types and every test" any env MLX_ENABLE_TF32=0 make test
step engine "the whole engine on MLX's own kernels" any whole_engine
step kernels "the supervisor checks and times every kernel of the GPU" mac "$BIN/puna" kernels --retune
step sme "the matrix unit" mac sme
step devices "each device, and where prompts go" any devices
step bench "speed, with shares of the roofline" any bench
step buffers "speed by length of command buffers" mac command_buffers
step verdicts "what it kept, of these models too" mac "$BIN/puna" kernels
step contention "two streams at once, beside two processes at once" any contention
if [ -n "$llama" ]; then step llama "beside llama.cpp" any beside_llama; else note "llama: left out: see --llama"; fi
if [ -n "$mlx_python" ] && [ -n "$mlx_model" ]; then
  step mlx-lm "beside mlx-lm" any beside_mlx_lm
else
  note "mlx-lm: left out: see --mlx-lm and --mlx-model"
fi
if [ -n "$service" ]; then
  step service "the LaunchAgent: install, status, logs, remove" mac daemon
else
  note "service: left out: --no-service"
fi
if [ -z "$met" ]; then
  echo "$only: no such step, or it needs another option; see --dry-run and --help" >&2
  exit 2
fi
[ -n "$dry" ] && exit 0

[ "$failed" -gt 99 ] && failed=99
exit "$failed"
