"""Kubernetes' HorizontalPodAutoscaler for one pool and one metric, as its
documentation gives it (kubernetes.io, "Horizontal Pod Autoscaling": Algorithm
details, Configurable scaling behavior), with a clock that is given."""

import dataclasses
import math


@dataclasses.dataclass
class Policy:
    """Pods, or a share, by which a pool may change within a period."""
    seconds: float
    pods: int = 0
    percent: float = 0

    def change(self, replicas):
        return max(self.pods, math.ceil(replicas * self.percent / 100))


@dataclasses.dataclass
class Behavior:
    """The defaults are Kubernetes' own."""
    tolerance: float = 0.1
    sync_seconds: float = 15
    up_window: float = 0
    down_window: float = 300
    up: tuple = (Policy(15, pods=4), Policy(15, percent=100))
    down: tuple = (Policy(15, percent=100),)

    def compressed(self, times):
        """With a clock that runs so many times as fast."""
        def faster(policies):
            return tuple(dataclasses.replace(p, seconds=p.seconds / times)
                         for p in policies)
        return dataclasses.replace(
            self, sync_seconds=self.sync_seconds / times,
            up_window=self.up_window / times,
            down_window=self.down_window / times,
            up=faster(self.up), down=faster(self.down))


class Autoscaler:
    def __init__(self, least, most, behavior=Behavior()):
        self._least, self._most = least, most
        self._behavior = behavior
        self._recommended = []  # (time, replicas)
        self._changes = []      # (time, by how many)

    def decide(self, now, replicas, value, target):
        """Replicas from now on. `value`: the metric's mean over replicas, or
        None where it is missing, which changes nothing."""
        if value is None:
            return replicas
        ratio = value / target
        wanted = replicas if abs(ratio - 1) <= self._behavior.tolerance \
            else math.ceil(replicas * ratio)
        wanted = self._stabilized(now, replicas,
                                  min(max(wanted, self._least), self._most))
        if wanted > replicas:
            wanted = min(wanted, self._limit(now, replicas, +1))
        elif wanted < replicas:
            wanted = max(wanted, self._limit(now, replicas, -1))
        if wanted != replicas:
            self._changes.append((now, wanted - replicas))
        return wanted

    def _stabilized(self, now, replicas, wanted):
        """Not above the least that was recommended within the window for
        growing, nor below the most within that for shrinking."""
        behavior = self._behavior
        kept = max(behavior.up_window, behavior.down_window)
        self._recommended = [(t, r) for t, r in self._recommended
                             if now - t <= kept] + [(now, wanted)]
        def within(window):
            return [r for t, r in self._recommended if now - t <= window]
        up, down = min(within(behavior.up_window)), \
            max(within(behavior.down_window))
        if wanted > replicas:
            return max(replicas, up)
        return min(replicas, down)

    def _limit(self, now, replicas, sign):
        """How far the policies let it go now; the most generous counts."""
        policies = self._behavior.up if sign > 0 else self._behavior.down
        limits = []
        for policy in policies:
            done = sum(by for t, by in self._changes
                       if now - t < policy.seconds and by * sign > 0)
            before = replicas - done
            limits.append(before + sign * policy.change(before))
        return max(limits) if sign > 0 else min(limits)
