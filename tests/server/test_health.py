"""The gRPC health service, as probes and load balancers see it."""

import threading

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tfmetarec.server import Server

pytestmark = pytest.mark.serving

Status = health_pb2.HealthCheckResponse


@pytest.fixture
def served(exported, tmp_path):
    (tmp_path / "basket").symlink_to(exported, target_is_directory=True)

    def start(**settings):
        return Server("basket", tmp_path / "basket", rest_api_port=None, **settings)

    return start


def health_stub(channel):
    return health_pb2_grpc.HealthStub(channel)


@pytest.mark.parametrize("service", ["", "ModelService", "PredictionService"])
def test_a_server_that_is_up_is_healthy(served, service):
    with served(grpc_health=True) as server, grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        request = health_pb2.HealthCheckRequest(service=service)
        assert health_stub(channel).Check(request, timeout=10).status == Status.SERVING


def test_nobody_knows_of_other_services(served):
    with served(grpc_health=True) as server, grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        with pytest.raises(grpc.RpcError) as caught:
            health_stub(channel).Check(health_pb2.HealthCheckRequest(service="basket"), timeout=10)
        assert caught.value.code() == grpc.StatusCode.NOT_FOUND


def test_without_the_setting_there_is_no_health_service(served):
    with served() as server, grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        with pytest.raises(grpc.RpcError) as caught:
            health_stub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
        assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_who_watches_is_told_of_the_end_and_does_not_hold_it_up(served):
    server = served(grpc_health=True, grace_s=60.0)
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        seen = []
        first = threading.Event()

        def watch():
            for response in health_stub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=30):
                seen.append(response.status)
                first.set()

        watching = threading.Thread(target=watch)
        watching.start()
        assert first.wait(10)
        server.stop()
        watching.join(10)
        assert not watching.is_alive()
    assert seen == [Status.SERVING, Status.NOT_SERVING]


def test_a_socket_file_answers_beside_the_port_and_without_one(served, tmp_path):
    for port in (0, None):
        path = tmp_path / f"{port}.sock"
        with served(grpc_health=True, grpc_socket_path=path, port=port) as server:
            addresses = [f"unix:{path}"] + ([] if port is None else [f"127.0.0.1:{server.port}"])
            for address in addresses:
                with grpc.insecure_channel(address) as channel:
                    answer = health_stub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
                    assert answer.status == Status.SERVING
