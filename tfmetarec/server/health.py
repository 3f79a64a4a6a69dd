"""The standard gRPC health service, `grpc.health.v1.Health`, for load balancers and probes.

A server opens its port only once its models answer, so it is healthy from then on, until it is told to stop. There
is no entry for each model: TensorFlow Serving has none, and `GetModelStatus` says more.
"""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio

SERVICES = ("", "ModelService", "PredictionService")
"""What can be asked for: the server as a whole, and its two services under TensorFlow Serving's names for them."""
_LAST_WORD_S = 0.1


class Health(aio.HealthServicer):
    """Answers Check and Watch on the event loop of a `grpc.aio.Server`, also while all its threads are busy."""

    def __init__(self) -> None:
        super().__init__()
        self._ended = asyncio.Event()

    async def register(self, server: grpc.aio.Server) -> None:
        """Adds the service to `server`, healthy from the start."""
        for service in SERVICES:
            await self.set(service, health_pb2.HealthCheckResponse.SERVING)
        health_pb2_grpc.add_HealthServicer_to_server(self, server)

    async def drain(self) -> None:
        """Says NOT_SERVING to all who watch or still ask, then ends the watches: a stop would wait for them."""
        await self.enter_graceful_shutdown()
        if self._server_watchers:
            await asyncio.sleep(_LAST_WORD_S)
        self._ended.set()

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: Any) -> None:
        watching = asyncio.ensure_future(super().Watch(request, context))
        ended = asyncio.ensure_future(self._ended.wait())
        try:
            await asyncio.wait({watching, ended}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            watching.cancel()
            ended.cancel()
