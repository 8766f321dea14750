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

[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
say "installing into $venv (torch is a large download)"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    --constraint constraints.txt --editable '.[server,otlp,tools,convert,demo,load,dev]'
