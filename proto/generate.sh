#!/bin/sh
# Regenerates the committed protobuf code. With an argument: writes below that folder instead (the freshness check).
set -eu
cd "$(dirname "$0")"
out=${1:-.}
"${PYTHON:-python3}" -m grpc_tools.protoc -I . --python_out="$out" --grpc_python_out="$out" --mypy_out="quiet:$out" \
    --mypy_grpc_out="quiet:$out" compeft_proto/v1/envelope.proto compeft_proto/v1/expert.proto compeft_proto/v1/exchange.proto \
    compeft_proto/v1/enrolment.proto
find "$out/compeft_proto/v1" -name 'envelope_pb2_grpc.py*' -delete
find "$out/compeft_proto/v1" -name 'expert_pb2_grpc.py*' -delete
