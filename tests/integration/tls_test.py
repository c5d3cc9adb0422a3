"""TLS on every port, tokens, and what is refused: real binaries, and clients
that are not ours."""

import json
import os
import pathlib
import tempfile
import unittest

os.environ["GRPC_VERBOSITY"] = "NONE"  # handshakes that fail are the test
import grpc

import certificates
import expertmesh_testing as et
from expertmesh.admin.v1 import admin_pb2, admin_pb2_grpc
from expertmesh.v1 import (generation_pb2, generation_pb2_grpc, model_pb2,
                           model_pb2_grpc)

SECONDS = 60


class Health:
    """grpc.health.v1 by its bytes."""

    def __init__(self, channel):
        self._check = channel.unary_unary("/grpc.health.v1.Health/Check")

    def serving(self, service=""):
        name = service.encode()
        request = b"\x0a" + bytes([len(name)]) + name if name else b""
        return self._check(request, timeout=SECONDS) == b"\x08\x01"


class TlsTest(unittest.TestCase):
    """A mesh of one expert service, both with certificates."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        self.authority = certificates.Authority(self.folder)
        self.mesh = self.authority.issue("mesh")

    def mesh_flags(self, identity=None, authority=None):
        return certificates.flags("--mesh-tls", identity or self.mesh,
                                  authority or self.authority)

    def expert(self, *flags):
        service = et.expert(et.DEMO_MODEL, *flags)
        self.addCleanup(service.__exit__, None, None, None)
        return service

    def router(self, addresses, *flags, wait=True):
        service = et.Service(
            [et.BIN / "expertmesh-router", "--model", et.DEMO_MODEL,
             "--experts-at", ",".join(addresses), "--listen", "127.0.0.1:0",
             *flags], wait=wait)
        self.addCleanup(service.__exit__, None, None, None)
        return service

    def channel(self, address, authority=None, identity=(None, None), name=""):
        certificate, key = (path and path.read_bytes() for path in identity)
        credentials = grpc.ssl_channel_credentials(
            (authority or self.authority).certificate.read_bytes(), key,
            certificate)
        options = [("grpc.ssl_target_name_override", name)] if name else []
        # Not one that another test's subchannel knows.
        options.append(("grpc.use_local_subchannel_pool", 1))
        channel = grpc.secure_channel(address, credentials, options)
        self.addCleanup(channel.close)
        return channel

    def model(self, channel, **arguments):
        return model_pb2_grpc.ModelServiceStub(channel).GetModel(
            model_pb2.GetModelRequest(), timeout=SECONDS, **arguments).name

    def endpoints(self, channel):
        return admin_pb2_grpc.AdminServiceStub(channel).ListEndpoints(
            admin_pb2.ListEndpointsRequest(), timeout=SECONDS).endpoints

    def assert_code(self, code, call):
        with self.assertRaises(grpc.RpcError) as caught:
            call()
        self.assertEqual(caught.exception.code(), code,
                         caught.exception.details())
        return caught.exception.details()

    def assert_unavailable(self, call):
        return self.assert_code(grpc.StatusCode.UNAVAILABLE, call)


class MeshTest(TlsTest):

    def test_services_know_each_other(self):
        expert = self.expert(*self.mesh_flags(), "--health-listen",
                             "127.0.0.1:0")
        router = self.router([expert.address], *self.mesh_flags(),
                             "--health-listen", "127.0.0.1:0")
        # Clients' port has no TLS where none was asked for.
        with grpc.insecure_channel(router.address) as plain:
            answer = list(generation_pb2_grpc.GenerationServiceStub(
                plain).Generate(generation_pb2.GenerateRequest(
                    text="To be", max_tokens=4, exact=True, ignore_eos=True),
                timeout=SECONDS))
        self.assertEqual(answer[-1].usage.generated_tokens, 4)
        for service in (expert, router):
            with grpc.insecure_channel(service.ready["health"]) as plain:
                self.assertTrue(Health(plain).serving())
                self.assertTrue(Health(plain).serving("live"))
                # And nothing else.
                self.assert_code(grpc.StatusCode.UNIMPLEMENTED,
                                 lambda: self.model(plain))
        known = self.channel(router.admin_address, identity=self.mesh)
        self.assertEqual([e.state for e in self.endpoints(known)], ["ready"])
        self.assert_unavailable(lambda: self.endpoints(
            self.channel(router.admin_address)))  # shows no certificate
        stranger = certificates.Authority(self.folder, "stranger")
        self.assert_unavailable(lambda: self.endpoints(self.channel(
            router.admin_address, identity=stranger.issue("other"))))
        for port in (expert.address, router.admin_address):
            with grpc.insecure_channel(port) as plain:
                self.assertRaises(grpc.RpcError, lambda: Health(
                    plain).serving())

    def test_our_command_knows_a_port_of_each_kind(self):
        expert = self.expert(*self.mesh_flags())
        admin = certificates.flags("--admin-tls", self.mesh, self.authority)
        client = certificates.flags("--client-tls", self.mesh)
        token = self.folder / "token"
        token.write_text("first-secret\n")
        for flags, ours in (
                ((), ()),
                ((*client, "--client-tokens", token),
                 ("--tls-ca", self.authority.certificate,
                  "--token-file", token))):
            router = self.router([expert.address], *self.mesh_flags(), *flags)
            known = ("--server", router.address, "--admin",
                     router.admin_address, *ours)
            for command in (("describe",), ("top", "--once")):
                text = et.cli(*command, *known, *admin).stdout
                self.assertIn(expert.address, text)
                refused = et.cli(*command, *known, check=False)
                self.assertEqual(refused.returncode, 1)
                self.assertIn(router.admin_address, refused.stderr)
                # As in a pod of the chart, which flags go before.
                given = dict(zip(
                    (f"EXPERTMESH_{flag[2:].upper().replace('-', '_')}"
                     for flag in map(str, admin[::2])), map(str, admin[1::2])))
                text = et.cli(*command, *known, env=given).stdout
                self.assertIn(expert.address, text)

    def test_a_router_without_certificates_gets_nowhere(self):
        expert = self.expert(*self.mesh_flags())
        router = self.router([expert.address], wait=False)
        router.await_log("listening")
        with grpc.insecure_channel(
                router.await_log(r"listening .*admin=(\S+)").group(1)) as channel:
            self.assertNotEqual(self.endpoints(channel)[0].state, "ready")

    def check_refused(self, identity, why):
        """The router does not believe this one, and says why."""
        expert = self.expert(*self.mesh_flags(identity))
        router = self.router([expert.address], *self.mesh_flags(), wait=False)
        admin = router.await_log(r"listening .*admin=(\S+)").group(1)
        known = self.channel(admin, identity=self.mesh)

        def says_why():
            (endpoint,) = self.endpoints(known)
            self.assertNotEqual(endpoint.state, "ready")
            return why in endpoint.reason

        et.wait_until(says_why, what=why)

    def test_expired(self):
        self.check_refused(self.authority.issue("old", days=-1),
                           "certificate verify failed")

    def test_for_another_name(self):
        self.check_refused(
            self.authority.issue("elsewhere", "DNS:elsewhere.example"),
            "Hostname Verification Check failed")

    def test_signed_by_nobody_known(self):
        stranger = certificates.Authority(self.folder, "stranger")
        self.check_refused(stranger.issue("other"),
                           "certificate verify failed")

    def test_a_pool_has_a_name(self):
        identity = self.authority.issue("pool", "DNS:experts-base.example")
        expert = self.expert(*self.mesh_flags(identity))
        mesh = self.folder / "mesh.json"
        mesh.write_text(json.dumps({"pools": [
            {"name": "base", "target": expert.address,
             "fixed": {"slots": "0-15"},
             "tlsServerName": "experts-base.example"}]}))
        with et.Service([et.BIN / "expertmesh-router", "--model",
                         et.DEMO_MODEL, "--mesh-config", mesh, "--control",
                         "--listen", "127.0.0.1:0", *self.mesh_flags()]):
            pass  # ready once every expert is covered

    def test_new_certificates_are_used_without_a_restart(self):
        expert = self.expert(*self.mesh_flags())
        router = self.router([expert.address], *self.mesh_flags(),
                             *certificates.flags("--client-tls", self.mesh))
        self.assertEqual(self.model(self.channel(router.address)),
                         "demo_model")
        before = router.metrics()
        # Those who knew the old authority only are to know both meanwhile.
        new = certificates.Authority(self.folder, "new")
        old = self.authority.certificate.read_text()
        self.authority.certificate.write_text(
            old + new.certificate.read_text())
        new.issue("mesh", days=20)

        def is_renewed():
            try:
                self.model(self.channel(router.address, new))
                return True
            except grpc.RpcError:
                return False

        et.wait_until(is_renewed)
        series = ('expertmesh_router_certificate_expiry_timestamp_seconds'
                  '{use="%s"}')
        for use in ("client", "mesh"):
            self.assertGreater(router.metrics()[series % use],
                               before[series % use])
        expert.await_log("certificate loaded(.|\n)*certificate loaded")
        # Files that are no good change nothing.
        key = self.mesh[1].read_text()
        self.mesh[1].write_text("no key")
        router.await_log("certificates are not renewed.*no private key")
        self.assertTrue(is_renewed())
        self.mesh[1].write_text(key)

    def test_a_killed_service_comes_back(self):
        expert = self.expert(*self.mesh_flags())
        address = expert.address
        router = self.router([address], *self.mesh_flags())
        known = self.channel(router.admin_address, identity=self.mesh)
        expert.process.kill()
        expert.process.wait()
        et.wait_until(lambda: self.endpoints(known)[0].state != "ready")
        again = et.Service([et.BIN / "expertmesh-expert", "--model",
                            et.DEMO_MODEL, "--listen", address,
                            *self.mesh_flags()])
        self.addCleanup(again.__exit__, None, None, None)
        et.wait_until(lambda: self.endpoints(known)[0].state == "ready")

    def test_weights_are_lent_to_who_is_known(self):
        lender = self.expert(*self.mesh_flags())
        cache = self.folder / "cache"
        puller = et.Service(
            [et.BIN / "expertmesh-expert", "--weights-from", lender.address,
             "--weights-cache", cache, "--experts", "3", *self.mesh_flags()])
        self.addCleanup(puller.__exit__, None, None, None)
        self.assertEqual(puller.ready["experts"], "3")


class ClientsTest(TlsTest):

    def setUp(self):
        super().setUp()
        self.tokens = self.folder / "tokens"
        self.tokens.write_text("# ours\nfirst-secret\n\nsecond-secret\n")
        self.expert_service = self.expert()
        self.identity = self.authority.issue("client")

    def start(self, *flags):
        self.router_service = self.router([self.expert_service.address],
                                          *flags)
        return self.router_service.address

    def test_certificates_are_asked_for(self):
        address = self.start(*certificates.flags("--client-tls", self.identity,
                                                 self.authority))
        self.assertEqual(self.model(self.channel(
            address, identity=self.authority.issue("user"))), "demo_model")
        self.assert_unavailable(lambda: self.model(self.channel(address)))
        self.assert_unavailable(lambda: self.model(self.channel(
            address, identity=self.authority.issue("late", days=-1))))
        with grpc.insecure_channel(address) as plain:
            self.assert_unavailable(lambda: self.model(plain))

    def test_names_are_checked_by_clients(self):
        address = self.start(*certificates.flags("--client-tls",
                                                 self.identity))
        self.assert_unavailable(lambda: self.model(self.channel(
            address, name="elsewhere.example")))

    def test_tokens(self):
        address = self.start(
            *certificates.flags("--client-tls", self.identity),
            "--client-tokens", self.tokens, "--log-level", "debug")
        channel = self.channel(address)

        def with_token(token):
            return self.model(channel, metadata=(
                ("authorization", f"Bearer {token}"),))

        for token in ("first-secret", "second-secret"):
            self.assertEqual(with_token(token), "demo_model")
        refused = grpc.StatusCode.UNAUTHENTICATED
        self.assertIn("Bearer", self.assert_code(
            refused, lambda: self.model(channel)))
        for token in ("first", "first-secret-", "", "# ours"):
            details = self.assert_code(refused, lambda: with_token(token))
            self.assertNotIn("secret", details)
        self.assertEqual(
            self.router_service.metrics()[
                "expertmesh_router_unauthenticated_total"], 5)
        self.assertTrue(Health(channel).serving())  # asked by machines
        self.tokens.write_text("third-secret\n")
        et.wait_until(lambda: "tokens renewed" in self.router_service.log())
        self.assertEqual(with_token("third-secret"), "demo_model")
        self.assert_code(refused, lambda: with_token("first-secret"))
        self.tokens.write_text("")
        self.router_service.await_log("tokens are not renewed.*holds no token")
        self.assertEqual(with_token("third-secret"), "demo_model")
        self.assertNotIn("secret", self.router_service.log())

    def test_our_command_sends_one(self):
        address = self.start(
            *certificates.flags("--client-tls", self.identity),
            "--client-tokens", self.tokens)
        ours = ("--server", address, "--tls-ca", self.authority.certificate)
        request = ("generate", "--prompt", "To be", "--max-tokens", 3)
        self.assertTrue(et.cli(*request, *ours, "--token-file",
                               self.tokens).stdout)
        missing = self.folder / "missing"
        for flags, why in (
                (ours, "token"),
                ((*ours, "--token-file", missing), "No such file or directory"),
                (("--token-file", self.tokens), "needs --tls-ca"),
                (("--tls-cert", missing), "needs --tls-ca")):
            refused = et.cli(*request, *flags, check=False)
            self.assertIn(refused.returncode, (1, 2))
            self.assertRegex(refused.stderr,
                             rf"\Aexpertmesh: .*{why}.*\n\Z")

    def test_connections_end_in_peace(self):
        address = self.start("--client-connection-age", "0.2")
        states = []
        with grpc.insecure_channel(address) as channel:
            channel.subscribe(states.append)
            stub = generation_pb2_grpc.GenerationServiceStub(channel)
            # Longer than a connection, and whole; then new ones.
            for _ in range(1000):
                if states.count(grpc.ChannelConnectivity.IDLE) >= 3:
                    break
                answer = list(stub.Generate(generation_pb2.GenerateRequest(
                    text="To be", max_tokens=200, ignore_eos=True),
                    timeout=SECONDS))
                self.assertEqual(answer[-1].usage.generated_tokens, 200)
            else:
                self.fail(f"one connection all along: {states}")


class FlagsTest(TlsTest):

    def test_one_line_says_what_is_wrong(self):
        certificate, key = self.mesh
        other_key = self.authority.issue("other")[1]
        empty = self.folder / "empty"
        empty.write_text("")
        ca = self.authority.certificate
        mesh = ["--mesh-tls-cert", certificate, "--mesh-tls-ca", ca]
        client = ["--client-tls-cert", certificate, "--client-tls-key", key]
        for flags, word in (
                (mesh, "--mesh-tls-key"),
                ([*mesh, "--mesh-tls-key", other_key], "is not the key of"),
                ([*mesh, "--mesh-tls-key", empty], "is empty"),
                ([*mesh, "--mesh-tls-key", "/no/such/file"],
                 "No such file or directory"),
                ([*mesh, "--mesh-tls-key", ca], "holds no private key"),
                (["--client-tls-cert", key, "--client-tls-key", key],
                 "holds no certificate"),
                (["--client-tls-cert", certificate], "go together"),
                (["--client-tls-ca", ca], "needs --client-tls-cert"),
                (["--client-tokens", empty], "needs --client-tls-cert"),
                ([*client, "--client-tokens", empty], "holds no token"),
                (["--admin-listen", "nonsense"], "--admin-listen"),
                (["--health-listen", "nonsense"], "--health-listen")):
            with self.subTest(word):
                with self.assertRaises(et.StartError) as caught:
                    self.router(["127.0.0.1:1"], *flags)
                self.assertRegex(str(caught.exception),
                                 rf"(?m)^expertmesh-router: .*{word}.*$")


if __name__ == "__main__":
    et.main()
