"""The version of this package, said once: the build, the artifacts and `run.json` all read it here."""

__version__ = "0.1.0"
