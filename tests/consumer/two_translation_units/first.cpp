// SPDX-License-Identifier: MIT
#include "all_headers.hpp"

int second();

int main() {
    return second();
}
