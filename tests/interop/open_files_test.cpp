// SPDX-License-Identifier: MIT
#include <butterfly/graph/npz.hpp>
#include <butterfly/interop/safetensors.hpp>

#include "support/allocations.hpp"
#include "support/catch.hpp"

#include <filesystem>
#include <fstream>
#include <vector>

namespace bf = butterfly;

#if defined(__linux__)
TEST_CASE("a file is closed where memory runs out while it is read", "[interop]") {
    std::string const path = "open_files_test.bin";
    std::ofstream(path) << "a few bytes";
    auto const open_files = [] {
        int count = 0;
        for (std::filesystem::directory_iterator at("/proc/self/fd"), end; at != end; ++at) ++count;
        return count;
    };
    int const before = open_files();
    for (auto* const read : {+[](std::string const& p) { static_cast<void>(bf::safetensors::read_bytes(p)); },
                             +[](std::string const& p) { static_cast<void>(bf::npz::read(p)); }}) {
        bool thrown                   = false;
        bf::testing::allocation_limit = 30000;
        try {
            read(path);
        } catch (std::bad_alloc const&) {
            thrown = true;
        }
        bf::testing::allocation_limit = std::numeric_limits<std::size_t>::max();
        REQUIRE(thrown);
        REQUIRE(open_files() == before);
    }
    std::filesystem::remove(path);
}
#endif
