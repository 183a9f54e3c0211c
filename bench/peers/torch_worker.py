#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""PyTorch's attention as peers; worker.hpp describes the protocol.

    torch_worker.py torch_sdpa      scaled_dot_product_attention with enable_gqa
    torch_worker.py torch_folded    decode: the query heads of a group as query rows of their KV head, so that a key is read once
    torch_worker.py torch_flex      flex_attention with a block mask, compiled
"""

import json
import math
import sys
import time

import torch
import torch.nn.functional as functional

TYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


def load(case):
    """q, k and v [1, heads, tokens, head_dim] of a file."""
    element = TYPES[case["type"]]
    raw = torch.frombuffer(bytearray(open(case["inputs"], "rb").read()), dtype=torch.uint8).view(element)
    q = (case["heads"], case["queries"], case["head_dim"])
    kv = (case["kv_heads"], case["keys"], case["head_dim"])
    sizes = [math.prod(shape) for shape in (q, kv, kv)]
    return [part.clone().view(1, *shape) for part, shape in zip(raw.split(sizes), (q, kv, kv))]


class Sdpa:
    def refusal(self, case):
        return "has no sparse form" if case["kind"] == "sparse" else ""

    def prepare(self, case):
        self.q, self.k, self.v = load(case)
        self.causal = case["kind"] == "prefill"

    def run(self):
        self.out = functional.scaled_dot_product_attention(self.q, self.k, self.v, is_causal=self.causal, enable_gqa=True)

    def row(self, head, query):
        return self.out[0, head, query]


class Folded(Sdpa):
    def refusal(self, case):
        return "" if case["kind"] == "decode" else "of use to one query alone"

    def prepare(self, case):
        super().prepare(case)
        self.heads = case["heads"]
        self.q = self.q.view(1, case["kv_heads"], self.heads // case["kv_heads"], case["head_dim"])

    def run(self):
        self.out = functional.scaled_dot_product_attention(self.q, self.k, self.v)

    def row(self, head, query):
        group = self.q.shape[2]
        return self.out[0, head // group, head % group]


class Flex(Sdpa):
    def refusal(self, case):
        return "" if case["kind"] == "sparse" else "measured where blocks are left out"

    def prepare(self, case):
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        super().prepare(case)
        block = case["block"]

        def visible(batch, head, query, key):
            back = query // block - key // block
            return (key <= query) & ((back == 0) | (back == 1) | (back == 8) | (key // block == 0))

        torch._dynamo.reset()
        self.mask = create_block_mask(visible, None, None, case["queries"], case["keys"], device="cpu", BLOCK_SIZE=block)
        self.attend = torch.compile(flex_attention, dynamic=False)
        self.run()

    def run(self):
        self.out = self.attend(self.q, self.k, self.v, block_mask=self.mask, enable_gqa=True)


PEERS = {"torch_sdpa": Sdpa, "torch_folded": Folded, "torch_flex": Flex}


def milliseconds(peer, calls):
    """Of one call, the mean of some."""
    start = time.perf_counter()
    for _ in range(calls):
        peer.run()
    return (time.perf_counter() - start) * 1e3 / calls


def answer(peer, request):
    if request["cmd"] == "prepare":
        why = peer.refusal(request) if request["type"] in TYPES else "has no packed keys and values"
        if why:
            return {"refused": why}
        torch.set_num_threads(request["threads"])
        peer.prepare(request)
        return {"types": f"q, k, v, out {request['type']}", "ms": milliseconds(peer, 1)}
    if request["cmd"] == "go":
        return {"ms": milliseconds(peer, request["calls"])}
    if request["cmd"] == "rows":
        rows = torch.stack([peer.row(head, query) for head, query in request["rows"]])
        return {"values": torch.nan_to_num(rows.float(), nan=1e30, posinf=1e30, neginf=-1e30).flatten().tolist()}
    return {"error": f"no command {request['cmd']}"}


def serve(name):
    peer = PEERS[name]()
    print(json.dumps({"peer": name, "version": torch.__version__}), flush=True)
    with torch.inference_mode():
        for line in sys.stdin:
            try:
                reply = answer(peer, json.loads(line))
            except Exception as error:  # whatever torch throws is the answer
                reply = {"error": f"{type(error).__name__}: {error}".splitlines()[0][:300]}
            print(json.dumps(reply), flush=True)


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] not in PEERS:
        sys.exit(__doc__)
    serve(sys.argv[1])
