"""The command line's commands beside ``serve``, one file each: ``add_flags(parser)`` and ``run(parsed)``."""
