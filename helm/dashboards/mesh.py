"""What a router says of its clients and of where rows go: service objectives,
routing."""

from grafana import dashboard, panel, quantiles, rate

# What a client did not bring about itself.
SERVER_CODES = ("UNKNOWN|DEADLINE_EXCEEDED|RESOURCE_EXHAUSTED|ABORTED|INTERNAL|"
                "UNAVAILABLE|DATA_LOSS")


def _share(part, whole):
    """Of two rates."""
    return f"sum({part}) / sum({whole})"


def _share_by(label, part, whole):
    return (f"sum by ({label}) ({part}) / ignoring ({label}) group_left "
            f"sum({whole})")


def service_objectives():
    requests = "expertmesh_router_requests_total"
    failed = f'code=~"{SERVER_CODES}"'
    refused = f'code!~"OK|{SERVER_CODES}"'
    first = "expertmesh_router_time_to_first_token_seconds"
    between = "expertmesh_router_inter_token_latency_seconds"
    found = "expertmesh_router_prefix_cache_hit_tokens_total"
    looked_up = "expertmesh_router_prefix_cache_lookup_tokens_total"
    return dashboard(
        "service", "Service objectives",
        "What clients get: rate, errors, latency, and what bounds them.", [
            ("Requests", [
                panel("Requests", "Requests that ended, by method.", "reqps",
                      (f"sum by (method) ({rate(requests)})",
                       "{{method}}"), least=0),
                panel("Error ratio",
                      "Share of requests that ended with a code that is the "
                      "service's doing, by code.", "percentunit",
                      (_share_by("code", rate(requests, failed),
                                 rate(requests)), "{{code}}"),
                      least=0, stacked=True),
                panel("Refused as bad",
                      "Requests a second that ended with a code that is the "
                      "client's doing, or that the client cancelled.", "reqps",
                      (f"sum by (code) ({rate(requests, refused)})",
                       "{{code}}"), least=0),
            ]),
            ("Latency", [
                panel("Time to first token", "From arrival to first token.",
                      "s", *quantiles(first, 0.5, 0.9, 0.99), least=0),
                panel("First token within 2.5 s",
                      "Share of requests that had their first token within "
                      "the objective of 2.5 s; the objective is 99 %.",
                      "percentunit",
                      (_share(rate(f"{first}_bucket", 'le="2.5"'),
                              rate(f"{first}_count")), "within 2.5 s"),
                      most=1),
                panel("Inter-token latency",
                      "Between two tokens of one request.", "s",
                      *quantiles(between, 0.5, 0.9, 0.99), least=0),
                panel("Request duration",
                      "From arrival to end, of those that succeeded.", "s",
                      *quantiles("expertmesh_router_request_duration_seconds",
                                 0.5, 0.99), least=0),
                panel("Time in the queue", "From arrival to first step.", "s",
                      *quantiles("expertmesh_router_queue_duration_seconds",
                                 0.5, 0.99), least=0),
                panel("Step duration", "A batch through all layers.", "s",
                      *quantiles("expertmesh_router_step_duration_seconds",
                                 0.5, 0.99), least=0),
            ]),
            ("What bounds it", [
                panel("Queue", "Requests that run, those that wait, and how "
                      "many may wait before others are refused.", "short",
                      ("sum(expertmesh_router_requests_running{@})",
                       "running"),
                      ("sum(expertmesh_router_requests_waiting{@})",
                       "waiting"),
                      ("sum(expertmesh_router_requests_waiting_limit{@})",
                       "may wait"), least=0),
                panel("KV cache", "Share of KV pages that requests use.",
                      "percentunit",
                      ("expertmesh_router_kv_cache_usage_ratio{@}",
                       "{{instance}}"), least=0, most=1),
                panel("Preemptions",
                      "Requests a second that gave way for KV pages.", "ops",
                      (f"sum({rate('expertmesh_router_preemptions_total')})",
                       "preemptions"), least=0),
                panel("Tokens", "Prompt tokens and generated tokens a second.",
                      "cps",
                      (f"sum({rate('expertmesh_router_prompt_tokens_total')})",
                       "prompt"),
                      (f"sum({rate('expertmesh_router_generated_tokens_total')})",
                       "generated"), least=0),
                panel("Prefix cache hits",
                      "Share of admitted tokens whose keys and values were "
                      "found.", "percentunit",
                      (_share(rate(found), rate(looked_up)), "found"),
                      least=0, most=1),
                panel("Where steps spend their time",
                      "Seconds of a second, by phase; experts is the waiting "
                      "for them.", "percentunit",
                      (f"sum by (phase) ({rate('expertmesh_router_step_phase_seconds_total')})",
                       "{{phase}}"), least=0, stacked=True),
            ]),
        ])


