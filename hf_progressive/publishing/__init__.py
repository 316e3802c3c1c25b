"""Rungs on the Hub: what is published of them, and how. `hf_progressive.hub` fetches them again."""

from hf_progressive.publishing.follow import FamilyPublisher
from hf_progressive.publishing.lineage import Lineage
from hf_progressive.publishing.package import Publication, prepare_publication
from hf_progressive.publishing.publish import preview_family, publish_family, publish_rung

__all__ = [
    "FamilyPublisher",
    "Lineage",
    "Publication",
    "prepare_publication",
    "preview_family",
    "publish_family",
    "publish_rung",
]
