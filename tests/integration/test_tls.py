"""TLS on both transports and both event loops: who gets in, who doesn't, and what is refused at the start."""

from __future__ import annotations

import asyncio
import signal
import ssl
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path

import grpc
import grpc.aio
import numpy as np
import pytest
import uvloop
from tests.integration.certificates import Certificates, encrypted, make_certificates
from tests.integration.support import PATIENCE_S, x_request, y_of

from tensorferry.app import running
from tensorferry.config import ServerConfig
from tensorferry.errors import SettingsError
from tensorferry.testing.models import write_identity, write_raising
from tensorferry.testing.process import ServerProcess
from tensorferry.transport import choose
from tensorferry.wire import open_inference_pb2_grpc as pb_grpc
from tensorferry_client import AsyncClient, Client, ClientOptions, TlsOptions, Unavailable

Run = Callable[[Coroutine], object]
Launch = Callable[..., ServerProcess]


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    """Run a coroutine to its end on a fresh loop of either kind."""

    def to_the_end(coroutine: Coroutine) -> object:
        async def bounded():
            async with asyncio.timeout(2 * PATIENCE_S):
                return await coroutine

        with asyncio.Runner(loop_factory=request.param) as runner:
            return runner.run(bounded())

    return to_the_end


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """Everybody's certificates."""
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository of ``raising`` and ``bytes``."""
    root = tmp_path_factory.mktemp("models")
    write_raising(root)
    write_identity(root, "bytes", dims=(-1,), max_batch_size=8)
    return root


@pytest.fixture
def plain(transport: str, models: Path) -> ServerConfig:
    """Settings without TLS."""
    return ServerConfig(model_repository=models, grpc_port=0, http_port=0, transport=transport)


@pytest.fixture
def secure(plain: ServerConfig, certificates: Certificates) -> ServerConfig:
    """Settings with TLS."""
    pair = certificates.server
    return replace(plain, tls_certificate=str(pair.certificate), tls_key=str(pair.key))


@pytest.fixture
def mutual(secure: ServerConfig, certificates: Certificates) -> ServerConfig:
    """Settings with TLS that asks callers for a certificate."""
    return replace(secure, tls_client_ca=str(certificates.caller_ca))


def credentials(root: Path, pair=None) -> grpc.ChannelCredentials:
    own = (pair.key.read_bytes(), pair.certificate.read_bytes()) if pair else (None, None)
    return grpc.ssl_channel_credentials(root.read_bytes(), *own)


async def asked(config: ServerConfig, trust: grpc.ChannelCredentials | None) -> list[float]:
    """Serve, and return what one call over a channel with ``trust`` (None: plain) is answered."""
    async with running(config) as server:
        address = server.grpc_address
        opened = (
            grpc.aio.insecure_channel(address) if trust is None else grpc.aio.secure_channel(address, trust)
        )
        async with opened as channel:
            stub = pb_grpc.GRPCInferenceServiceStub(channel)
            return y_of(await stub.ModelInfer(x_request("raising", 3.0), timeout=PATIENCE_S))


def refused(run: Run, config: ServerConfig, trust: grpc.ChannelCredentials | None) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        run(asked(config, trust))
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


# -- who gets in ------------------------------------------------------------------------------------


def test_a_client_that_trusts_the_authority(run: Run, secure: ServerConfig, certificates: Certificates):
    assert run(asked(secure, credentials(certificates.server_ca))) == [6.0]


def test_a_client_with_a_certificate_where_one_is_asked_for(
    run: Run, mutual: ServerConfig, certificates: Certificates
):
    assert run(asked(mutual, credentials(certificates.server_ca, certificates.caller))) == [6.0]


def test_large_messages_and_many_calls_at_once(run: Run, secure: ServerConfig, certificates: Certificates):
    array = np.arange(2_000_000, dtype=np.float32).reshape(2, -1)

    async def scenario():
        async with running(secure) as server:
            options = ClientOptions(target=server.grpc_address, tls=TlsOptions(certificates.server_ca))
            async with AsyncClient(options) as client:
                answers = await asyncio.gather(
                    *(client.infer("bytes", {"x": array + n}) for n in range(4)),
                    *(client.infer("raising", {"x": np.full((1, 1), n, np.float32)}) for n in range(200)),
                )
        return [answer.outputs["y"] for answer in answers]

    answers = run(scenario())
    for number, answer in enumerate(answers[:4]):
        np.testing.assert_array_equal(answer, array + number)
    assert [float(answer[0, 0]) for answer in answers[4:]] == [2.0 * n for n in range(200)]


def test_streams(run: Run, secure: ServerConfig, certificates: Certificates):
    async def scenario():
        trust = credentials(certificates.server_ca)
        async with running(secure) as server, grpc.aio.secure_channel(server.grpc_address, trust) as channel:
            stub = pb_grpc.GRPCInferenceServiceStub(channel)
            requests = iter([x_request("raising", n) for n in range(50)])
            return [y_of(answer.infer_response) async for answer in stub.ModelStreamInfer(requests)]

    assert run(scenario()) == [[2.0 * n] for n in range(50)]


@pytest.mark.parametrize("with_certificate", [True, False])
def test_our_client(run: Run, mutual: ServerConfig, certificates: Certificates, with_certificate: bool):
    own = (certificates.caller.certificate, certificates.caller.key) if with_certificate else ()

    def ask(address: str) -> float:
        # The certificate is for localhost and 127.0.0.1: a name from it stands in for the target's.
        tls = TlsOptions(certificates.server_ca, *own, server_name="localhost")
        with Client(ClientOptions(target=address, tls=tls)) as client:
            answer = client.infer("raising", {"x": np.full((1, 1), 4, np.float32)})
            return float(answer.outputs["y"][0, 0])

    async def scenario():
        async with running(mutual) as server:
            return await asyncio.to_thread(ask, server.grpc_address)

    if with_certificate:
        assert run(scenario()) == 8.0
    else:
        with pytest.raises(Unavailable):
            run(scenario())


def test_several_processes(launch: Launch, secure: ServerConfig, certificates: Certificates):
    files = ("--tls-certificate", secure.tls_certificate, "--tls-key", secure.tls_key)
    process = launch(secure.model_repository, "--processes", "2", *files)
    assert process.wait_ready() == "ready"
    for number in range(4):  # on a connection of its own each
        options = ClientOptions(target=process.grpc_address, tls=TlsOptions(certificates.server_ca))
        with Client(options) as client:
            answer = client.infer("raising", {"x": np.full((1, 1), number, np.float32)})
        assert answer.outputs["y"][0, 0] == 2 * number
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 0


# -- who doesn't ------------------------------------------------------------------------------------


def test_a_client_that_trusts_another_authority(run: Run, secure: ServerConfig, certificates: Certificates):
    refused(run, secure, credentials(certificates.stranger_ca))


def test_a_plain_client_of_a_tls_port(run: Run, secure: ServerConfig):
    refused(run, secure, None)


def test_a_tls_client_of_a_plain_port(run: Run, plain: ServerConfig, certificates: Certificates):
    refused(run, plain, credentials(certificates.server_ca))


def test_a_client_without_the_certificate_that_is_asked_for(
    run: Run, mutual: ServerConfig, certificates: Certificates
):
    refused(run, mutual, credentials(certificates.server_ca))


def test_a_client_whose_certificate_another_authority_signed(
    run: Run, mutual: ServerConfig, certificates: Certificates
):
    refused(run, mutual, credentials(certificates.server_ca, certificates.stranger))


@pytest.mark.parametrize("offered", [None, ["http/1.1"]], ids=["nothing", "http/1.1"])
def test_a_client_that_does_not_offer_h2(
    run: Run, secure: ServerConfig, certificates: Certificates, offered: list[str] | None
):
    context = ssl.create_default_context(cafile=str(certificates.server_ca))
    if offered:
        context.set_alpn_protocols(offered)

    async def scenario():
        async with running(secure) as server:
            port = server.grpc_port
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
                writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0")
                said = await reader.read()
                writer.close()
            except (ConnectionError, ssl.SSLError):
                said = b""
            # Nobody else is harmed.
            trust = credentials(certificates.server_ca)
            async with grpc.aio.secure_channel(server.grpc_address, trust) as channel:
                stub = pb_grpc.GRPCInferenceServiceStub(channel)
                return said, y_of(await stub.ModelInfer(x_request("raising", 1.0), timeout=PATIENCE_S))

    assert run(scenario()) == (b"", [2.0])


def test_a_client_that_offers_h2_is_spoken_to(run: Run, secure: ServerConfig, certificates: Certificates):
    """The test above could pass for another reason, if this one didn't."""
    context = ssl.create_default_context(cafile=str(certificates.server_ca))
    context.set_alpn_protocols(["h2"])

    async def scenario():
        async with running(secure) as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.grpc_port, ssl=context)
            writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0")
            said = await reader.read(1)
            writer.close()
            return said

    assert run(scenario()) == b"\0"  # a frame's length begins


