"""Prove that an installed wheel works by itself: run by the environment it was installed into.

``python tools/wheel_check.py LENT`` where LENT is a site-packages directory that has the
dependencies. Exits with 1 and a reason if the package isn't the wheel's, an extension is missing,
or the http2 transport runs on a libnghttp2 that the wheel didn't bring.
"""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path


def main() -> None:
    """Check, and say what was found."""
    own = Path(sysconfig.get_path("platlib")).resolve()
    # This script's directory is on the path, and mustn't be: only the wheel and what is lent.
    sys.path[0:1] = []
    sys.path.append(sys.argv[1])

    import tensorferry
    import tensorferry.batching._histogram
    import tensorferry.service._scan
    from tensorferry.transport import available

    for module in (tensorferry, tensorferry.batching._histogram, tensorferry.service._scan):
        if own not in Path(str(module.__file__)).resolve().parents:
            raise SystemExit(f"wheel check: {module.__name__} comes from {module.__file__}, not from {own}")
    if "http2" not in available():
        raise SystemExit(f"wheel check: the transports are {available()}; http2 is missing")
    mapped = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines()}
    libraries = [Path(path) for path in mapped if "libnghttp2" in path]
    foreign = [path for path in libraries if own not in path.resolve().parents]
    if foreign or not libraries:
        raise SystemExit(f"wheel check: libnghttp2 is loaded from {foreign or 'nowhere'}, not from the wheel")
    if not (own / "tensorferry/transport/nghttp2.copyright").is_file():
        raise SystemExit("wheel check: libnghttp2 is there without its copyright notice")
    from tensorferry.transport._http2 import nghttp2_version_text

    print(f"wheel check: http2 on nghttp2 {nghttp2_version_text()}, from {libraries[0].relative_to(own)}")


if __name__ == "__main__":
    main()
