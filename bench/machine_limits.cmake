# SPDX-License-Identifier: MIT
# Absent units are reported, and are no failure.
add_bench_status_test(machine_limits .short 0 "\"name\": \"dram\",[ \n]*\"pattern\": \"eight_streams\"" --rounds 1 --seconds
                      1e-6 --json -)
add_bench_status_test(machine_limits .no_threads 2 "^machine_limits: --threads: " --threads 0)
