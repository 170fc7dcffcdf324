#!/bin/sh
# See to it that this machine has Chromium, in which tests look at report.html.
#
# Chromium if it is there or can be installed without asking anybody (apt-get as
# root or with password-free sudo). LLM OS itself needs no browser: without one
# those tests are skipped, except in CI. Says nothing and touches nothing when
# there is nothing to do.
set -eu

say() { printf 'install-browser: %s\n' "$*" >&2; }

. "$(dirname -- "$0")/apt.sh"

have_chromium() {
    command -v chromium >/dev/null 2>&1 || command -v chromium-browser >/dev/null 2>&1 ||
        command -v google-chrome >/dev/null 2>&1
}

if have_chromium || { apt_install chromium && have_chromium; }; then
    exit 0
fi
say 'no browser could be installed. Ask whoever administers this machine for the package'
say 'chromium; until then the tests marked browser are skipped.'
exit 1
