#!/usr/bin/env bash
# Puts an emulator of AArch64 Linux programs into build/cross, for tests/cross. Any user may run it; the system stays as it is.
set -euo pipefail
here=$(cd "$(dirname "$0")/../.." && pwd)/build/cross
program=$here/usr/bin/qemu-aarch64
if [ -x "$program" ]; then exit 0; fi

# SME2 came with QEMU 10.1, which the distributions of before 2026 have in a later suite, if at all.
codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
case $codename in
  bookworm | trixie) suite=trixie-backports ;;
  *) suite=$codename ;;
esac

# "options|URI" of the machine's own source of $codename, from one-line lists or deb822 paragraphs.
own_source() {
  { find /etc/apt/sources.list /etc/apt/sources.list.d -name '*.list' -type f 2> /dev/null || true; } | sort | xargs -r cat |
    awk -v suite="$codename" '
      $1 == "deb" {
        options = ""; i = 2
        if (match($0, /\[[^]]*\]/)) {
          options = substr($0, RSTART + 1, RLENGTH - 2); sub(/\[[^]]*\]/, "")
        }
        if ($3 == suite) { print options "|" $2; exit }
      }'
  { find /etc/apt/sources.list.d -name '*.sources' -type f 2> /dev/null || true; } | sort | xargs -r sed -s '$G' |
    awk -v suite="$codename" '
      function end() {
        if (!done && (" " suites " ") ~ (" " suite " ") && types ~ /deb( |$)/) {
          print (key ~ /^\// ? "signed-by=" key : "") "|" uri; done = 1
        }
        suites = uri = key = types = ""
      }
      /^[ \t]*$/ { end(); next }
      { field = tolower($1); value = $0; sub(/^[^:]*:[ \t]*/, "", value) }
      field == "types:" { types = value }
      field == "uris:" { uri = $2 }
      field == "suites:" { suites = value }
      field == "signed-by:" { key = $2 }
      END { end() }'
}

source=$(own_source | head -n 1)
if [ -z "$source" ]; then echo "tests/cross: no apt source of '$codename' on this machine" >&2; exit 1; fi
options=${source%%|*} uri=${source#*|}

mkdir -p "$here"
work=$(mktemp -d "$here/fetching.XXXXXX")
trap 'rm -rf "$work"' EXIT
mkdir -p "$work"/{state/lists/partial,cache/archives/partial,log,etc}
components=main
case $uri in *ubuntu*) components="main universe" ;; esac
echo "deb ${options:+[$options] }$uri $suite $components" > "$work/sources.list"

private() {
  local command=$1; shift
  apt-get "$command" -qq -o "Dir::State=$work/state" -o Dir::State::status=/dev/null -o "Dir::Cache=$work/cache" -o "Dir::Log=$work/log" \
    -o "Dir::Etc::sourcelist=$work/sources.list" -o "Dir::Etc::sourceparts=$work/etc" -o "Dir::Etc::preferencesparts=$work/etc" \
    -o Dir::Etc::preferences=/dev/null -o Acquire::Languages=none -o Acquire::Retries=3 -o "APT::Sandbox::User=$(id -un)" "$@"
}
private update
cd "$work" && private download qemu-user
dpkg -x "$work"/qemu-user_*.deb "$work/unpacked"
# Only now may it be found: a fetch that was interrupted leaves nothing that looks whole.
mkdir -p "$here/usr/bin"
mv "$work/unpacked/usr/bin/qemu-aarch64" "$program"
"$program" --version | head -n 1
