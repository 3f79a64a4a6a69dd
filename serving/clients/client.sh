#!/bin/sh
# Asks the served model journey for recommendations with curl, and prints the answer's JSON.
# Written by `tfmetarec export --serving-config`.
#
#   ./client.sh [HOST:PORT]
#
# Of the user's features nothing is known here: "" is text, NaN a number (TensorFlow Serving reads and writes NaN and
# Infinity, which JSON does not have, and refuses null) and length 0 a list that is not known.
set -eu
curl --silent --show-error --fail-with-body --max-time 10 --header "Content-Type: application/json" \
  --data-binary @- "http://${1:-127.0.0.1:8501}/v1/models/journey/labels/stable:predict" <<'JSON'
{
  "signature_name": "adapt_and_recommend",
  "inputs": {
    "support": [[0, 1, 2]],
    "support_labels": [[1.0, 1.0, 1.0]],
    "support_length": [3],
    "user_segment": [""]
  }
}
JSON
