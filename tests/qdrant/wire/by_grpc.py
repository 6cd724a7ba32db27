"""The server by gRPC."""

from __future__ import annotations

import time
from typing import Any

import grpc
from qdrant_client import grpc as pb
from qdrant_client import models
from qdrant_client.conversions.conversion import GrpcToRest, RestToGrpc, grpc_to_payload
from qdrant_client.grpc import collections_service_pb2_grpc as collections_grpc
from qdrant_client.grpc import points_service_pb2_grpc as points_grpc

from .state import ABORTS, Fault, Wire

_COMPLETED = pb.UpdateResult(operation_id=0, status=pb.UpdateStatus.Completed)


class _Answers:
    """What both gRPC services share."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire

    def enter(
        self,
        operation: str,
        context: Any,  # noqa: ANN401
        points: list[models.PointStruct] | None = None,
    ) -> Fault | None:
        """Let go wrong what is to go wrong before the operation."""
        if self.wire.api_key and dict(context.invocation_metadata()).get("api-key") != self.wire.api_key:
            context.abort(*ABORTS["auth"])
        fault = self.wire.fault(operation, points)
        if fault is None:
            return None
        if fault.kind == "slow":
            time.sleep(fault.seconds)
        elif fault.kind == "poison":
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "Wrong input: Validation error in body")
        elif fault.kind in ABORTS:
            if fault.kind == "rate" and fault.seconds:
                context.set_trailing_metadata((("retry-after", str(round(fault.seconds))),))
            context.abort(*ABORTS[fault.kind])
        return fault


class _Points(_Answers, points_grpc.PointsServicer):
    def Upsert(self, request: Any, context: Any) -> Any:  # noqa: ANN401, N802
        points = (
            [GrpcToRest.convert_point_struct(point) for point in request.points] if self.wire.keeps else []
        )
        fault = self.enter("upsert", context, points)
        try:
            self.wire.upsert(request.collection_name, points)
        except ValueError as error:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        if fault and fault.kind == "applied":
            context.abort(grpc.StatusCode.UNAVAILABLE, "connection lost after it was applied")
        if fault and fault.kind == "late":
            late = pb.UpdateResult(operation_id=0, status=pb.UpdateStatus.WaitTimeout)
            return pb.PointsOperationResponse(result=late)
        return pb.PointsOperationResponse(result=_COMPLETED)

    def UpdateVectors(self, request: Any, context: Any) -> Any:  # noqa: ANN401, N802
        points = [GrpcToRest.convert_point_vectors(point) for point in request.points]
        self.enter("vectors", context)
        try:
            with self.wire.turn:
                self.wire.engine.update_vectors(request.collection_name, points)
        except KeyError as error:
            context.abort(grpc.StatusCode.NOT_FOUND, f"Not found: No point with id {error} found")
        return pb.PointsOperationResponse(result=_COMPLETED)

    def DeleteVectors(self, request: Any, context: Any) -> Any:  # noqa: ANN401, N802
        self.enter("remove vectors", context)
        ids = [GrpcToRest.convert_point_id(each) for each in request.points_selector.points.ids]
        chosen = models.PointIdsList(points=ids)
        with self.wire.turn:
            self.wire.engine.delete_vectors(request.collection_name, list(request.vectors.names), chosen)
        return pb.PointsOperationResponse(result=_COMPLETED)

    def CreateVectorName(self, request: Any, context: Any) -> Any:  # noqa: ANN401, N802
        self.enter("add vector", context)
        dense = models.DenseVectorConfig(
            size=request.dense_config.size,
            distance=GrpcToRest.convert_distance(request.dense_config.distance),
            datatype=GrpcToRest.convert_datatype(request.dense_config.datatype),
        )
        with self.wire.turn:
            self.wire.engine.create_vector_name(
                request.collection_name, request.vector_name, models.DenseVectorNameConfig(dense=dense)
            )
        return pb.PointsOperationResponse(result=_COMPLETED)

    def DeleteVectorName(self, request: Any, context: Any) -> Any:  # noqa: ANN401, N802
        self.enter("drop vector", context)
        with self.wire.turn:
            self.wire.engine.delete_vector_name(request.collection_name, request.vector_name)
        return pb.PointsOperationResponse(result=_COMPLETED)

    def Delete(self, request: Any, context: Any) -> Any:  # noqa: ANN401, N802
        self.enter("delete", context)
        ids = [GrpcToRest.convert_point_id(each) for each in request.points.points.ids]
        with self.wire.turn:
            self.wire.engine.delete(request.collection_name, models.PointIdsList(points=ids))
        return pb.PointsOperationResponse(result=_COMPLETED)

    def CreateFieldIndex(self, request: Any, context: Any) -> Any:  # noqa: ANN401, N802
        self.enter("index", context)
        return pb.PointsOperationResponse(result=_COMPLETED)

    def Get(self, request: Any, context: Any) -> Any:  # noqa: ANN401, N802
        self.enter("retrieve", context)
        with self.wire.turn:
            records = self.wire.engine.retrieve(
                request.collection_name,
                [GrpcToRest.convert_point_id(each) for each in request.ids],
                with_payload=GrpcToRest.convert_with_payload_interface(request.with_payload),
                with_vectors=GrpcToRest.convert_with_vectors_selector(request.with_vectors),
            )
        return pb.GetResponse(result=[RestToGrpc.convert_record(record) for record in records])

    def Count(self, request: Any, context: Any) -> Any:  # noqa: ANN401, N802
        self.enter("count", context)
        chosen = GrpcToRest.convert_filter(request.filter) if request.HasField("filter") else None
        with self.wire.turn:
            count = self.wire.engine.count(request.collection_name, count_filter=chosen).count
        return pb.CountResponse(result=pb.CountResult(count=count))

    def Scroll(self, request: Any, context: Any) -> Any:  # noqa: ANN401, N802
        self.enter("scroll", context)
        with self.wire.turn:
            records, offset = self.wire.engine.scroll(
                request.collection_name,
                GrpcToRest.convert_filter(request.filter) if request.HasField("filter") else None,
                limit=request.limit,
                offset=GrpcToRest.convert_point_id(request.offset) if request.HasField("offset") else None,
                with_payload=GrpcToRest.convert_with_payload_interface(request.with_payload),
                with_vectors=GrpcToRest.convert_with_vectors_selector(request.with_vectors),
            )
        further = None if offset is None else RestToGrpc.convert_extended_point_id(offset)
        found = [RestToGrpc.convert_record(record) for record in records]
        return pb.ScrollResponse(result=found, next_page_offset=further)

    def Query(self, request: Any, context: Any) -> Any:  # noqa: ANN401, N802
        self.enter("query", context)
        with self.wire.turn:
            asked = [GrpcToRest.convert_query_points(request)]
            answer = self.wire.engine.query_batch_points(request.collection_name, asked)[0]
        return pb.QueryResponse(result=[RestToGrpc.convert_scored_point(point) for point in answer.points])


class _Collections(_Answers, collections_grpc.CollectionsServicer):
    def CollectionExists(self, request: Any, context: Any) -> Any:  # noqa: ANN401, N802
        self.enter("exists", context)
        exists = self.wire.engine.collection_exists(request.collection_name)
        return pb.CollectionExistsResponse(result=pb.CollectionExists(exists=exists))

    def Get(self, request: Any, context: Any) -> Any:  # noqa: ANN401, N802
        self.enter("info", context)
        info = self.wire.engine.get_collection(request.collection_name)
        return pb.GetCollectionInfoResponse(result=RestToGrpc.convert_collection_info(info))

    def Create(self, request: Any, context: Any) -> Any:  # noqa: ANN401, N802
        self.enter("create", context)
        vectors = GrpcToRest.convert_vectors_config(request.vectors_config)
        metadata = grpc_to_payload(request.metadata) if self.wire.keeps_metadata else None
        self.wire.engine.create_collection(request.collection_name, vectors, metadata=metadata)
        return pb.CollectionOperationResponse(result=True)

    def Update(self, request: Any, context: Any) -> Any:  # noqa: ANN401, N802
        self.enter("update", context)
        metadata = grpc_to_payload(request.metadata)
        self.wire.engine.update_collection(request.collection_name, metadata=metadata)
        return pb.CollectionOperationResponse(result=True)


def add_services(server: grpc.Server, wire: Wire) -> None:
    """Let a server answer for points and collections."""
    points_grpc.add_PointsServicer_to_server(_Points(wire), server)
    collections_grpc.add_CollectionsServicer_to_server(_Collections(wire), server)
