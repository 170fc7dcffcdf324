# For the install scripts beside it, which source it: packages without asking anybody,
# with apt-get as root or with password-free sudo.

as_root() {
    if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo -n "$@"; fi
}

may_be_root() {
    [ "$(id -u)" -eq 0 ] || { command -v sudo >/dev/null 2>&1 && sudo -n true 2>/dev/null; }
}

apt_get() {
    as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get install --yes --quiet --no-install-recommends "$1"
}

# apt_install PACKAGE: fails where that cannot be done; says what it does.
apt_install() {
    command -v apt-get >/dev/null 2>&1 && may_be_root || return 1
    say "installing $1 with apt-get"
    { apt_get "$1" || { as_root apt-get update --quiet && apt_get "$1"; }; } >&2
}
