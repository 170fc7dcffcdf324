#!/bin/sh
# Build llmos-edge_VERSION_ARCHITECTURE.deb: the agent that answers (extra "edge"), with everything it
# imports, in /opt/llmos-edge. Installing it needs no network.
#
#   sh deploy/deb/build.sh [FOLDER]        into FOLDER (default dist); prints the package's path
#
#   PYTHON=/usr/bin/python3    the interpreter of the distribution that the package is for: build on
#                              the release, and on the architecture, that it will be installed on
#   PIP="python3 -m pip"       a pip, 22.3 or newer, that fetches wheels
#   WHEEL=dist/llmos-….whl     instead of one that is built now
set -eu
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
root=$(CDPATH='' cd -- "$here/../.." && pwd)
folder=${1:-$root/dist}
python=${PYTHON:-/usr/bin/python3}
pip=${PIP:-$python -m pip}
home=/opt/llmos-edge

fail() {
    printf 'deb: %s\n' "$*" >&2
    exit 1
}

command -v dpkg-deb >/dev/null 2>&1 || fail 'there is no dpkg-deb here: this needs Debian or Ubuntu'
[ -x "$python" ] || fail "there is no $python here: name the distribution's own with PYTHON="
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail "$python is $("$python" -V 2>&1), and 3.11 is the oldest that will do"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
stage=$work/stage
mkdir -m 0755 "$stage"

wheel=${WHEEL:-}
[ -n "$wheel" ] || wheel=$(PYTHON="${pip%% *}" LLMOS_CONSOLE=no sh "$root/deploy/wheel.sh" "$work")
minor=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
version=$(printf '%s' "${wheel##*/}" | cut -d- -f2)
architecture=$(dpkg --print-architecture)
# Files are as old as the commit, so that the same commit and wheels make the same package.
: "${SOURCE_DATE_EPOCH:=$(git -C "$root" log -1 --format=%ct 2>/dev/null || date +%s)}"
export SOURCE_DATE_EPOCH

# An environment of the distribution's interpreter, without a trace of where it was made.
"$python" -m venv --without-pip "$stage$home"
$pip --python "$stage$home/bin/python" --disable-pip-version-check \
    install --quiet --no-compile --only-binary :all: "$wheel[edge]" >&2
rm -rf "$stage$home/bin" "$stage$home/include"
find "$stage$home" -name direct_url.json -delete
mkdir "$stage$home/bin"
ln -s "/usr/bin/python$minor" "$stage$home/bin/python"
cat >"$stage$home/bin/llmos" <<END
#!$home/bin/python
import sys

from shared.command_line import main

sys.exit(main())
END
chmod 0755 "$stage$home/bin/llmos"
printf 'home = /usr/bin\ninclude-system-site-packages = false\n' >"$stage$home/pyvenv.cfg"
# Compiled here: the service may not write there. The files change with the package only.
"$python" -m compileall -q -j 0 -s "$stage" -p / --invalidation-mode unchecked-hash \
    "$stage$home/lib"

install -D -m 0644 "$root/deploy/systemd/llmos-edge.service" \
    "$stage/usr/lib/systemd/system/llmos-edge.service"
install -D -m 0644 "$here/sysusers.conf" "$stage/usr/lib/sysusers.d/llmos-edge.conf"
install -D -m 0644 "$here/default" "$stage/etc/default/llmos-edge"
install -D -m 0644 "$root/LICENSE" "$stage/usr/share/doc/llmos-edge/copyright"
mkdir -p "$stage/usr/bin"
ln -s "$home/bin/llmos" "$stage/usr/bin/llmos"
chmod -R u+rwX,go+rX,go-w "$stage"
if grep -rqF "$work" "$stage"; then
    fail "these files name the folder that they were made in: $(grep -rlF "$work" "$stage")"
fi

mkdir -m 0755 "$stage/DEBIAN"
size=$(du -sk "$stage" | cut -f1)
sed -e "s/@VERSION@/$version/" -e "s/@ARCHITECTURE@/$architecture/" -e "s/@SIZE@/$size/" \
    -e "s/@PYTHON@/python$minor/" "$here/control" >"$stage/DEBIAN/control"
echo /etc/default/llmos-edge >"$stage/DEBIAN/conffiles"
(cd "$stage" && find . -path ./DEBIAN -prune -o -type f -printf '%P\0' | sort -z |
    xargs -0 md5sum) >"$stage/DEBIAN/md5sums"
for script in postinst prerm postrm; do
    install -m 0755 "$here/$script" "$stage/DEBIAN/$script"
done
mkdir -p "$folder"
package=$folder/llmos-edge_${version}_$architecture.deb
# zstd packs this in seconds, and every dpkg that comes with Python 3.11 reads it.
dpkg-deb --root-owner-group -Zzstd -z6 --build "$stage" "$package" >&2
printf '%s\n' "$package"
