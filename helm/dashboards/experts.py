"""Where experts are and how they fare: balance, pools, devices."""

from grafana import dashboard, panel, quantile, quantiles, rate


def balance():
    even = "expertmesh_router_layer_balancedness_ratio{@}"
    return dashboard(
        "balance", "Balance",
        "How evenly the traffic asks for experts, and what control does "
        "about it.", [
            ("Demand", [
                panel("Balancedness by layer",
                      "Mean over maximum rows of a layer's experts in the "
                      "last 30 s: 1 is even, 1 / experts is all on one.",
                      "percentunit", (f"min by (layer) ({even})",
                                      "layer {{layer}}"),
                      kind="status-history", width=24, least=0, most=1),
                panel("Balancedness",
                      "Over all layers, each as of the router that finds it "
                      "least even; an idle one finds all even.", "percentunit",
                      (f"min({even})", "least even layer"),
                      (f"avg(min by (layer) ({even}))", "mean of layers"), least=0, most=1),
                panel("Hottest experts",
                      "Rows of the hottest experts of any layer over their "
                      "layer's mean, by rank.", "short",
                      ("max by (rank) (expertmesh_router_hot_expert_load_ratio"
                       "{@})", "rank {{rank}}"), least=0),
                panel("Distinct placements",
                      "How many different placements routers route by; more "
                      "than one for longer than a moment means that some see "
                      "services which others do not.", "short",
                      ('count(count_values("checksum", '
                       "expertmesh_router_placement_checksum{@}))",
                       "placements"), kind="stat"),
                panel("Which experts are hottest",
                      "The same by expert: they change as the traffic turns "
                      "to other text.", "short",
                      ("max by (layer, expert) (expertmesh_router_hot_slot_"
                       "load_ratio{@})", "layer {{layer}} expert {{expert}}"),
                      width=24, least=0),
            ]),
            ("Placement", [
                panel("Rebalances",
                      "Times experts were moved, by a rebalance or an "
                      "operator.", "short",
                      ("sum by (outcome) (increase("
                       "expertmesh_router_placement_changes_total{@}"
                       "[$__rate_interval]))", "{{outcome}}"), least=0),
                panel("Weights moved", "Weights that moves loaded.", "Bps",
                      (f"sum({rate('expertmesh_router_placement_loaded_bytes_total')})",
                       "loaded"), least=0),
                panel("Moves", "Copies of experts loaded and unloaded.", "ops",
                      (f"sum({rate('expertmesh_router_placement_moves_total')})",
                       "moves"), least=0),
                panel("Copies of experts",
                      "That rows can go to, of all layers, as each router "
                      "sees them.", "short",
                      ("expertmesh_router_placement_copies{@}",
                       "{{instance}}"), width=12, least=0),
                panel("Experts held", "Slots loaded by each expert service.",
                      "short", ("expertmesh_expert_loaded_slots{@}",
                                "{{instance}}"), width=12, least=0),
            ]),
        ])


def pools():
    rpc = "expertmesh_router_expert_rpc_duration_seconds"
    inflight = ("sum by (pool) ("
                f"{rate('expertmesh_router_expert_row_seconds_total')})")
    replicas = "max by (pool) (expertmesh_router_pool_replicas{@})"
    return dashboard(
        "pools", "Pools",
        "What each pool is asked for, what it has, and how it answers.", [
            ("Scaling", [
                panel("Demand", "Rows a second that a pool's services were "
                      "asked for by all routers.", "cps",
                      ("max by (pool) (expertmesh_router_pool_demand_rows_per"
                       "_second{@})", "{{pool}}"), least=0),
                panel("Utilisation",
                      "Time that the replicas need for the demand over the "
                      "time there is; above 1 they cannot keep up.",
                      "percentunit",
                      ("max by (pool) (expertmesh_router_pool_utilization_"
                       "ratio{@})", "{{pool}}"), least=0),
                panel("In-flight rows per replica",
                      "Rows sent and not answered, of all routers, over "
                      "ready replicas: what an HPA scales on.", "short",
                      (f"{inflight} / {replicas}", "{{pool}}"), least=0),
                panel("Replicas",
                      "Desired, ready, and the most that the mesh file "
                      "allows.", "short",
                      ("max by (pool) (expertmesh_router_pool_desired_"
                       "replicas{@})", "{{pool}} desired"),
                      (replicas, "{{pool}} ready"),
                      ("max by (pool) (expertmesh_router_pool_max_replicas"
                       "{@})", "{{pool}} at most"), width=24, least=0),
            ]),
            ("Calls", [
                panel("RPC p50", "A batch sent to its answer, by pool.", "s",
                      (quantile(0.5, rpc, "pool"), "{{pool}}"), least=0),
                panel("RPC p99", "A batch sent to its answer, by pool.", "s",
                      (quantile(0.99, rpc, "pool"), "{{pool}}"), least=0),
                panel("RPC p99 by service",
                      "The five slowest expert services.", "s",
                      (f"topk(5, {quantile(0.99, rpc, 'pool, endpoint')})",
                       "{{pool}} {{endpoint}}"), least=0),
                panel("In-flight rows", "Rows sent to each expert service and "
                      "not answered.", "short",
                      ("sum by (pool, endpoint) ("
                       "expertmesh_router_expert_inflight_rows{@})",
                       "{{pool}} {{endpoint}}"), least=0),
                panel("Credits", "Rows that each expert service lets a router "
                      "have unanswered.", "short",
                      ("expertmesh_router_expert_credit_rows{@}",
                       "{{pool}} {{endpoint}} to {{instance}}"), least=0),
                panel("Batches by code",
                      "Answers of expert services a second, by code.", "ops",
                      (f"sum by (code) ({rate('expertmesh_expert_batches_total')})",
                       "{{code}}"), least=0),
            ]),
            ("Endpoints", [
                panel("Endpoints by state",
                      "Expert services, as the router that sees most of them "
                      "judges them.", "short",
                      ("max by (state) (expertmesh_router_expert_endpoints"
                       "{@})", "{{state}}"), least=0),
                panel("Refusals", "Times an expert service was refused, by "
                      "what is wrong with it.", "short",
                      ("sum by (reason) (increase("
                       "expertmesh_router_endpoints_refused_total{@}"
                       "[$__rate_interval]))", "{{reason}}"), least=0),
                panel("Lookups of pools", "Of a pool's name or address file, "
                      "by what came of them.", "ops",
                      (f"sum by (pool, outcome) ({rate('expertmesh_router_resolutions_total')})",
                       "{{pool}} {{outcome}}"), least=0),
            ]),
        ])


