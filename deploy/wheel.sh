#!/bin/sh
# Build the wheel: one file with coordinator, agent and key holder, for every platform.
#
#   sh deploy/wheel.sh [FOLDER]                 into FOLDER (default dist)
#   LLMOS_CONSOLE=no sh deploy/wheel.sh         without the web console, as devices need it: no Node
#   PYTHON=python3.12 sh deploy/wheel.sh        with this interpreter's pip
#
# pip fetches hatchling into an environment of its own, and Node.js where the console is not built
# yet and there is none. Prints the wheel's path.
set -eu
root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
folder=${1:-$root/dist}

new=$(mktemp -d)
trap 'rm -rf "$new"' EXIT
"${PYTHON:-python3}" -m pip --disable-pip-version-check wheel --quiet --no-deps \
    --wheel-dir "$new" "$root" >&2
mkdir -p "$folder"
for wheel in "$new"/llmos-*.whl; do
    mv "$wheel" "$folder/"
    printf '%s\n' "$folder/${wheel##*/}"
done
