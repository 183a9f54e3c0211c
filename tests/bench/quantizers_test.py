# SPDX-License-Identifier: MIT
"""Tests of bench/quantizers: what its figures must be, and how they hang together."""

import json
import math
import subprocess
import sys
import unittest

PROGRAM = sys.argv.pop(1)


def run(*arguments):
    done = subprocess.run([PROGRAM, *arguments, "--json", "-"], check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    return json.loads(done.stdout)


class Figures(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.report = run("--vectors", "2000", "--no-timing")
        cls.codecs = {c["name"]: c for c in cls.report["codecs"]}

    def figure(self, name, rows="gaussian", of="nmse"):
        return self.codecs[name]["rows"][rows][of]

    def test_rows_are_whole_tiles(self):
        self.assertEqual(self.report["vectors"], 2048)
        for codec in self.codecs.values():
            self.assertEqual({kind["rows"] for kind in codec["rows"].values()}, {2048}, codec["name"])

    def test_lines_stand_by_bytes_and_names_are_different(self):
        sizes = [c["bytes_per_128"] for c in self.report["codecs"]]
        self.assertEqual(sizes, sorted(sizes))
        self.assertEqual(len(self.codecs), len(self.report["codecs"]))
        for name, size in {"lloyd_max4": 34, "lloyd_max6": 45, "uniform_2b": 48, "lloyd_max16": 66, "turbo_kv_4b": 72,
                           "ggml_q4_0": 72, "affine4_64": 72, "affine4_64_outliers4": 88, "int8": 130, "bf16": 256}.items():
            self.assertEqual(self.codecs[name]["row_bytes"], size, name)
            self.assertEqual(self.codecs[name]["bits"], size / 16, name)

    def test_published_formats_err_as_the_published_program_does(self):
        # On N(0, 1), head_dim 128, by the published program.
        for name, nmse in {"uniform_2b": 0.10294, "uniform_3b": 0.02589, "uniform_4b": 0.00916, "mixed_4b8": 0.00541,
                           "turbo_kv_1b": 0.3604, "turbo_kv_2b": 0.3604, "turbo_kv_3b": 0.04333, "turbo_kv_4b": 0.00881,
                           "turbo_kv_5b": 0.00218, "turbo_kv_3bo": 0.02014, "turbo_kv_4bo": 0.00479}.items():
            self.assertAlmostEqual(self.figure(name) / nmse, 1, delta=0.03, msg=name)
        # Rows of nearly one direction, which its rotation does not spread: worse than nothing at three bits.
        self.assertGreater(self.figure("turbo_kv_3b", "around_one"), 1)
        self.assertLess(self.figure("lloyd_max8", "around_one"), 0.04)

    def test_a_rotation_spreads_heavy_tails(self):
        for levels in (4, 8, 16):
            ratio = self.figure(f"lloyd_max{levels}", "heavy_tails") / self.figure(f"lloyd_max{levels}")
            self.assertAlmostEqual(ratio, 1, delta=0.1, msg=levels)
        self.assertGreater(self.figure("affine4_128", "heavy_tails"), 1.5 * self.figure("affine4_128"))

    def test_nothing_beats_the_bound_and_decibels_say_by_how_much(self):
        for name, codec in self.codecs.items():
            loss = codec["rows"]["gaussian"]
            self.assertGreater(loss["nmse"], 4 ** -codec["bits"], name)
            self.assertAlmostEqual(loss["db_above_rate_distortion"], 10 * math.log10(loss["nmse"] * 4 ** codec["bits"]), places=6)
        self.assertEqual(self.codecs["lloyd_max16"]["lloyd_max"], {"bits": 4, "nmse": 0.00950101})
        self.assertEqual(self.codecs["affine2_64"]["lloyd_max"]["bits"], 2)  # 2.5: the fewer
        self.assertNotIn("lloyd_max", self.codecs["bf16"])

    def test_scores_shrink_by_the_error_of_rows_unless_unbiased(self):
        for levels in (4, 6, 8, 16, 32):
            name = f"lloyd_max{levels}"
            nmse = self.figure(name)
            noise = 5 * math.sqrt(nmse / 2048)
            self.assertAlmostEqual(self.figure(name, of="score_slope"), 1 - nmse, delta=noise, msg=name)
            self.assertAlmostEqual(self.figure(name + "_unbiased", of="score_slope"), 1, delta=noise, msg=name)
            self.assertAlmostEqual(self.figure(name, of="score_rms") / math.sqrt(nmse), 1, delta=0.08, msg=name)
            self.assertGreater(self.figure(name + "_unbiased"), nmse)


class Speeds(unittest.TestCase):
    def test_rows_that_are_decoded_first_have_no_score(self):
        report = run("--vectors", "128", "--seconds", "1e-6", "--codec", "int8", "--codec", "bf16", "--codec", "trellis4")
        for codec in report["codecs"]:
            score = codec["speed"]["score_bytes_per_second"]
            if codec["unit"] == "decoded":
                self.assertIsNone(score, codec["name"])
            else:
                self.assertGreater(score, 0, codec["name"])


class Files(unittest.TestCase):
    def test_the_same_seed_gives_the_same_figures(self):
        chosen = ("--codec", "lloyd_max8", "--codec", "affine3_64", "--vectors", "256", "--no-timing")
        once, again, other = run(*chosen), run(*chosen), run(*chosen, "--seed", "2")
        self.assertEqual(once["codecs"], again["codecs"])
        self.assertNotEqual(once["codecs"], other["codecs"])
        self.assertEqual([c["name"] for c in once["codecs"]], ["lloyd_max8", "affine3_64"])


if __name__ == "__main__":
    unittest.main()
