#!/bin/sh
# Make a virtual environment with a Python that is new enough, or say what is missing.
#
#   PYTHON=python3.12 sh deploy/make-venv.sh FOLDER
set -eu
python=${PYTHON:-python3}

fail() {
    printf 'setup: %s\n' "$*" >&2
    exit 1
}

command -v "$python" >/dev/null 2>&1 ||
    fail "there is no $python here. Install Python 3.11 or newer, or name it: make setup PYTHON=…"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail "$python is $("$python" -V 2>&1), and 3.11 is the oldest that will do. Name a newer one, for example: make setup PYTHON=python3.12"
"$python" -m venv "$1" || {
    rm -rf "$1"
    fail "$python could not make a virtual environment (Debian and Ubuntu: apt-get install python3-venv)"
}
