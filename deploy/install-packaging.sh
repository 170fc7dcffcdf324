#!/bin/sh
# See to it that this machine has what packages for devices are tested with: systemd-analyze, which
# judges the unit, and debootstrap, which makes a root that the .deb is installed into.
#
# They stay as they are where they are; else they are installed if that can be done without asking
# anybody (apt-get as root or with password-free sudo). LLM OS itself needs neither: without them
# those tests are skipped, except in CI. Says nothing and touches nothing when there is nothing to do.
set -eu

say() { printf 'install-packaging: %s\n' "$*" >&2; }

. "$(dirname -- "$0")/apt.sh"

have() { PATH=$PATH:/usr/sbin:/sbin command -v "$1" >/dev/null 2>&1; }

# see_to PROGRAM PACKAGE
see_to() {
    have "$1" || { apt_install "$2" && have "$1"; } || {
        say "$1 could not be installed. Ask whoever administers this machine for the package"
        say "$2; until then the tests marked install that need it are skipped."
        return 1
    }
}

see_to systemd-analyze systemd
see_to debootstrap debootstrap
