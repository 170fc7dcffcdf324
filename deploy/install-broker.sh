#!/bin/sh
# See to it that this machine has an MQTT broker program for LLM OS to start.
#
# Mosquitto if it is there or can be installed without asking anybody (apt-get
# as root or with password-free sudo, or Homebrew). Otherwise amqtt, in an
# environment of its own (.broker), good for this machine alone. Says nothing
# and touches nothing when there is nothing to do.
#
#   PYTHON=python3.12 sh deploy/install-broker.sh     choose the interpreter for .broker
set -eu

root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
venv=$root/.broker
# 0.11.4 and 0.12.1 were tried against the broker tests.
amqtt='amqtt>=0.11.4,<0.13'

say() { printf 'install-broker: %s\n' "$*" >&2; }

. "$(dirname -- "$0")/apt.sh"

have_mosquitto() {
    PATH=$PATH:/usr/sbin:/usr/local/sbin:/opt/homebrew/sbin command -v mosquitto >/dev/null 2>&1
}

have_amqtt() { [ -f "$venv/.installed" ] && [ -x "$venv/bin/python" ]; }

# Debian's package brings a system service and starts it. LLM OS starts a broker
# of its own, so the service that came with our installation is switched off
# again. One that was there before is never touched: then mosquitto was there
# too, and this script had nothing to do.
switch_off_new_service() {
    if [ -d /run/systemd/system ]; then
        as_root systemctl disable --now --quiet mosquitto.service || true
    elif [ -x /etc/init.d/mosquitto ]; then
        as_root /etc/init.d/mosquitto stop || true
    fi
}

with_apt() {
    apt_install mosquitto || return 1
    switch_off_new_service >&2
}

with_brew() {
    command -v brew >/dev/null 2>&1 || return 1
    say 'installing mosquitto with Homebrew'
    brew install --quiet mosquitto >&2
}

with_amqtt() {
    say "mosquitto cannot be installed from here; making .broker with amqtt instead"
    rm -rf "$venv"
    "${PYTHON:-python3}" -m venv "$venv" &&
        "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$amqtt" >&2 &&
        touch "$venv/.installed" && return 0
    rm -rf "$venv"
    return 1
}

if have_mosquitto || have_amqtt; then
    exit 0
fi
if { with_apt && have_mosquitto; } || { with_brew && have_mosquitto; } || with_amqtt; then
    exit 0
fi
say 'no broker could be installed. Ask whoever administers this machine for the package'
say 'mosquitto, or run this again where pip can reach a package index.'
exit 1
