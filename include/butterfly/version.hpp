// SPDX-License-Identifier: MIT
#pragma once

// The one place the version is written; CMake reads it from here.
#define BUTTERFLY_VERSION_MAJOR 0
#define BUTTERFLY_VERSION_MINOR 1
#define BUTTERFLY_VERSION_PATCH 0
