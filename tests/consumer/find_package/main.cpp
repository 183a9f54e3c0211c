// SPDX-License-Identifier: MIT
#include <butterfly/core/half.hpp>
#include <butterfly/version.hpp>

#include <cstdio>

int main() {
    float const third = butterfly::bfloat16(1.0F / 3.0F);
    std::printf("butterfly %d.%d.%d: a third is %.9g in bfloat16\n", BUTTERFLY_VERSION_MAJOR, BUTTERFLY_VERSION_MINOR,
                BUTTERFLY_VERSION_PATCH, static_cast<double>(third));
    return third == 0.333984375F ? 0 : 1;
}
