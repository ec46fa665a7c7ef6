#!/usr/bin/env python3
"""kms-model.py BOTOCORE_DIR > src/kms/api/model.json

Cuts botocore's service model of AWS KMS (Apache-2.0) down to what the server checks and the command line offers: for
each action its input members, which of them are required, and the bounds of their shapes.
"""
import gzip
import json
import sys

path = sys.argv[1] + "/data/kms/2014-11-01/service-2.json.gz"
model = json.load(gzip.open(path))
shapes = model["shapes"]
used = {}


def take(name):
    if name in used:
        return
    shape = shapes[name]
    out = {"type": shape["type"]}
    for key in ("min", "max", "enum", "pattern", "required"):
        if key in shape:
            out[key] = shape[key]
    used[name] = out
    if shape["type"] == "structure":
        out["members"] = {k: v["shape"] for k, v in shape["members"].items()}
        for member in out["members"].values():
            take(member)
    elif shape["type"] == "list":
        out["member"] = shape["member"]["shape"]
        take(out["member"])
    elif shape["type"] == "map":
        out["value"] = shape["value"]["shape"]
        take(out["value"])


actions = {}
for name, operation in sorted(model["operations"].items()):
    shape = operation["input"]["shape"]
    take(shape)
    actions[name] = used.pop(shape)
    actions[name].pop("type")
lines = [f'{json.dumps(k)}: {json.dumps(v)}' for k, v in actions.items()]
rows = [f'{json.dumps(k)}: {json.dumps(v)}' for k, v in sorted(used.items())]
print('{"source": "botocore 1.44.5, kms 2014-11-01, Apache-2.0",\n"actions": {\n' + ",\n".join(lines)
      + '},\n"shapes": {\n' + ",\n".join(rows) + "}}")
