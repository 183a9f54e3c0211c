# SPDX-License-Identifier: MIT
"""What the peers are asked to compute: shapes, inputs, what it costs, and the definition in float64."""

import dataclasses
import math

import numpy

ELEMENT_BYTES = {"f32": 4, "f16": 2, "bf16": 2}
# Types whose keys and values each peer packs into so many bits from inputs in f32, and whose q and out are f32.
PACKED_BITS = {"8bit": 8, "4bit": 4}
# Relative L2 error over the rows that are checked. The worst of a peer that is right, at 131072 keys, where outputs are
# smallest: f32 6e-6 (PyTorch); bf16 2.4e-3 (PyTorch; ours 1.7e-3: weights are rounded to bf16); f16 3e-4. A wrong mask or
# head misses by 1 and more. Of packed keys and values it is what packing loses, alike at 4096 and at 131072 keys, 8bit
# 9e-3 and 4bit 0.13, with a margin of three; a quarter of the keys left out misses by 0.5. One key is missed by
# --self-test alone, which compares with the keys and values that a peer packed.
TOLERANCE = {"f32": 1e-4, "f16": 2e-3, "bf16": 0.01, "8bit": 0.03, "4bit": 0.35}
# ggml sums values of f16 in half precision: 3.6e-2.
TOLERANCE_OF = {("ggml", "f16"): 0.05}


def tolerance(peer, element):
    return TOLERANCE_OF.get((peer, element), TOLERANCE[element])


@dataclasses.dataclass(frozen=True)
class Case:
    kind: str  # prefill, sparse or decode; worker.hpp says which keys a query sees
    type: str
    queries: int
    keys: int
    head_dim: int
    threads: int
    heads: int = 8
    kv_heads: int = 2
    block: int = 128
    default: bool = False  # part of the short run

    @property
    def name(self):
        return f"{self.kind} {self.type} n={self.keys} d={self.head_dim} {self.threads}T"

    @property
    def input_type(self):
        return "f32" if self.type in PACKED_BITS else self.type

    def blocks_of(self, b):
        """The blocks that queries of block b see, its own among them."""
        if self.kind == "sparse":
            return sorted({x for x in (0, b - 8, b - 1, b) if x >= 0})
        return list(range(b + 1))

    def edges(self):
        """Visible (query, key) pairs of one head."""
        if self.kind == "decode":
            return self.queries * self.keys
        edges = 0
        for b in range(math.ceil(self.queries / self.block)):
            rows = min(self.block, self.queries - b * self.block)
            edges += rows * (rows + 1) // 2 + rows * self.block * (len(self.blocks_of(b)) - 1)
        return edges

    def density(self):
        """Edges over those of the causal triangle."""
        return self.edges() / (self.queries * (self.queries + 1) / 2)

    def flops(self):
        return 4 * self.edges() * self.head_dim * self.heads

    def row_bytes(self):
        """Bytes of one key or value; packed: as ours are, codes after a scale of two bytes."""
        if self.type in PACKED_BITS:
            return 2 + self.head_dim * PACKED_BITS[self.type] // 8
        return self.head_dim * ELEMENT_BYTES[self.type]

    def kv_bytes(self):
        return 2 * self.kv_heads * self.keys * self.row_bytes()

    def bytes(self):
        """Every operand once, in the case's type."""
        return self.kv_bytes() + 2 * self.heads * self.queries * self.head_dim * ELEMENT_BYTES[self.input_type]

    def request(self, inputs):
        keys = ("kind", "type", "heads", "kv_heads", "queries", "keys", "head_dim", "block", "threads")
        return {"cmd": "prepare", "inputs": inputs, **{key: getattr(self, key) for key in keys}}

    def sees(self, query):
        """Which keys a query sees, as a mask over all of them."""
        keys = numpy.arange(self.keys)
        if self.kind == "decode":
            return numpy.ones(self.keys, dtype=bool)
        return (keys <= query) & numpy.isin(keys // self.block, self.blocks_of(query // self.block))


def all_cases(threads):
    """Every case; those of the short run are marked."""
    most = max(threads)
    cases = []

    def add(default=False, **fields):
        cases.append(Case(default=default, **fields))

    for t in threads:
        for element in ("f32", "f16", "bf16"):
            for n in (1024, 2048, 4096, 8192, 16384):
                for d in (64, 128, 256):
                    short = (n, d) == (4096, 128) if t == most else (n, d, element) == (4096, 128, "bf16")
                    short |= t == most and element != "f16" and (n, d) in ((1024, 128), (4096, 256))
                    add(short, kind="prefill", type=element, queries=n, keys=n, head_dim=d, threads=t)
        for element in ("f32", "bf16"):
            for n in (4096, 16384):
                add(t == most, kind="sparse", type=element, queries=n, keys=n, head_dim=128, threads=t)
        for element in ("f32", "f16", "bf16"):
            for n in (1024, 4096, 32768, 131072):
                for d in (128, 256):
                    short = d == 128 and ((t == most and n >= 4096) or (n == 131072 and element != "f32"))
                    add(short, kind="decode", type=element, queries=1, keys=n, head_dim=d, threads=t)
        for element in PACKED_BITS:
            for n in (4096, 32768, 131072):
                add(t == most or n == 131072, kind="decode", type=element, queries=1, keys=n, head_dim=128, threads=t)
    order = ("prefill", "sparse", "decode")
    return sorted(cases, key=lambda c: (order.index(c.kind), c.type, c.threads, c.keys, c.head_dim))


def round_to(x, element):
    """float32 rounded to a type, as an array of that type's bits or floats."""
    if element == "f32":
        return x
    if element == "f16":
        return x.astype(numpy.float16)
    bits = x.view(numpy.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(numpy.uint16)


def to_double(x, element):
    if element == "bf16":
        return (x.astype(numpy.uint32) << 16).view(numpy.float32).astype(numpy.float64)
    return x.astype(numpy.float64)


def make_inputs(case, seed=11):
    """q, k and v, N(0, 1) rounded to the type of the case's inputs."""
    draw = numpy.random.default_rng(seed)
    kv = (case.kv_heads, case.keys, case.head_dim)
    shapes = ((case.heads, case.queries, case.head_dim), kv, kv)
    return [round_to(draw.standard_normal(shape, dtype=numpy.float32), case.input_type) for shape in shapes]


def rows_to_check(case, count=16):
    """(head, query) pairs spread over heads and queries, the first and the last query among them."""
    if case.kind == "decode":
        return [(head, 0) for head in range(case.heads)]
    return [(i % case.heads, (case.queries - 1) * i // (count - 1)) for i in range(count)]


def reference(case, inputs, rows):
    """The definition in float64 for some rows."""
    q, k, v = inputs
    group = case.heads // case.kv_heads
    out = []
    for head, query in rows:
        seen = numpy.flatnonzero(case.sees(query))
        keys = to_double(k[head // group][seen], case.input_type)
        scores = keys @ to_double(q[head, query], case.input_type) / math.sqrt(case.head_dim)
        weights = numpy.exp(scores - scores.max())
        out.append(weights @ to_double(v[head // group][seen], case.input_type) / weights.sum())
    return numpy.array(out)


def relative_error(got, want):
    got = numpy.asarray(got, dtype=numpy.float64).reshape(want.shape)
    return float(numpy.linalg.norm(got - want) / numpy.linalg.norm(want))
