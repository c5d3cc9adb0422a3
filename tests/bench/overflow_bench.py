"""What overflow policies cost and bring on plays, by capacity factor.

Four expert services hold the demo model's experts by number. Plays are scored,
one window of 256 tokens a step, once with every row at the expert that the gate
chose and then under each policy. Prints the table of README.md.
"""

import argparse

import traffic


class Reading:
    """What one configuration did to all windows."""

    def __init__(self, experts, router, windows, policy):
        self._slowest_host = self._slowest_expert = 0
        self._account = {}
        self._kept = []
        responses = []
        before = experts.rows()
        for window in windows:
            (response,) = router.score([window], policy)
            after = experts.rows()
            self._add(after - before, response.routing)
            before = after
            responses.append(response)
        self.perplexity = traffic.perplexity(responses)
        # Rows that the gate asked for, whatever became of them.
        self._asked = len(windows) * traffic.WINDOW_TOKENS * traffic.TOP_K * \
            traffic.LAYERS
        self._hosts = before.shape[0]

    def _add(self, rows, routing):
        self._slowest_host += traffic.slowest_rows(rows)
        self._slowest_expert += rows.sum(axis=0).max(axis=1).sum()
        self._kept.append(routing.gate_mass_kept)
        for name in ("waited", "rerouted", "dropped"):
            self._account[name] = self._account.get(name, 0) + \
                getattr(routing, name)

    def cells(self, exact_perplexity):
        change = 100 * (self.perplexity / exact_perplexity - 1)
        host = self._slowest_host / (self._asked / self._hosts)
        expert = self._slowest_expert / (self._asked / traffic.EXPERTS)
        shares = [f"{100 * self._account[name] / self._asked:.1f}%"
                  for name in ("waited", "rerouted", "dropped")]
        kept = sum(self._kept) / len(self._kept)
        return [f"{expert:.2f}", f"{host:.2f}", *shares, f"{100 * kept:.1f}%",
                f"{self.perplexity:.2f}", f"{change:+.1f}%"]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--factors", type=float, nargs="+",
                        default=[1, 1.25, 1.5, 2], help="capacity factors")
    parser.add_argument("--budgets", type=float, nargs="+", default=[1, 0.02],
                        help="of lost gate mass; 1: none")
    parser.add_argument("--policies", nargs="+", default=["next_best", "drop"])
    parser.add_argument("--min-capacity", type=int, default=1,
                        help="rows an expert accepts at least; with the "
                        "router's default of 64 no factor up to 2 would count")
    parser.add_argument("--windows", type=int, help="score so many at most")
    args = parser.parse_args()

    with traffic.Experts() as experts:
        def read(policy, factor, budget):
            # A router of its own: none spends what another saved.
            with traffic.Router(
                    experts, "--capacity-factor", factor, "--min-capacity",
                    args.min_capacity, "--max-lost-gate-mass", budget,
                    # One step, one capacity.
                    "--micro-batches", 1) as router:
                return Reading(experts, router,
                               router.windows("plays", args.windows), policy)
        exact = read("wait", 0, 1)

        def rows():
            yield ["exact", "", "", *exact.cells(exact.perplexity)]
            for policy in args.policies:
                for budget in args.budgets:
                    for factor in args.factors:
                        reading = read(policy, factor, budget)
                        yield [f"`{policy}`", f"{factor:g}",
                               "none" if budget >= 1 else f"{budget:g}",
                               *reading.cells(exact.perplexity)]
        traffic.print_table(
            ["policy", "factor", "budget", "slowest expert", "slowest host",
             "waited", "rerouted", "dropped", "gate mass kept", "perplexity",
             "change"], rows())


if __name__ == "__main__":
    main()
