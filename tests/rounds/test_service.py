"""What operators' tools expect of a gRPC service: health, and reflection that lists it."""

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from tests.rounds.conftest import World

SERVICE = "compeft.v1.ExpertExchange"


def test_the_service_says_that_it_serves(world: World) -> None:
    with grpc.insecure_channel(world.address) as channel:
        answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=SERVICE))
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_reflection_lists_the_service(world: World) -> None:
    ask = reflection_pb2.ServerReflectionRequest(list_services="")
    with grpc.insecure_channel(world.address) as channel:
        answers = list(reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([ask])))
    assert SERVICE in {service.name for service in answers[0].list_services_response.service}
