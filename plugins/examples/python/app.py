"""Office hours: requests are answered while the office is open; long prompts, and those of one desk, stay close by; who has
had many answers in this hour gets the rest from the engine on this machine.
"""

import json

from wit_world import exports
from wit_world.imports import config, counters, log
from wit_world.imports.types import Annotation, FleetFacts, Placement, RequestFacts, Verdict

office = {"opens": 7, "closes": 20, "long_prompt_tokens": 2000, "near_desk": "", "requests_an_hour": 1000}


class Startup(exports.Startup):
    def start(self) -> None:
        """Called once, when the policy is loaded: what it leaves in variables is there in every call."""
        office.update(json.loads(config.get()) or {})


class Routing(exports.Routing):
    def route(self, request: RequestFacts, fleet: FleetFacts) -> Verdict:
        hour = (request.time + request.utc_offset_minutes * 60) // 3600 % 24
        if not office["opens"] <= hour < office["closes"]:
            return verdict(deny="the office is closed")
        # Counters are kept for each tenant.
        if counters.add("requests", 1, 3600) > office["requests_an_hour"]:
            log.write(log.Level.INFO, "many requests in this hour: this one stays here")
            return verdict(placement=Placement.LOCAL)
        if office["near_desk"] in [header.value for header in request.headers if header.name == "x-desk"]:
            return verdict(placement=Placement.EDGE_FIRST, annotations=[Annotation("near", "desk")])
        if request.prompt_tokens > office["long_prompt_tokens"]:
            return verdict(placement=Placement.EDGE_FIRST, annotations=[Annotation("near", "long")])
        return verdict()


def verdict(placement=None, deny=None, annotations=()) -> Verdict:
    return Verdict(
        placement=placement, targets=[], model=None, label=None, deny=deny, weight=None, annotations=list(annotations)
    )
