#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Times attention of this library and of its peers on the same inputs, repetitions of all peers in turns, and writes
peers.json, peers.md and, where matplotlib is there, roofline.svg and roofline.png. bench/peers/run builds what it needs.

A peer is a process (worker.hpp). Before it is timed on a case, rows of its output are held to the definition in float64;
a peer that is wrong is not timed. A peer that takes long is timed in fewer rounds (--budget), three at least, spread over
those of the others; one whose first call takes more than 20 s is not called again, and has no spread.

Beside busy neighbours some cases come out unsteady. --keep takes these again, whoever was faster in them, in place of what
was measured before, and leaves the others of an earlier run, perhaps one that was interrupted, as they are.
"""

import argparse
import json
import math
import os
import pathlib
import re
import select
import signal
import subprocess
import sys
import tempfile
import time

import cases as shapes
import report

# An OpenMP team that has nothing to do spins for some tens of microseconds, which a call of the next moment finds awake,
# and then sleeps, so that idle peers take nothing from the one that is timed. Each thread stays on a core of its own.
QUIET = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "10000", "OMP_PROC_BIND": "true"}
PAUSE = 0.003  # seconds between two peers, for the first to fall asleep
FEWEST = 3  # rounds
PATIENCE = 20  # seconds of a first call


class PeerError(Exception):
    pass


class Worker:
    """One peer's process. Starts it again where a case killed it."""

    def __init__(self, name, command, environment, log):
        self.name, self.command, self.log, self.process = name, command, log, None
        self.environment = {**os.environ, **QUIET, **environment}
        self.version = self.start()["version"]

    def start(self):
        self.process = subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log,
                                        env=self.environment)
        self.pending = b""
        return self.read(120)

    def read(self, seconds):
        """The next line of JSON; other lines a library prints are skipped."""
        end, out = time.monotonic() + seconds, self.process.stdout
        while True:
            while b"\n" in self.pending:
                line, self.pending = self.pending.split(b"\n", 1)
                if line.startswith(b"{"):
                    return json.loads(line)
            if not select.select([out], [], [], max(0.0, end - time.monotonic()))[0]:
                self.stop()
                raise PeerError(f"no answer in {seconds} s")
            more = os.read(out.fileno(), 1 << 16)
            if not more:
                self.stop()
                raise PeerError("its process ended")
            self.pending += more

    def ask(self, request, seconds=600):
        if self.process is None:
            self.start()
        try:
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
            self.process.stdin.flush()
        except OSError as error:
            self.stop()
            raise PeerError("its process ended") from error
        reply = self.read(seconds)
        if "error" in reply:
            raise PeerError(reply["error"])
        return reply

    def stop(self):
        if self.process:
            self.process.kill()
            self.process.communicate()  # closes its pipes
            self.process = None


def environment_of(name, arguments):
    """What a peer's process finds set beside QUIET."""
    if name.startswith("torch") and arguments.torch_libraries:
        return {"LD_LIBRARY_PATH": arguments.torch_libraries}
    return {}


# The kernels of OpenBLAS that use AVX-512, by the names it prints.
WIDE_KERNELS = ("SkylakeX", "Cooperlake", "SapphireRapids")


def widest_kernels(version, features):
    """What to set for an OpenBLAS older than the CPU, which takes its AVX2 kernels where its AVX-512 ones would run at
    twice the speed; nothing where it chose some of these, or where the user chose."""
    if "avx512" in features.split() and "OPENBLAS_CORETYPE" not in os.environ and not version.endswith(WIDE_KERNELS):
        return {"OPENBLAS_CORETYPE": "SkylakeX"}
    return {}


def start_worker(name, command, arguments, features, log):
    worker = Worker(name, command, environment_of(name, arguments), log)
    if name == "openblas" and (wider := widest_kernels(worker.version, features)):
        worker.stop()
        return Worker(name, command, wider, log)
    return worker


def start_workers(arguments, features, log):
    """The peers that are here, and for each of the others why not."""
    commands, python = {}, arguments.python
    programs = pathlib.Path(arguments.programs)
    for name in ("butterfly", "eigen", "openblas", "onednn", "ggml"):
        program = programs / f"peer_{name}"
        commands[name] = [str(program)] if program.exists() else None
    for name in ("torch_sdpa", "torch_folded", "torch_flex"):
        commands[name] = [python, str(pathlib.Path(__file__).with_name("torch_worker.py")), name] if python else None
    workers, peers = {}, {}
    for name, command in commands.items():
        if name not in arguments.peers:
            continue
        try:
            if command is None:
                raise PeerError("not built here" if "torch" not in name else "no Python with PyTorch")
            workers[name] = start_worker(name, command, arguments, features, log)
            peers[name] = {"version": workers[name].version}
        except (OSError, PeerError) as error:
            peers[name] = {"skipped": str(error)}
            print(f"{report.NAMES[name]}: left out, {error}", file=sys.stderr)
    return workers, peers


