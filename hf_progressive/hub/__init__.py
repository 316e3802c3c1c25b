"""What comes from the Hub: how it is asked, what a rung's repository holds, and rungs that others have trained."""

from hf_progressive.hub.fetch import fetch_files, fetch_rung
from hf_progressive.hub.transport import HubError

__all__ = ["HubError", "fetch_files", "fetch_rung"]
