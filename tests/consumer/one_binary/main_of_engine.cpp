// SPDX-License-Identifier: MIT
// Knows nothing of butterfly, and links what does.
#include <cstdio>

float engine_step(char* name, int room);

int main() {
    char name[64];
    float const found = engine_step(name, sizeof name);
    std::printf("%s: %g\n", name, static_cast<double>(found));
    return found == 2.0F ? 0 : 1;
}
