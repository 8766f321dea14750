#!/usr/bin/env bash
# Gather in the directory $2 what a machine without a network lacks to run the GPU benchmark, with the
# interpreter $1, which must be of the same version as Python there: the project's own wheel, extensions and
# libnghttp2 within, and the packages of pure Python that a machine set up for torch is least likely to have.
# They are in the versions of constraints.txt. Its own directory, so that it lends wheel.sh's check what
# the wheel depends on.
set -euo pipefail
python=$1
out=$2

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "gpu-wheels: $python isn't Python 3.11 or newer; set PYTHON3 to the version that the GPU's machine has" >&2
    exit 1
}
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
lent=.cache/wheel/lent-$version
rm -rf "$out"
mkdir -p "$out"
[ -x "$lent/bin/python" ] || "$python" -m venv "$lent"
pure=(grpcio-health-checking grpcio-reflection hpack structlog)
"$lent/bin/pip" install --quiet --disable-pip-version-check --constraint constraints.txt grpcio numpy protobuf "${pure[@]}"
bash tools/wheel.sh "$lent/bin/python" "$out"
rm -f "$out"/*.tar.gz
"$lent/bin/pip" download --quiet --disable-pip-version-check --no-deps --only-binary :all: \
    --constraint constraints.txt --dest "$out" "${pure[@]}"
echo "gpu-wheels: for Python $version, $(du -sh "$out" | cut -f 1) in $out; there, in the root of this checkout:"
echo "  python3 -m pip install --no-index --no-deps --upgrade --target .cache/site $out/*.whl"
echo "  PYTHONPATH=.cache/site:. python3 -m loadtests.gpu"
