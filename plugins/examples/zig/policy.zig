//! Office hours: requests are answered while the office is open; long prompts, and those of one desk, stay close by; who has
//! had many answers in this hour gets the rest from the engine on this machine.

const std = @import("std");
const c = @import("bindings");

const Office = struct {
    opens: i64 = 7,
    closes: i64 = 20,
    long_prompt_tokens: u64 = 2000,
    near_desk: []const u8 = "",
    requests_an_hour: i64 = 1000,
};

var office: Office = .{};

/// Called once, when the policy is loaded: what it leaves in variables is there in every call.
export fn exports_postern_policy_startup_start(err: *c.policy_string_t) bool {
    var text: c.policy_string_t = undefined;
    c.postern_policy_config_get(&text);
    const config = std.json.parseFromSliceLeaky(?Office, std.heap.c_allocator, bytes(text), .{}) catch |wrong| {
        c.policy_string_dup(err, @errorName(wrong));
        return false;
    };
    office = config orelse .{};
    return true;
}

export fn exports_postern_policy_routing_route(
    request: *c.postern_policy_types_request_facts_t,
    _: *c.postern_policy_types_fleet_facts_t,
    verdict: *c.postern_policy_types_verdict_t,
    err: *c.policy_string_t,
) bool {
    verdict.* = std.mem.zeroes(c.postern_policy_types_verdict_t);
    const local_seconds = @as(i64, @intCast(request.time)) + @as(i64, request.utc_offset_minutes) * 60;
    const hour = @mod(@divFloor(local_seconds, 3600), 24);
    if (hour < office.opens or hour >= office.closes) {
        verdict.deny.is_some = true;
        c.policy_string_dup(&verdict.deny.val, "the office is closed");
        return true;
    }
    // Counters are kept for each tenant.
    var requests: i64 = undefined;
    var key = string("requests");
    if (!c.postern_policy_counters_add(&key, 1, 3600, &requests, err)) return false;
    if (requests > office.requests_an_hour) {
        var line = string("many requests in this hour: this one stays here");
        c.postern_policy_log_write(c.POSTERN_POLICY_LOG_LEVEL_INFO, &line);
        place(verdict, c.POSTERN_POLICY_TYPES_PLACEMENT_LOCAL);
    } else if (atDesk(request.headers)) {
        stayClose(verdict, "desk");
    } else if (request.prompt_tokens > office.long_prompt_tokens) {
        stayClose(verdict, "long");
    }
    return true;
}

fn atDesk(headers: c.postern_policy_types_list_header_t) bool {
    for (headers.ptr[0..headers.len]) |header| {
        if (std.mem.eql(u8, bytes(header.name), "x-desk") and std.mem.eql(u8, bytes(header.value), office.near_desk)) return true;
    }
    return false;
}

fn place(verdict: *c.postern_policy_types_verdict_t, placement: u8) void {
    verdict.placement = .{ .is_some = true, .val = placement };
}

/// Postern frees what is in a verdict, so each piece of it has to be allocated.
fn stayClose(verdict: *c.postern_policy_types_verdict_t, why: [*:0]const u8) void {
    place(verdict, c.POSTERN_POLICY_TYPES_PLACEMENT_EDGE_FIRST);
    const notes = std.heap.c_allocator.alloc(c.postern_policy_types_annotation_t, 1) catch return;
    c.policy_string_dup(&notes[0].key, "near");
    c.policy_string_dup(&notes[0].value, why);
    verdict.annotations = .{ .ptr = notes.ptr, .len = notes.len };
}

fn bytes(text: c.policy_string_t) []const u8 {
    return text.ptr[0..text.len];
}

fn string(text: []const u8) c.policy_string_t {
    return .{ .ptr = @constCast(text.ptr), .len = text.len };
}
