"""Files that are written whole or not at all, and checksums."""

from align.core.util.atomic_files import digest, name_in_errors, set_aside, sha256, write_atomic

__all__ = ["digest", "name_in_errors", "set_aside", "sha256", "write_atomic"]
