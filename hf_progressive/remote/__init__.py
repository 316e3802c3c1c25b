"""What comes from the Hub: how it is asked, what a rung's repository holds, and rungs that others have trained."""

from hf_progressive.remote.fetch import fetch_files, fetch_rung
from hf_progressive.remote.transport import HubError

__all__ = ["HubError", "fetch_files", "fetch_rung"]
