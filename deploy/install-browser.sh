#!/bin/sh
# See to it that this machine has Chromium, in which tests look at report.html.
#
# Chromium if it is there or can be installed without asking anybody (apt-get as
# root or with password-free sudo). LLM OS itself needs no browser: without one
# those tests are skipped, except in CI. Says nothing and touches nothing when
# there is nothing to do.
set -eu

say() { printf 'install-browser: %s\n' "$*" >&2; }

have_chromium() {
    command -v chromium >/dev/null 2>&1 || command -v chromium-browser >/dev/null 2>&1 ||
        command -v google-chrome >/dev/null 2>&1
}

as_root() {
    if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo -n "$@"; fi
}

may_be_root() {
    [ "$(id -u)" -eq 0 ] || { command -v sudo >/dev/null 2>&1 && sudo -n true 2>/dev/null; }
}

apt_install() {
    as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get install --yes --quiet --no-install-recommends chromium
}

with_apt() {
    command -v apt-get >/dev/null 2>&1 && may_be_root || return 1
    say 'installing chromium with apt-get'
    { apt_install || { as_root apt-get update --quiet && apt_install; }; } >&2
}

if have_chromium || { with_apt && have_chromium; }; then
    exit 0
fi
say 'no browser could be installed. Ask whoever administers this machine for the package'
say 'chromium; until then the tests marked browser are skipped.'
exit 1
