# SPDX-License-Identifier: MIT
# Toolchain: AArch64 programs built and run on another Linux machine. Debian and Ubuntu: g++-aarch64-linux-gnu, qemu-user.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
set(CMAKE_CROSSCOMPILING_EMULATOR "qemu-aarch64;-L;/usr/aarch64-linux-gnu")

set(CMAKE_FIND_ROOT_PATH /usr/aarch64-linux-gnu)
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE BOTH)
set(CMAKE_FIND_ROOT_PATH_MODE_PACKAGE BOTH)

# Every dependency of the tests is headers alone, so the packages of the build machine serve; Debian puts some of them
# under the build machine's own triplet, where a cross build does not look.
file(GLOB host_packages /usr/lib/*-linux-gnu/cmake)
list(APPEND CMAKE_PREFIX_PATH ${host_packages})