def routing():
    rows = "expertmesh_router_routed_rows_total"
    layers = "expertmesh_router_layer_overflow_rows_total"
    chosen = "expertmesh_router_gate_mass_chosen_total"
    kept = "expertmesh_router_gate_mass_kept_total"
    return dashboard(
        "routing", "Routing",
        "What became of every assignment of a token to an expert.", [
            ("Outcomes", [
                panel("Rows by outcome",
                      "Assignments a second: served at once, by a further "
                      "replica, in a later wave, by another expert, or not.",
                      "cps", (f"sum by (outcome) ({rate(rows)})",
                              "{{outcome}}"), least=0),
                panel("Share not as chosen",
                      "Assignments that another expert served, or none: what "
                      "overflow policies changed.", "percentunit",
                      (_share_by("outcome",
                                 rate(rows, 'outcome=~"rerouted|dropped"'),
                                 rate(rows)), "{{outcome}}"),
                      least=0),
                panel("Gate mass kept",
                      "Gate scores of the experts that served over those "
                      "first chosen; 1 where nothing was changed.",
                      "percentunit",
                      (_share(rate(kept), rate(chosen)), "kept"), most=1),
            ]),
            ("Overflow", [
                panel("Overflow by reason",
                      "Assignments a second that found their expert full or "
                      "held by nobody.", "cps",
                      (f"sum by (reason) ({rate('expertmesh_router_overflow_rows_total')})",
                       "{{reason}}"), least=0),
                panel("Overflow by reason and outcome",
                      "What became of assignments whose first choice could "
                      "not simply serve them; budget: the policy would have "
                      "lost too much.", "cps",
                      (f"sum by (reason, outcome) ({rate(layers)})",
                       "{{reason}} → {{outcome}}"), least=0),
                panel("Layers that overflow most",
                      "The five layers with most overflow.", "cps",
                      (f"topk(5, sum by (layer) ({rate(layers)}))",
                       "layer {{layer}}"), least=0),
            ]),
            ("Delivery", [
                panel("Uncovered experts",
                      "Slots (layer, expert) that no expert service serves. "
                      "Anything above 0 delays or fails requests.", "short",
                      ("max(expertmesh_router_uncovered_experts{@})",
                       "uncovered"), kind="stat", width=4),
                panel("Batches sent again",
                      "By reason; hedged ones were asked of a second replica "
                      "because the first was late.", "ops",
                      (f"sum by (reason) ({rate('expertmesh_router_resent_batches_total')})",
                       "{{reason}}"),
                      (f"sum({rate('expertmesh_router_hedged_batches_total')})",
                       "hedged"), width=7, least=0),
                panel("Rows to another numerics_id",
                      "Rows a second whose service computes in another order "
                      "of sums than the mesh's.", "cps",
                      (f"sum({rate('expertmesh_router_crossed_rows_total')})",
                       "crossed"), width=6, least=0),
                panel("Bytes to and from experts",
                      "Of batches and answers.", "Bps",
                      (f"sum({rate('expertmesh_router_expert_sent_bytes_total')})",
                       "sent"),
                      (f"sum({rate('expertmesh_router_expert_received_bytes_total')})",
                       "received"), width=7, least=0),
            ]),
        ])
