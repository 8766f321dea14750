#!/usr/bin/env bash
# Run the extensions under AddressSanitizer and UndefinedBehaviorSanitizer: the fuzzer, then the
# integration suite with the server process and all its children. A finding ends the process that has
# it (abort), so the fuzzer or a test fails, with the report in its output or in the server's log.
# Usage: tools/asan.sh VENV; FUZZ_SECONDS and PYTEST_ARGS say how long and what.
set -euo pipefail
python=$1/bin/python
directory=$("$python" tools/instrumented.py asan)
reports=$PWD/build/asan/report
rm -f "$reports".*
export PYTHONPATH=$directory
# Python's own allocator hides most of what AddressSanitizer looks for.
export PYTHONMALLOC=malloc
# alloc_dealloc_mismatch: torch.
options=log_path=$reports:abort_on_error=1
export ASAN_OPTIONS=alloc_dealloc_mismatch=0:$options
export UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1:$options
preload="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libubsan.so)"
# Programs of others, which tests call, run as they are: curl hangs under the sanitizer.
mkdir -p "$directory/bin"
for tool in curl h2load nghttp node npm openssl; do
    if path=$(command -v "$tool"); then
        printf '#!/bin/sh\nLD_PRELOAD= exec %s "$@"\n' "$path" >"$directory/bin/$tool"
        chmod +x "$directory/bin/$tool"
    fi
done
export PATH=$directory/bin:$PATH
status=0
LD_PRELOAD=$preload ASAN_OPTIONS=detect_leaks=0:$ASAN_OPTIONS \
    "$python" -m tests.fuzz --seconds "${FUZZ_SECONDS:-60}" || status=$?
# Leaks: the kept inputs. numpy and the import of modules leave something behind; only whole stacks show that.
printf "leak:%s\n" _multiarray_umath fill_time >"$directory/suppressions"
LD_PRELOAD=$preload ASAN_OPTIONS=detect_leaks=1:fast_unwind_on_malloc=0:$ASAN_OPTIONS \
    LSAN_OPTIONS=suppressions=$directory/suppressions:print_suppressions=0 \
    "$python" -m tests.fuzz --seconds 5 || status=$?
# torch and grpcio leave things behind at exit.
# shellcheck disable=SC2086 # PYTEST_ARGS is several words
LD_PRELOAD=$preload ASAN_OPTIONS=detect_leaks=0:$ASAN_OPTIONS \
    "$python" -m pytest -p no:cacheprovider ${PYTEST_ARGS:-tests/integration -k http2} || status=$?
if compgen -G "$reports.*" >/dev/null; then
    echo "sanitizer reports:"
    head -n 40 "$reports".*
    status=1
fi
exit "$status"
