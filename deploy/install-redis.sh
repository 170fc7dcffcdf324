#!/bin/sh
# See to it that this machine has redis-server, against which the shared answer cache is tested.
#
# Redis if it is there or can be installed without asking anybody (apt-get as root
# or with password-free sudo). LLM OS itself needs none: without it those tests are
# skipped, except in CI. Says nothing and touches nothing when there is nothing to do.
set -eu

say() { printf 'install-redis: %s\n' "$*" >&2; }

. "$(dirname -- "$0")/apt.sh"

have_redis() { command -v redis-server >/dev/null 2>&1; }

# Debian's package brings a system service and starts it; the tests start their own.
# A service that was there before is never touched: then Redis was there too.
switch_off_new_service() {
    if [ -d /run/systemd/system ]; then
        as_root systemctl disable --now --quiet redis-server.service || true
    elif [ -x /etc/init.d/redis-server ]; then
        as_root /etc/init.d/redis-server stop || true
    fi
}

if have_redis || { apt_install redis-server && switch_off_new_service >&2 && have_redis; }; then
    exit 0
fi
say 'Redis could not be installed. Ask whoever administers this machine for the package'
say 'redis-server; until then the tests marked redis are skipped.'
exit 1