def prepare(worker, case, path, rows, want):
    """The entry of a peer in a case: its types and error, or why it is not timed."""
    entry = {"name": worker.name}
    try:
        reply = worker.ask(case.request(path))
        if "refused" in reply:
            return {**entry, "refused": reply["refused"]}
        error = shapes.relative_error(worker.ask({"cmd": "rows", "rows": rows})["values"], want)
        if not error <= shapes.tolerance(worker.name, case.type):
            return {**entry, "failed": f"relative error {error:.1e} against the definition", "error": error}
        return {**entry, "types": reply["types"], "error": error, "first_ms": reply["ms"]}
    except PeerError as error:
        return {**entry, "failed": str(error)}


def plan(entry, worker, rounds, budget):
    """How many calls a round has, 20 ms of them or one, and how many rounds the budget allows. The first call found
    nothing warm and does not count, but of a peer that made us wait too long, of which it is all there is; where it took
    the budget, the next would tell nothing new."""
    first = entry["first_ms"]
    if first > PATIENCE * 1e3:
        return {"calls": 1, "rounds": 0, "ms": [first]}
    ms = first if first > budget * 1e3 else max(worker.ask({"cmd": "go", "calls": 1})["ms"], 1e-3)
    fewest = min(FEWEST, rounds)
    return {"calls": max(1, min(1000, round(20 / ms))), "rounds": max(fewest, min(rounds, int(budget * 1e3 / ms))), "ms": []}


def takes_turn(turn, of, rounds):
    """Whether a peer with `of` rounds is timed in this one: they are spread evenly."""
    return turn * of // rounds != (turn + 1) * of // rounds


def time_in_turns(workers, entries, rounds, budget):
    """Fills in `ms` of each round and `calls` of a round; a peer that fails has `failed` instead."""
    running = [e for e in entries if "types" in e]

    def attempt(entry, step):
        try:
            step(entry)
        except PeerError as error:
            entry["failed"] = str(error)

    def one_round(entry):
        time.sleep(PAUSE)
        entry["ms"].append(workers[entry["name"]].ask({"cmd": "go", "calls": entry["calls"]})["ms"])

    for entry in running:
        attempt(entry, lambda e: e.update(plan(e, workers[e["name"]], rounds, budget)))
    for turn in range(rounds):
        for i in range(len(running)):  # each round begins with another peer
            entry = running[(turn + i) % len(running)]
            if "failed" not in entry and takes_turn(turn, entry["rounds"], rounds):
                attempt(entry, one_round)
    for entry in running:
        for key in ("rounds", "first_ms") + (("ms", "calls") if "failed" in entry else ()):
            entry.pop(key, None)


def run_case(case, workers, arguments):
    inputs = shapes.make_inputs(case)
    rows = shapes.rows_to_check(case)
    want = shapes.reference(case, inputs, rows)
    folder = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.NamedTemporaryFile(prefix="butterfly_peers_", dir=folder) as file:
        for x in inputs:
            file.write(x.tobytes())
        file.flush()
        del inputs
        entries = [prepare(w, case, file.name, rows, want) for w in workers.values()]
    time_in_turns(workers, entries, arguments.rounds, arguments.budget)
    result = {"name": case.name, **case.request(""), "flops": case.flops(), "bytes": case.bytes(),
              "kv_bytes": case.kv_bytes(), "peers": entries}
    del result["cmd"], result["inputs"]
    if case.kind == "sparse":
        result["density"] = case.density()
    return result


def line_of(case):
    parts = [f"{report.NAMES[n]} {report.digits(report.median(p['ms']))} ms" for n, p in report.timed(case).items()]
    return f"{case['name']}: " + ", ".join(parts)


def machine_limits(arguments, folder):
    """Limits of this run: for one thread and for each count of threads of the cases."""
    merged = None
    for threads in sorted(set(arguments.threads) - {1}) or [1]:  # each run measures one thread too
        path = folder / "limits.json"
        subprocess.run([arguments.limits, "--threads", str(threads), "--json", str(path)], check=True,
                       stdout=subprocess.DEVNULL)
        one = json.loads(path.read_text())
        if merged is None:
            merged = one
        else:
            known = {x["threads"] for x in merged["limits"]}
            merged["limits"] += [x for x in one["limits"] if x["threads"] not in known]
    return merged


