// SPDX-License-Identifier: MIT
#include <butterfly/core/half.hpp>

#include <cstdint>

/// Rounds to bfloat16 and back: a function of the library as it stands, on the device.
__global__ void round_trip(float* values, std::uint32_t count) {
    std::uint32_t const i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count) values[i] = butterfly::bfloat16(values[i]);
}
