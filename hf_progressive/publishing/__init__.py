"""Rungs on the Hub: what is published of them, how, and how they come back."""

from hf_progressive.hub import HubError, fetch_rung
from hf_progressive.publishing.card import model_card
from hf_progressive.publishing.follow import FamilyPublisher
from hf_progressive.publishing.lineage import Lineage
from hf_progressive.publishing.package import Publication, prepare_publication
from hf_progressive.publishing.publish import publish_family, publish_rung

__all__ = [
    "FamilyPublisher",
    "HubError",
    "Lineage",
    "Publication",
    "fetch_rung",
    "model_card",
    "prepare_publication",
    "publish_family",
    "publish_rung",
]
