# SPDX-License-Identifier: MIT
# shellcheck shell=bash
# For `source`: what tests/run, bench/run, bench/peers/run and .ci/run need from the system.

# Packages of the builds every reader makes.
build_packages=(cmake ninja-build g++ libxsimd-dev libeigen3-dev nlohmann-json3-dev libcli11-dev libfmt-dev
                libbenchmark-dev)
test_packages=("${build_packages[@]}" catch2 python3 python3-numpy)
bench_packages=("${build_packages[@]}" libopenblas-dev python3 python3-numpy python3-matplotlib)
peers_packages=("${build_packages[@]}" python3 python3-numpy)
# bench/peers/run does without those that cannot be had.
peers_optional_packages=(libopenblas-dev libdnnl-dev python3-venv python3-dev python3-matplotlib)
ci_packages=("${bench_packages[@]}" libdnnl-dev catch2 clang-14 clang-format-14 libclang-rt-14-dev qemu-user
             g++-aarch64-linux-gnu git)

# True if what the package brings is here, for systems without Debian's package manager.
present() {
  case $1 in
    cmake | python3 | git) command -v "$1" ;;
    ninja-build) command -v ninja || command -v ninja-build ;;
    g++) command -v "${CXX:-c++}" || command -v g++ || command -v clang++ ;;
    libxsimd-dev) header xsimd/xsimd.hpp ;;
    libeigen3-dev) header Eigen/Core -I/usr/include/eigen3 -I/usr/local/include/eigen3 -I/opt/homebrew/include/eigen3 ;;
    nlohmann-json3-dev) header nlohmann/json.hpp ;;
    libcli11-dev) header CLI/CLI.hpp ;;
    libfmt-dev) header fmt/core.h ;;
    libbenchmark-dev) header benchmark/benchmark.h ;;
    libopenblas-dev | libdnnl-dev) true ;; # peers to measure against; the bench programs do without them
    python3-venv) python3 -c 'import ensurepip, venv' ;;
    python3-dev) true ;; # for one peer, which is left out without it
    catch2) header catch2/catch_all.hpp || header catch2/catch.hpp ;;
    python3-numpy) python3 -c 'import numpy' ;;
    python3-matplotlib) python3 -c 'import matplotlib' ;;
    clang-14 | clang-format-14) command -v "$1" || command -v "${1%-14}" ;;
    libclang-rt-14-dev) command -v clang++-14 || command -v clang++ ;;
    qemu-user) command -v qemu-aarch64 ;;
    g++-aarch64-linux-gnu) command -v aarch64-linux-gnu-g++ ;;
    *) false ;;
  esac > /dev/null 2>&1
}

header() { echo "#include <$1>" | "${CXX:-c++}" -std=c++20 -E -x c++ -I/usr/local/include -I/opt/homebrew/include "${@:2}" -; }

# need <package>...: installs those that are missing. Nothing is asked; where it cannot install, it names them and exits.
need() {
  local package missing=()
  if command -v dpkg-query > /dev/null && command -v apt-get > /dev/null; then
    for package in "$@"; do
      [[ $(dpkg-query -W -f='${db:Status-Status}' "$package" 2> /dev/null) == installed ]] || missing+=("$package")
    done
    ((${#missing[@]})) || return 0
    local as_root=()
    if ((EUID != 0)); then
      if ! sudo -n true 2> /dev/null; then
        echo "Missing packages, and no right to install them. As root:" >&2
        echo "  apt-get update && apt-get install -y --no-install-recommends ${missing[*]}" >&2
        exit 1
      fi
      as_root=(sudo -n)
    fi
    echo "Installing: ${missing[*]}"
    local apt=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=300)
    "${apt[@]}" update || true # one broken source must not stop what the others can give
    if ! "${apt[@]}" install -y --no-install-recommends "${missing[@]}"; then
      echo "Installing failed; wanted: ${missing[*]}" >&2
      exit 1
    fi
  else
    for package in "$@"; do present "$package" || missing+=("$package"); done
    ((${#missing[@]})) || return 0
    echo "Missing, by their Debian names: ${missing[*]}" >&2
    echo "Please install them with this system's package manager." >&2
    exit 1
  fi
}

# configure <preset> [cmake arguments]: quiet when all is well, the whole text when not.
configure() {
  local log
  log=$(mktemp)
  if ! cmake --preset "$@" > "$log" 2>&1; then
    cat "$log" >&2
    rm -f "$log"
    exit 1
  fi
  rm -f "$log"
}
