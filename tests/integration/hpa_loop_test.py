"""The autoscaler that tests/bench/autoscale_bench simulates."""

import pathlib
import sys
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "bench"))

from hpa import Autoscaler, Behavior, Policy


class AutoscalerTest(unittest.TestCase):

    def test_the_formula(self):
        for replicas, value, wanted in ((1, 200, 2), (2, 150, 3), (3, 101, 3),
                                        (3, 109, 3), (3, 112, 4), (4, 90, 4)):
            self.assertEqual(
                Autoscaler(1, 10).decide(0, replicas, value, 100), wanted)

    def test_bounds(self):
        self.assertEqual(Autoscaler(1, 3).decide(0, 2, 900, 100), 3)
        self.assertEqual(Autoscaler(2, 9).decide(0, 3, 0, 100), 2)

    def test_a_missing_metric_changes_nothing(self):
        self.assertEqual(Autoscaler(1, 9).decide(0, 3, None, 100), 3)

    def test_grows_at_once_and_shrinks_after_the_window(self):
        hpa = Autoscaler(1, 9)
        self.assertEqual(hpa.decide(0, 1, 400, 100), 4)
        self.assertEqual(hpa.decide(15, 4, 10, 100), 4)
        self.assertEqual(hpa.decide(300, 4, 10, 100), 4)
        self.assertEqual(hpa.decide(301, 4, 10, 100), 1)

    def test_a_second_burst_restarts_the_window(self):
        hpa = Autoscaler(1, 9)
        hpa.decide(0, 1, 400, 100)
        self.assertEqual(hpa.decide(200, 4, 75, 100), 4)  # recommends 3
        self.assertEqual(hpa.decide(301, 4, 10, 100), 3)
        self.assertEqual(hpa.decide(501, 3, 10, 100), 1)

    def test_policies_bound_what_a_period_changes(self):
        # The larger of four pods and twice as many.
        hpa = Autoscaler(1, 99)
        self.assertEqual(hpa.decide(0, 1, 10000, 100), 5)
        self.assertEqual(hpa.decide(10, 5, 10000, 100), 5)
        self.assertEqual(hpa.decide(15, 5, 10000, 100), 10)
        slow = Behavior(down_window=0, down=(Policy(60, pods=1),))
        hpa = Autoscaler(1, 9, slow)
        self.assertEqual(hpa.decide(0, 4, 0, 100), 3)
        self.assertEqual(hpa.decide(30, 3, 0, 100), 3)
        self.assertEqual(hpa.decide(60, 3, 0, 100), 2)

    def test_compressed_time(self):
        hpa = Autoscaler(1, 9, Behavior().compressed(15))
        self.assertEqual(hpa.decide(0, 1, 400, 100), 4)
        self.assertEqual(hpa.decide(20, 4, 10, 100), 4)
        self.assertEqual(hpa.decide(20.1, 4, 10, 100), 1)


if __name__ == "__main__":
    unittest.main(verbosity=2)
