"""Asks the served model journey for recommendations, over REST. Needs nothing but Python.

Written by `tfmetarec export --serving-config`.

    python client_rest.py [HOST:PORT]
"""

import json
import sys
import urllib.error
import urllib.request

SERVER = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:8501"
URL = f"http://{SERVER}/v1/models/journey/labels/stable:predict"

# One user: what was met, oldest first, each with the label 1. Every list has one row for each user, and several
# users may share a request. A user without any interaction is one entry of padding:
#     "support": [[0]], "support_labels": [[0.0]], "support_length": [0]
# Of the user's features nothing is known here: "" is text, NaN a number and length 0 a list that is not known.
INPUTS = {
    "support": [[0, 1, 2]],
    "support_labels": [[1.0, 1.0, 1.0]],
    "support_length": [3],
    "user_segment": [""],
}


def main() -> None:
    body = json.dumps({"signature_name": "adapt_and_recommend", "inputs": INPUTS}).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(URL, body), timeout=10) as response:
            outputs = json.load(response)["outputs"]
    except urllib.error.HTTPError as error:
        sys.exit(f"{error.code}: {error.read().decode()}")
    for item, score in zip(outputs["items"][0], outputs["scores"][0], strict=True):
        print(f"{item}\t{score:.4f}")


if __name__ == "__main__":
    main()
