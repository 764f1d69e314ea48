#!/usr/bin/env bash
# The HTTP interface by hand. Start a server first: amlr-serve --engine amlr.plan
set -euo pipefail
url=${1:-http://127.0.0.1:8000}
model=${2:-amlr}
picture=${3:-}

echo "== ready?"
curl -fsS "$url/v2/health/ready"; echo

echo "== one post as a form (with a picture: add  -F image=@photo.jpg)"
curl -fsS "$url/v1/tag" -F text="Kevin Love at Quicken Loans Arena" ${picture:+-F image=@"$picture"}; echo

echo "== several posts as JSON, half a second to answer"
curl -fsS "$url/v1/tag" -H 'Content-Type: application/json' -d '{
  "deadline_ms": 500,
  "posts": [{"id": 1, "text": "Paris in May"}, {"id": 2, "text": "Rome"}]
}'; echo

echo "== a stream of JSON lines"
printf '{"id": 1, "text": "Paris in May"}\n{"id": 2, "text": "Rome"}\n' |
    curl -fsS -X POST "$url/v1/tag/stream" -H 'Content-Type: application/x-ndjson' -T -

echo "== the Open Inference Protocol (the model is named after the bundle)"
curl -fsS "$url/v2/models/$model/infer" -H 'Content-Type: application/json' -d '{
  "inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["Paris in May"]}]
}'; echo
