"""Rungs on the Hub: what is published of them, how, and how they come back."""

from hf_progressive.hub.card import model_card
from hf_progressive.hub.follow import FamilyPublisher
from hf_progressive.hub.lineage import Lineage
from hf_progressive.hub.publication import Publication, prepare_publication
from hf_progressive.hub.publish import publish_family, publish_rung
from hf_progressive.remote import HubError, fetch_rung

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