def join_limits(before, after):
    """The better of two measurements of each limit: a neighbour who was busy during one must not lower it."""
    again = {(x["kind"], x["name"], x["pattern"], x["threads"]): x for x in after["limits"]}
    better = [max(x, again[x["kind"], x["name"], x["pattern"], x["threads"]], key=lambda y: y.get("best", 0))
              for x in before["limits"]]
    return {**before, "limits": better}


def read_run(path):
    """What an earlier run saved. PeerError where that cannot be read."""
    try:
        run = json.loads(path.read_text())
        circumstances(run)
        return {key: run[key] for key in ("command", "machine", "settings", "peers", "limits", "cases")}
    except OSError as error:
        raise PeerError(f"--keep: no earlier run: {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise PeerError(f"--keep: no earlier run: {path} holds something else ({error})") from error


def circumstances(run):
    """What must be the same for cases of two runs to stand in one table."""
    machine = run["machine"]
    return {"cpu": machine["cpu"], "cores": machine["cores"], "threads": run["settings"]["threads"],
            **{name: peer.get("version", "absent") for name, peer in run["peers"].items()}}


def go_on(data, earlier):
    """Takes over the cases and limits of an earlier run. PeerError where that was of another machine or other peers."""
    was, now = circumstances(earlier), circumstances(data)
    differing = [f"{key}: {was.get(key)}, now {now.get(key)}" for key in {**was, **now} if was.get(key) != now.get(key)]
    if differing:
        raise PeerError(f"--keep: the earlier run is of something else ({'; '.join(differing)}); give another --out")
    return {**data, "command": earlier["command"] + ["&&"] + data["command"], "cases": earlier["cases"],
            "limits": join_limits(earlier["limits"], data["limits"])}


def unsteadiness(case):
    """The largest spread, slowest less fastest over the median and halved, of ours and of every peer that may be the
    fastest: whose fastest round is below the median of the one that is. One call has none that is known, and a case in
    which something failed is not steady."""
    peers, best = report.timed(case), report.best_peer(case)
    if report.OURS not in peers or any("failed" in p for p in case["peers"]):
        return math.inf
    compared = [p["ms"] for n, p in peers.items() if n == report.OURS or min(p["ms"]) <= best[1]]
    return max(report.spread(ms) / 2 if len(ms) > 1 else math.inf for ms in compared)


def has_lost_a_peer(case):
    return any("failed" in p and p["name"] != report.OURS for p in case["peers"])


def enter(cases, case, order):
    """A case in its place among others, instead of an earlier measurement of it; not where only now a peer failed."""
    place = {name: i for i, name in enumerate(order)}
    same = [c for c in cases if c["name"] == case["name"]]
    if same and has_lost_a_peer(case) and not has_lost_a_peer(same[0]):
        return cases
    others = [c for c in cases if c["name"] != case["name"]]
    return sorted(others + [case], key=lambda c: place.get(c["name"], len(order)))


def set_floors(data):
    for case in data["cases"]:
        case["floor"] = report.floor_of(data["limits"], case["type"], case["flops"], case["bytes"], case["threads"])


def pattern(text):
    try:
        return re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"'{text}' is no regular expression: {error}") from error


def counts(text):
    if not re.fullmatch(r"[1-9]\d{0,3}(,[1-9]\d{0,3})*", text):
        raise argparse.ArgumentTypeError(f"'{text}' is no list of counts of threads")
    return sorted({int(part) for part in text.split(",")})


def peer_names(text):
    unknown = set(text.split(",")) - set(report.NAMES)
    if unknown:
        raise argparse.ArgumentTypeError(f"no peer {', '.join(sorted(unknown))}; there is {', '.join(report.NAMES)}")
    return text.split(",")


def positive(kind):
    def parse(text):
        try:
            value = kind(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"'{text}' is no number") from error
        if not 0 < value < 1e6:
            raise argparse.ArgumentTypeError(f"{text} is not above 0")
        return value

    return parse


