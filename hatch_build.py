"""Build hook: compile the extensions, as far as this machine can.

They need a C compiler and Python's headers, and the http2 transport libnghttp2's (Debian: ``gcc
python3-dev libnghttp2-dev``). Where one is missing the installation still succeeds, without the
http2 transport or the fast decoder, unless ``TENSORFERRY_REQUIRE_EXTENSIONS=1`` is set (as ``make
wheel`` does). ``TENSORFERRY_BUNDLED_NOTICE`` names the copyright notice of a library that the wheel
will carry, to go with it.
"""

from __future__ import annotations

import os
import sys
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

#: Module, source, libraries. Each is built, or left out, by itself.
EXTENSIONS = (
    ("tensorferry.batching._histogram", "server/tensorferry/batching/_histogram.pyx", []),
    ("tensorferry.service._scan", "server/tensorferry/service/_scan.pyx", []),
    ("tensorferry.transport._http2", "server/tensorferry/transport/_http2.pyx", ["nghttp2"]),
)


class ExtensionHook(BuildHookInterface):  # type: ignore[type-arg]
    """Compiles in place, so that an editable installation and a wheel find the same files."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and put the results into the wheel."""
        root = Path(self.root)
        suffix = str(sysconfig.get_config_var("EXT_SUFFIX"))
        for module, source, libraries in EXTENSIONS:
            try:
                compile_extension(root, module, source, libraries)
            except (Exception, SystemExit) as error:
                if os.environ.get("TENSORFERRY_REQUIRE_EXTENSIONS") == "1":
                    raise
                print(f"{module} isn't built, and the server does without it: {error}", file=sys.stderr)
                continue
            library = Path(source).with_name(Path(source).stem + suffix)
            build_data["infer_tag"] = True
            build_data["pure_python"] = False
            build_data["force_include"][str(root / library)] = str(Path(*library.parts[1:]))
        notice = os.environ.get("TENSORFERRY_BUNDLED_NOTICE")
        if notice:
            build_data["force_include"][notice] = "tensorferry/transport/nghttp2.copyright"


def compile_extension(root: Path, module: str, source: str, libraries: list[str]) -> None:
    """Compile ``source`` beside itself. ``CFLAGS`` and ``LDFLAGS`` are obeyed."""
    from Cython.Build import cythonize
    from setuptools import Distribution, Extension
    from setuptools.command.build_ext import build_ext

    before = Path.cwd()
    os.chdir(root)
    try:
        extension = Extension(module, [source], libraries=libraries, extra_compile_args=["-O3"])
        extensions = cythonize(
            [extension], include_path=["server"], build_dir="build/cython", language_level=3, quiet=True
        )
        command = build_ext(Distribution({"ext_modules": extensions, "package_dir": {"": "server"}}))
        command.inplace = True
        command.build_temp = "build/temp"
        command.ensure_finalized()
        command.run()
    finally:
        os.chdir(before)
