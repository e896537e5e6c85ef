// Office hours: requests are answered while the office is open; long prompts, and those of one desk, stay close by; who has
// had many answers in this hour gets the rest from the engine on this machine.

#include "policy.h"

#include <stdlib.h>
#include <string.h>

static long opens = 7, closes = 20, long_prompt_tokens = 2000, requests_an_hour = 1000;
static policy_string_t near_desk;

// Where the value of a member begins. The configuration fits the schema in the manifest, so its texts have no escapes.
static const char *member(const char *config, const char *quoted_name) {
  const char *name = strstr(config, quoted_name);
  return name ? name + strlen(quoted_name) : NULL;
}

static void read_number(const char *config, const char *quoted_name, long *number) {
  const char *value = member(config, quoted_name);
  if (value) *number = strtol(value, NULL, 10);
}

// Called once, when the policy is loaded: what it leaves in variables is there in every call.
bool exports_postern_policy_startup_start(policy_string_t *err) {
  (void)err;
  policy_string_t text;
  postern_policy_config_get(&text);
  const char *config = strndup((const char *)text.ptr, text.len);
  read_number(config, "\"opens\":", &opens);
  read_number(config, "\"closes\":", &closes);
  read_number(config, "\"long_prompt_tokens\":", &long_prompt_tokens);
  read_number(config, "\"requests_an_hour\":", &requests_an_hour);
  const char *desk = member(config, "\"near_desk\":\"");
  if (desk) policy_string_dup_n(&near_desk, desk, strcspn(desk, "\""));
  return true;
}

static bool equal(policy_string_t a, policy_string_t b) { return a.len == b.len && memcmp(a.ptr, b.ptr, a.len) == 0; }

static bool at_desk(const postern_policy_types_list_header_t *headers) {
  policy_string_t desk;
  policy_string_set(&desk, "x-desk");
  for (size_t i = 0; i < headers->len; i++)
    if (equal(headers->ptr[i].name, desk) && equal(headers->ptr[i].value, near_desk)) return true;
  return false;
}

static void place(postern_policy_types_verdict_t *verdict, postern_policy_types_placement_t placement) {
  verdict->placement.is_some = true;
  verdict->placement.val = placement;
}

// Postern frees what is in a verdict, so each piece of it has to be allocated.
static void stay_close(postern_policy_types_verdict_t *verdict, const char *why) {
  place(verdict, POSTERN_POLICY_TYPES_PLACEMENT_EDGE_FIRST);
  postern_policy_types_annotation_t *note = malloc(sizeof *note);
  policy_string_dup(&note->key, "near");
  policy_string_dup(&note->value, why);
  verdict->annotations.ptr = note;
  verdict->annotations.len = 1;
}

bool exports_postern_policy_routing_route(postern_policy_types_request_facts_t *request,
                                          postern_policy_types_fleet_facts_t *fleet,
                                          postern_policy_types_verdict_t *verdict, policy_string_t *err) {
  (void)fleet;
  memset(verdict, 0, sizeof *verdict);
  int64_t hour = ((int64_t)request->time + request->utc_offset_minutes * 60) / 3600 % 24;
  if (hour < opens || hour >= closes) {
    verdict->deny.is_some = true;
    policy_string_dup(&verdict->deny.val, "the office is closed");
    return true;
  }
  // Counters are kept for each tenant.
  policy_string_t key, line;
  policy_string_set(&key, "requests");
  int64_t requests;
  if (!postern_policy_counters_add(&key, 1, 3600, &requests, err)) return false;
  if (requests > requests_an_hour) {
    policy_string_set(&line, "many requests in this hour: this one stays here");
    postern_policy_log_write(POSTERN_POLICY_LOG_LEVEL_INFO, &line);
    place(verdict, POSTERN_POLICY_TYPES_PLACEMENT_LOCAL);
  } else if (at_desk(&request->headers)) {
    stay_close(verdict, "desk");
  } else if (request->prompt_tokens > (uint64_t)long_prompt_tokens) {
    stay_close(verdict, "long");
  }
  return true;
}