def parse_arguments(arguments):
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="every case, not the short list")
    parser.add_argument("--only", metavar="REGEX", type=pattern, help="cases whose name matches, of all")
    parser.add_argument("--list", action="store_true", help="name the cases and end")
    parser.add_argument("--peers", metavar="LIST", type=peer_names, default=list(report.NAMES),
                        help=f"of {', '.join(report.NAMES)} (default: all)")
    parser.add_argument("--rounds", type=positive(int), default=7, help="timed rounds (default: %(default)s)")
    parser.add_argument("--budget", metavar="SECONDS", type=positive(float), default=6,
                        help="for the rounds of a peer in a case (default: %(default)s)")
    parser.add_argument("--keep", metavar="PERCENT", type=positive(float),
                        help="go on from --out's peers.json: a case in which ours and the fastest peers spread by no more is "
                             "not taken again")
    parser.add_argument("--threads", metavar="LIST", type=counts, default=sorted({1, cores}),
                        help="counts of threads (default: 1 and the cores)")
    parser.add_argument("--out", metavar="DIR", default="build/peers", help="where results go (default: %(default)s)")
    parser.add_argument("--programs", metavar="DIR", default="build/native/bench/peers", help="where the peers' programs are")
    parser.add_argument("--limits", metavar="PROGRAM", default="build/native/bench/machine_limits", help="machine_limits")
    parser.add_argument("--python", metavar="PROGRAM", help="a Python that has PyTorch; none: it is left out")
    parser.add_argument("--torch-libraries", metavar="DIR", help="where that Python's PyTorch finds libraries")
    return parser.parse_args(arguments)


def command_of(arguments):
    """What a reader types for the same cases."""
    said = ["--full"] if arguments.full else []
    said += ["--only", f"'{arguments.only.pattern}'"] if arguments.only else []
    said += ["--keep", f"{arguments.keep:g}"] if arguments.keep else []
    said += ["--peers", ",".join(arguments.peers)] if len(arguments.peers) < len(report.NAMES) else []
    return ["bench/peers/run"] + said + ["--rounds", str(arguments.rounds), "--budget", f"{arguments.budget:g}",
                                         "--threads", ",".join(map(str, arguments.threads))]


def save(data, folder):
    set_floors(data)
    (folder / "peers.json").write_text(json.dumps(data, indent=1) + "\n")
    (folder / "peers.md").write_text(report.document(data))


def measure(arguments, known, selected, folder, earlier):
    """Saves what there is after each case."""
    limits = machine_limits(arguments, folder)
    data = {"program": "compare", "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "command": command_of(arguments), "machine": limits["machine"],
            "settings": {"rounds": arguments.rounds, "threads": arguments.threads}, "peers": {}, "limits": limits,
            "cases": []}
    order = [c.name for c in known]
    with open(folder / "peers.log", "w", encoding="utf-8") as log:
        workers, data["peers"] = start_workers(arguments, limits["features"], log)
        try:
            kept = ""
            if earlier:
                data = go_on(data, earlier)
                steady = {c["name"] for c in data["cases"] if unsteadiness(c) <= arguments.keep / 100}
                selected = [c for c in selected if c.name not in steady]
                kept = f", {len(steady)} kept"
            print(f"{len(selected)} cases, {arguments.rounds} rounds{kept}; limits of the machine first and last", file=sys.stderr)
            for number, case in enumerate(selected, 1):
                taken = run_case(case, workers, arguments)
                data["cases"] = enter(data["cases"], taken, order)
                save(data, folder)
                print(f"[{number}/{len(selected)}] {line_of(taken)}", file=sys.stderr)
        finally:
            for worker in workers.values():
                worker.stop()
    try:
        data["limits"] = join_limits(data["limits"], machine_limits(arguments, folder))
        save(data, folder)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"limits: those before the cases alone, {error}", file=sys.stderr)
    return data


def main():
    arguments = parse_arguments(sys.argv[1:])
    known = shapes.all_cases(arguments.threads)
    selected = [c for c in known if (arguments.only.search(c.name) if arguments.only else c.default or arguments.full)]
    if not selected:
        print(f"compare: --only {arguments.only.pattern}: no case has such a name; --list --full names them", file=sys.stderr)
        return 2
    folder = pathlib.Path(arguments.out)
    try:
        earlier = read_run(folder / "peers.json") if arguments.keep else None
    except PeerError as error:
        print(f"compare: {error}", file=sys.stderr)
        return 2
    if arguments.list:
        print("\n".join(c.name for c in selected))
        return 0
    folder.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # files of inputs are taken away, peers stopped
    try:
        data = measure(arguments, known, selected, folder, earlier)
    except PeerError as error:
        print(f"compare: {error}", file=sys.stderr)
        return 2
    print(folder / "peers.json", folder / "peers.md", sep="\n")
    try:
        import roofline
    except ImportError:
        print("roofline: left out, no matplotlib", file=sys.stderr)
        return 0
    for path in roofline.draw(data, folder / "roofline"):
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