# -- what is refused at the start -------------------------------------------------------------------


def test_files_that_cannot_be_used_are_named(plain: ServerConfig, certificates: Certificates, tmp_path: Path):
    nothing = tmp_path / "nothing.pem"
    nothing.write_text("nothing")
    broken = tmp_path / "broken.pem"
    broken.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    good, other = certificates.server, certificates.caller.key
    missing = tmp_path / "missing.pem"
    locked = encrypted(good.key)
    cases = [
        (missing, good.key, None, f"--tls-certificate {missing}: No such file"),
        (good.certificate, missing, None, f"--tls-key {missing}: No such file"),
        (good.certificate, good.key, missing, f"--tls-client-ca {missing}: No such file"),
        (tmp_path, good.key, None, f"--tls-certificate {tmp_path}: Is a directory"),
        (nothing, good.key, None, f"--tls-certificate {nothing}: there is no PEM certificate"),
        (good.key, good.certificate, None, f"--tls-certificate {good.key}: there is no PEM certificate"),
        (broken, good.key, None, f"--tls-certificate {broken} with"),
        (good.certificate, nothing, None, f"--tls-key {nothing}: there is no PEM private key"),
        (
            good.certificate,
            other,
            None,
            f"--tls-key {other} isn't the key",
        ),
        (good.certificate, locked, None, f"--tls-key {locked}: the key has a passphrase"),
        (good.certificate, good.key, nothing, f"--tls-client-ca {nothing}: there is no usable PEM"),
        (good.certificate, good.key, broken, f"--tls-client-ca {broken}: there is no usable PEM"),
    ]
    for certificate, key, client_ca, says in cases:
        config = replace(
            plain, tls_certificate=str(certificate), tls_key=str(key), tls_client_ca=str(client_ca or "")
        )
        with pytest.raises(SettingsError) as caught:
            choose(config)
        assert str(caught.value).startswith(says)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"tls_key": "k"}, "--tls-key is of no use without --tls-certificate"),
        ({"tls_certificate": "c"}, "--tls-certificate needs its private key: give --tls-key"),
        ({"tls_client_ca": "a"}, "--tls-client-ca asks callers for certificates, which needs TLS"),
    ],
)
def test_settings_that_do_not_go_together(settings: dict[str, str], says: str):
    with pytest.raises(SettingsError, match=says):
        ServerConfig(**settings)