def devices():
    expert = "expertmesh_expert_"
    device = "expertmesh_expert_device_"
    each = "{{instance}}"
    # Of what any process exports, with $job at All.
    ours = " and on (job, instance) expertmesh_build_info{@}"
    return dashboard(
        "devices", "Devices",
        "Expert services one by one: what they compute and what on.", [
            ("Work", [
                panel("Rows", "Rows computed a second.", "cps",
                      (rate(f"{expert}rows_total"), each), least=0),
                panel("Rows computed together", "After merging the batches "
                      "of all routers.", "short",
                      *quantiles(f"{expert}batch_rows", 0.5, 0.99), least=0),
                panel("Compute time", "Of one merged batch.", "s",
                      *quantiles(f"{expert}forward_duration_seconds",
                                 0.5, 0.99), least=0),
                panel("Time busy", "Share of the time in which the service "
                      "computed.", "percentunit",
                      (rate(f"{expert}forward_duration_seconds_sum"),
                       each), least=0),
                panel("Time in the queue", "That a batch waited before it "
                      "ran.", "s",
                      *quantiles(f"{expert}queue_duration_seconds",
                                 0.5, 0.99), least=0),
                panel("Queue fill", "Rows that wait over those that may.",
                      "percentunit",
                      (f"{expert}queue_rows{{@}} / "
                       f"{expert}queue_limit_rows{{@}}", each),
                      least=0, most=1),
            ]),
            ("Memory and CPU", [
                panel("Weights", "Memory of packed expert weights.", "bytes",
                      (f"{expert}memory_bytes{{@}}", each), least=0),
                panel("Batches in memory", "Batches and answers not sent yet.",
                      "bytes", (f"{expert}in_flight_bytes{{@}}", each),
                      least=0),
                panel("Streams", "Of routers, open now.", "short",
                      (f"{expert}streams{{@}}", each), least=0),
                panel("CPU", "Cores that each process uses.", "short",
                      (rate("process_cpu_seconds_total") + ours, each),
                      width=12, least=0),
                panel("Resident memory", "Of each process.", "bytes",
                      ("process_resident_memory_bytes{@}" + ours, each),
                      width=12, least=0),
            ]),
            ("GPU", [
                panel("GPU utilisation", "Part of the time in which it "
                      "computed, for anyone.", "percentunit",
                      (f"{device}utilization_ratio{{@}}", each),
                      least=0, most=1),
                panel("GPU memory", "Used by all processes, over all there "
                      "is.", "percentunit",
                      (f"{device}memory_used_bytes{{@}} / "
                       f"{device}memory_total_bytes{{@}}", each),
                      least=0, most=1),
                panel("GPU temperature", "As the driver tells it.", "celsius",
                      (f"{device}temperature_celsius{{@}}", each)),
                panel("Kernels", "Time of a batch's kernels, by the device's "
                      "clock.", "s",
                      *quantiles(f"{device}kernel_duration_seconds",
                                 0.5, 0.99), least=0),
                panel("Copies p99", "Time to copy a batch to the device and "
                      "back.", "s",
                      (quantile(0.99, f"{device}copy_duration_seconds",
                                "direction"), "{{direction}}"), least=0),
                panel("Launches", "Rows per launch, and launches a second "
                      "that were queued by one call.", "short",
                      *quantiles(f"{device}batch_rows", 0.5),
                      (f"sum({rate(device + 'graph_launches_total')})",
                       "graphs a second"), least=0),
            ]),
        ])
