"""JSON over HTTP: time-outs, retries, size limits and keys that appear in no message."""

from align.core.util.http import LONGEST_WAIT, Client, Failed, Refused, Unavailable, secret

__all__ = ["LONGEST_WAIT", "Client", "Failed", "Refused", "Unavailable", "secret"]
