// Office hours: requests are answered while the office is open; long prompts, and those of one desk, stay close by; who has
// had many answers in this hour gets the rest from the engine on this machine.

import { get as readConfig } from "postern:policy/config@1.0.0";
import { add as count } from "postern:policy/counters@1.0.0";
import { write as log } from "postern:policy/log@1.0.0";

const DEFAULTS = { opens: 7, closes: 20, long_prompt_tokens: 2000, near_desk: "", requests_an_hour: 1000 };

let office;

// Called once, when the policy is loaded: what it leaves in variables is there in every call.
export const startup = {
  start() {
    office = { ...DEFAULTS, ...JSON.parse(readConfig()) };
  },
};

export const routing = {
  route(request, _fleet) {
    // Numbers of 64 bits are BigInts here.
    const localSeconds = request.time + BigInt(request.utcOffsetMinutes * 60);
    const hour = Number((localSeconds / 3600n) % 24n);
    if (hour < office.opens || hour >= office.closes) {
      return verdict({ deny: "the office is closed" });
    }
    // Counters are kept for each tenant.
    if (count("requests", 1n, 3600) > BigInt(office.requests_an_hour)) {
      log("info", "many requests in this hour: this one stays here");
      return verdict({ placement: "local" });
    }
    const atDesk = (header) => header.name === "x-desk" && header.value === office.near_desk;
    if (request.headers.some(atDesk)) {
      return verdict({ placement: "edge-first", annotations: [{ key: "near", value: "desk" }] });
    }
    if (request.promptTokens > BigInt(office.long_prompt_tokens)) {
      return verdict({ placement: "edge-first", annotations: [{ key: "near", value: "long" }] });
    }
    return verdict({});
  },
};

function verdict(vote) {
  return { targets: [], annotations: [], ...vote };
}
