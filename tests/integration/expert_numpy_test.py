"""expertmesh-expert against NumPy: the outputs, and what it refuses."""

import subprocess
import unittest
import urllib.request

import grpc
import numpy as np

import expertmesh_testing as et
import expert_client
import safetensors_files
from expert_client import make_batch
from expertmesh.expert.v1 import expert_pb2 as pb

MODEL = et.GOLDENS / "qwen3_moe"
HIDDEN, LAYERS, EXPERTS = 64, 3, 8
NO_SUM = 0xffffffff  # in row_sum


def swiglu(tensors, layer, expert, x):
    """down(silu(gate x) * up x), in float64."""
    prefix = f"model.layers.{layer}.mlp.experts.{expert}."
    gate, up, down = (tensors[f"{prefix}{part}_proj.weight"].astype(np.float64)
                      for part in ("gate", "up", "down"))
    g = x @ gate.T
    return (g / (1 + np.exp(-g)) * (x @ up.T)) @ down.T


class ExpertNumpyTest(unittest.TestCase):

    @classmethod
    def setUpClass(cls):
        cls.tensors = safetensors_files.read(MODEL / "model.safetensors")
        cls.service = et.expert(MODEL, "--max-batch-rows", 64)
        cls.addClassCleanup(cls.service.__exit__, None, None, None)
        cls.channel = expert_client.connect(cls.service)
        cls.addClassCleanup(cls.channel.close)

    def setUp(self):
        self.random = np.random.default_rng(17)

    def tokens(self, count):
        return self.random.standard_normal((count, HIDDEN), np.float32)

    def random_batch(self, number, layer, data_type=pb.DATA_TYPE_F32):
        """Returns the batch and its tokens as they travel."""
        tokens = self.tokens(int(self.random.integers(1, 40)))
        if data_type == pb.DATA_TYPE_BF16:
            tokens = safetensors_files.bf16_to_f32(
                safetensors_files.f32_to_bf16(tokens))
        chosen = self.random.choice(EXPERTS, int(self.random.integers(1, 9)),
                                    replace=False)
        rows = {int(e): self.random.choice(
                    len(tokens), int(self.random.integers(0, len(tokens) + 1)),
                    replace=False).tolist()
                for e in chosen}
        return make_batch(number, layer, tokens, rows, data_type), tokens

    def check(self, batch, tokens, result, tolerance):
        self.assertEqual(result.code, pb.CODE_OK, result.message)
        self.assertEqual(result.sequence_number, batch.sequence_number)
        self.assertEqual(result.data_type, batch.data_type)
        self.assertEqual(result.num_rows, len(batch.row_token))
        rows = expert_client.decode(result)
        for g, expert in enumerate(batch.expert_ids):
            begin, end = batch.group_offsets[g:g + 2]
            x = tokens[list(batch.row_token[begin:end])].astype(np.float64)
            np.testing.assert_allclose(
                rows[begin:end], swiglu(self.tensors, batch.layer, expert, x),
                rtol=tolerance, atol=tolerance)

    def test_state(self):
        state = next(expert_client.watch_state(self.channel))
        self.assertEqual(state.model_type, "qwen3_moe")
        self.assertEqual((state.hidden_size, state.num_layers,
                          state.num_experts), (HIDDEN, LAYERS, EXPERTS))
        self.assertEqual([h.layer for h in state.hosted], list(range(LAYERS)))
        for hosted in state.hosted:
            self.assertEqual(list(hosted.expert_ids), list(range(EXPERTS)))
        self.assertEqual(state.expert_dtype, "f32")
        self.assertEqual(state.numerics_id, "cpu-chain-f32-v2")
        self.assertTrue(state.checkpoint_fingerprint)
        self.assertEqual(state.device, "cpu")
        self.assertTrue(state.adds_rows)
        self.assertTrue(state.int8_rows)
        self.assertFalse(state.draining)
        self.assertGreaterEqual(state.memory_bytes,
                                LAYERS * EXPERTS * 3 * HIDDEN * 40 * 4)
        self.assertEqual(self.service.ready["experts"], "0-7")
        self.assertEqual(self.service.ready["pid"], self.service.pid)
        for name in ("", "expertmesh.expert.v1.ExpertService"):
            self.assertEqual(expert_client.health(self.channel, name), 1)

    def test_every_expert_in_f32(self):
        with expert_client.ForwardStream(self.channel) as stream:
            tokens = self.tokens(5)
            rows = {e: [4, 0, 2] for e in range(EXPERTS)}
            for layer in range(LAYERS):
                batch = make_batch(layer, layer, tokens, rows)
                self.check(batch, tokens, stream.ask(batch), 2e-5)

    def test_every_expert_in_bf16(self):
        tokens = safetensors_files.bf16_to_f32(
            safetensors_files.f32_to_bf16(self.tokens(5)))
        with expert_client.ForwardStream(self.channel) as stream:
            rows = {e: [1, 2, 3] for e in range(EXPERTS)}
            batch = make_batch(1, 2, tokens, rows, pb.DATA_TYPE_BF16)
            # The intermediate product and the output are rounded: 2^-8 each.
            self.check(batch, tokens, stream.ask(batch), 2e-2)

    def test_every_expert_in_int8(self):
        tokens = self.tokens(5)
        tokens[1] *= 1e-3  # each row has a scale of its own
        coded = expert_client.widen_int8(expert_client.round_to_int8(tokens))
        with expert_client.ForwardStream(self.channel) as stream:
            rows = {e: [1, 2, 3] for e in range(EXPERTS)}
            batch = make_batch(1, 2, tokens, rows, pb.DATA_TYPE_INT8)
            result = stream.ask(batch)
            self.assertEqual(result.code, pb.CODE_OK, result.message)
            self.assertEqual(result.data_type, pb.DATA_TYPE_INT8)
            self.assertEqual(len(result.hidden_states),
                             len(batch.row_token) * (4 + HIDDEN))
            answer = expert_client.decode(result)
            for g, expert in enumerate(batch.expert_ids):
                x = coded[[1, 2, 3]].astype(np.float64)
                expected = swiglu(self.tensors, batch.layer, expert, x)
                # Half a step of a 127th of the row's largest, and f32's own.
                most = np.abs(expected).max(axis=1, keepdims=True) / 253
                error = np.abs(answer[3 * g:3 * g + 3] - expected)
                self.assertTrue((error <= most).all(), error / most)

    def test_int8_keeps_what_is_not_finite_to_its_row(self):
        tokens = self.tokens(3)
        rows = expert_client.round_to_int8(tokens)
        rows["scale"][1] = np.nan
        rows[2] = 0
        batch = make_batch(1, 0, tokens, {0: [0, 1, 2]}, pb.DATA_TYPE_INT8)
        batch.hidden_states = rows.tobytes()
        with expert_client.ForwardStream(self.channel) as stream:
            answer = expert_client.decode(stream.ask(batch))
        self.assertTrue(np.isfinite(answer[0]).all())
        self.assertTrue(np.isnan(answer[1]).all())
        np.testing.assert_array_equal(answer[2], 0)

    def test_sums_are_those_of_the_rows_to_the_bit(self):
        tokens = self.tokens(6)
        rows_of_expert = {e: [0, 2, 5] for e in range(EXPERTS)}
        rows_of_expert[3] = [0, 1, 5]
        weights = self.random.random(3 * EXPERTS, np.float32)
        with expert_client.ForwardStream(self.channel) as stream:
            for data_type in (pb.DATA_TYPE_F32, pb.DATA_TYPE_BF16,
                              pb.DATA_TYPE_INT8):
                batch = make_batch(1, 1, tokens, rows_of_expert, data_type)
                rows = expert_client.decode(stream.ask(batch))
                # Tokens 0, 2 and 5 have a sum each, token 1 none.
                sum_of = {0: 0, 2: 1, 5: 2}
                batch.num_sums = 3
                batch.row_weight.extend(weights)
                batch.row_sum.extend(sum_of.get(token, NO_SUM)
                                     for token in batch.row_token)
                expected = np.zeros((3, HIDDEN), np.float32)
                alone = []
                for row, weight, sum_index in zip(rows, weights, batch.row_sum):
                    if sum_index == NO_SUM:
                        alone.append(row)
                    else:
                        expected[sum_index] += weight * row
                result = stream.ask(batch)
                self.assertEqual(result.code, pb.CODE_OK, result.message)
                self.assertEqual((result.num_rows, result.num_sums), (1, 3))
                np.testing.assert_array_equal(expert_client.decode(result),
                                              alone)
                sums = np.frombuffer(result.partial_sums, "<f4")
                np.testing.assert_array_equal(sums.reshape(3, HIDDEN), expected)

    def test_one_sum_is_all_that_comes_back_of_a_token(self):
        batch = make_batch(1, 1, self.tokens(1),
                           {e: [0] for e in range(EXPERTS)}, pb.DATA_TYPE_BF16)
        with expert_client.ForwardStream(self.channel) as stream:
            payload = EXPERTS * HIDDEN * 2
            self.assertIn(stream.ask(batch).ByteSize() - payload, range(64))
            batch.num_sums = 1
            batch.row_weight.extend([0.125] * EXPERTS)
            batch.row_sum.extend([0] * EXPERTS)
            payload = HIDDEN * 4
            self.assertIn(stream.ask(batch).ByteSize() - payload, range(64))

    def test_many_batches_of_two_routers_at_once(self):
        types = [pb.DATA_TYPE_F32, pb.DATA_TYPE_BF16]
        with expert_client.ForwardStream(self.channel) as a, \
             expert_client.ForwardStream(self.channel) as b:
            sent = {a: {}, b: {}}
            for i in range(60):
                stream = (a, b)[i % 2]
                batch, tokens = self.random_batch(
                    1000 - i, int(self.random.integers(LAYERS)),
                    types[i % 5 == 0])
                stream.send(batch)
                sent[stream][batch.sequence_number] = (batch, tokens)
            for stream, batches in sent.items():
                while batches:
                    result = stream.receive()
                    batch, tokens = batches.pop(result.sequence_number)
                    bf16 = batch.data_type == pb.DATA_TYPE_BF16
                    self.check(batch, tokens, result, 2e-2 if bf16 else 2e-5)
                stream.close()
                self.assertEqual(list(stream.call), [])
                self.assertEqual(stream.call.code(), grpc.StatusCode.OK)

    def test_a_row_does_not_depend_on_its_company(self):
        tokens = self.tokens(200)
        with expert_client.ForwardStream(self.channel) as stream:
            alone = expert_client.decode(stream.ask(
                make_batch(1, 1, tokens[7:8], {3: [0]})))
            crowd = expert_client.decode(stream.ask(
                make_batch(2, 1, tokens, {2: list(range(90)),
                                          3: list(range(150))})))
        np.testing.assert_array_equal(alone[0], crowd[90 + 7])

    def test_refusals_leave_the_stream_open(self):
        good = make_batch(1, 0, self.tokens(2), {0: [0], 5: [1]})

        def changed(change):
            batch = pb.ExpertBatch()
            batch.CopyFrom(good)
            change(batch)
            return batch

        def set_offset(batch):
            batch.group_offsets[1] = 3

        def set_token(batch):
            batch.row_token[0] = 2

        def swap_experts(batch):
            batch.expert_ids[:] = [5, 0]

        bad = {
            "layer": lambda b: setattr(b, "layer", LAYERS),
            "hidden_size": lambda b: setattr(b, "hidden_size", 32),
            "hidden_states": lambda b: setattr(b, "hidden_states", b"12345"),
            "num_tokens": lambda b: setattr(b, "num_tokens", 3),
            "data_type": lambda b: setattr(b, "data_type", 9),
            "row of int8": lambda b: setattr(b, "data_type",
                                             pb.DATA_TYPE_INT8),
            "group_offsets": set_offset,
            "row_token": set_token,
            "expert_ids": swap_experts,
        }
        with expert_client.ForwardStream(self.channel) as stream:
            for field, change in bad.items():
                with self.subTest(field):
                    result = stream.ask(changed(change))
                    self.assertEqual(result.code, pb.CODE_INVALID_ARGUMENT)
                    self.assertTrue(result.message)
                    self.assertEqual(result.hidden_states, b"")
            self.assertEqual(stream.ask(good).code, pb.CODE_OK)

    def test_malformed_bytes_end_the_stream(self):
        for data in (b"\xff\xff\xff\xff", b"\x7a\x10short", b"\x0b"):
            with self.subTest(data), \
                 expert_client.ForwardStream(self.channel, raw=True) as stream:
                stream.send(data)
                with self.assertRaises(grpc.RpcError) as raised:
                    stream.receive()
                self.assertEqual(raised.exception.code(),
                                 grpc.StatusCode.INVALID_ARGUMENT)
                self.assertTrue(raised.exception.details())

    def test_an_expert_that_is_not_hosted(self):
        with et.expert(MODEL, "--experts", "1,4-5") as part, \
             expert_client.connect(part) as channel, \
             expert_client.ForwardStream(channel) as stream:
            self.assertEqual(part.ready["experts"], "1,4-5")
            state = next(expert_client.watch_state(channel))
            self.assertEqual(list(state.hosted[0].expert_ids), [1, 4, 5])
            tokens = self.tokens(2)
            result = stream.ask(make_batch(9, 1, tokens, {1: [0], 6: [1]}))
            self.assertEqual(result.code, pb.CODE_NOT_HOSTED)
            self.assertIn("expert 6 of layer 1", result.message)
            batch = make_batch(10, 1, tokens, {1: [0], 4: [1, 0]})
            self.check(batch, tokens, stream.ask(batch), 2e-5)

    def test_metrics(self):
        with expert_client.ForwardStream(self.channel) as stream:
            stream.ask(make_batch(1, 0, self.tokens(2), {0: [0], 5: [1]}))
        with urllib.request.urlopen(self.service.metrics_url) as page:
            text = page.read().decode()
        check = subprocess.run(["promtool", "check", "metrics"], input=text,
                               text=True, capture_output=True)
        self.assertEqual(check.returncode, 0, check.stdout + check.stderr)
        samples = dict(line.rsplit(" ", 1) for line in text.splitlines()
                       if not line.startswith("#"))
        prefix = "expertmesh_expert_"
        self.assertEqual(samples[prefix + "loaded_slots"], str(LAYERS * EXPERTS))
        self.assertGreater(float(samples[prefix + "memory_bytes"]), 0)
        self.assertGreaterEqual(float(samples[prefix + "rows_total"]), 2)
        self.assertIn(prefix + "queue_rows", samples)
        for name in ("batch_rows", "forward_duration_seconds",
                     "queue_duration_seconds"):
            self.assertGreater(float(samples[f"{prefix}{name}_count"]), 0)
        for code in ("ok", "invalid_argument", "not_hosted",
                     "resource_exhausted", "deadline_exceeded", "internal",
                     "unavailable"):
            self.assertIn(f'{prefix}batches_total{{code="{code}"}}', samples)
        self.assertRegex(text, r'expertmesh_build_info\{[^}]*'
                               r'service="expert"[^}]*\} 1\n')


if __name__ == "__main__":
    et.main()
