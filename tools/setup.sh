#!/usr/bin/env bash
# Make the virtual environment $1 and install the project with everything for development into it.
set -euo pipefail
venv=$1

say() { printf 'setup: %s\n' "$*" >&2; }

python=${PYTHON3:-python3}
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    say "Python 3.11 or newer is needed; set PYTHON3 to one"
    exit 1
fi

# What the installation needs from Debian: venv, which it ships apart from python3, and for the http2
# transport a compiler with Python's and nghttp2's headers.
missing=()
"$python" -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
command -v gcc >/dev/null || missing+=(gcc)
[ -e "$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h" ] || missing+=(python3-dev)
printf '#include <nghttp2/nghttp2.h>\n' | gcc -E -x c - >/dev/null 2>&1 || missing+=(libnghttp2-dev)
if [ ${#missing[@]} -gt 0 ]; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        say "installing ${missing[*]}"
        apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "${missing[@]}" >/dev/null
    elif [[ " ${missing[*]} " == *" python3-venv "* ]]; then
        say "Python's venv module is missing; install it: sudo apt-get install ${missing[*]}"
        exit 1
    else
        say "the http2 transport needs: sudo apt-get install ${missing[*]}; going on without it (then run: make clean setup)"
    fi
fi

# What tests need besides: Prometheus, and a browser for the live page. Nothing here may end the set-up.
for_tests=()
command -v promtool >/dev/null && command -v prometheus >/dev/null || for_tests+=(prometheus)
command -v chromium >/dev/null || for_tests+=(chromium)
command -v chromedriver >/dev/null || for_tests+=(chromium-driver)
[ -d /usr/share/fonts/truetype/dejavu ] || for_tests+=(fonts-dejavu-core)

# Debian's package starts its server and would at every boot; no test wants that one.
install_for_tests() {
    local policy=/usr/sbin/policy-rc.d ours=
    if [ ! -e "$policy" ]; then
        ours=yes
        trap "rm -f $policy" EXIT
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod +x "$policy"
    fi
    apt-get update -qq >/dev/null &&
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null
    local status=$?
    [ -z "$ours" ] || rm -f "$policy"
    if [[ " $* " == *" prometheus "* ]] && [ -d /run/systemd/system ]; then
        systemctl disable --quiet --now prometheus.service || true
    fi
    return $status
}

if [ ${#for_tests[@]} -gt 0 ]; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        say "installing for tests: ${for_tests[*]}"
        install_for_tests "${for_tests[@]}" || say "that failed; the tests of Prometheus and of the live page may be skipped"
    else
        say "tests of Prometheus or the live page will be skipped; they need: sudo apt-get install ${for_tests[*]}"
    fi
fi

[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
say "installing into $venv (torch is a large download)"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    --constraint constraints.txt --editable '.[server,gpu,otlp,tools,convert,demo,load,dev]'
