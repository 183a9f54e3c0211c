// SPDX-License-Identifier: MIT
#include <butterfly/core/mapped_file.hpp>

#include "support/catch.hpp"

#include <filesystem>
#include <fstream>

namespace mapped_file_tests { // names of its own, for builds that compile several of these files as one

namespace bf = butterfly;
using Catch::Matchers::Contains;

/// A file that is removed at the end.
struct temporary {
    std::string path;

    temporary(std::string const& name, std::string const& content) : path(name) {
        std::ofstream(path, std::ios::binary) << content;
    }
    ~temporary() { std::filesystem::remove(path); }
};

std::string text_of(std::span<std::byte const> bytes) {
    return {reinterpret_cast<char const*>(bytes.data()), bytes.size()};
}

TEST_CASE("a mapped file and a file that was read have the bytes of the file", "[core]") {
    for (std::size_t const size : {1U, 4095U, 4096U, 4097U, 3000000U}) {
        std::string content(size, 'x');
        for (std::size_t i = 0; i < size; ++i) content[i] = static_cast<char>(i * 7 + i / 251);
        temporary const file("mapped_file_test.bin", content);
        bf::detail::mapped_file const mapped("load", file.path);
        REQUIRE(text_of(mapped.bytes()) == content);
        REQUIRE(text_of(bf::detail::read_file("load", file.path)) == content);
    }
}

TEST_CASE("a file that was replaced while it was mapped keeps its bytes", "[core]") {
    temporary const file("mapped_file_replaced.bin", "the old bytes");
    bf::detail::mapped_file const mapped("load", file.path);
    bf::detail::replacement_file other("save", file.path);
    other.write(std::as_bytes(std::span("the new bytes", 13)));
    other.commit();
    REQUIRE(text_of(mapped.bytes()) == "the old bytes");
    REQUIRE(text_of(bf::detail::mapped_file("load", file.path).bytes()) == "the new bytes");
}

TEST_CASE("what is no file with bytes is refused with the reason", "[core]") {
    temporary const empty("mapped_file_empty.bin", "");
    auto const refusal = [](auto const& read, std::string const& path) -> std::string {
        try {
            read(path);
        } catch (bf::format_error const& e) {
            return e.what();
        }
        return "accepted";
    };
    auto const map  = [](std::string const& path) { bf::detail::mapped_file const mapped("load", path); };
    auto const copy = [](std::string const& path) { static_cast<void>(bf::detail::read_file("load", path)); };
    REQUIRE(refusal(map, "no/such/file") == "load: cannot read no/such/file: No such file or directory");
    REQUIRE(refusal(copy, "no/such/file") == "load: cannot read no/such/file: No such file or directory");
    REQUIRE(refusal(map, empty.path) == "load: cannot read mapped_file_empty.bin: the file is empty");
    REQUIRE(refusal(copy, empty.path) == "load: cannot read mapped_file_empty.bin: the file is empty");
#if defined(__linux__)
    REQUIRE(refusal(map, ".") == "load: cannot read .: a folder");
    REQUIRE_THAT(refusal(copy, "."), Contains("load: cannot read .: "));
    REQUIRE(refusal(map, "/dev/null") == "load: cannot read /dev/null: no regular file");

    std::string const pipe = "mapped_file_pipe";
    REQUIRE(::mkfifo(pipe.c_str(), 0600) == 0);
    REQUIRE(refusal(map, pipe) == "load: cannot read mapped_file_pipe: no regular file"); // and nobody waits
    std::filesystem::remove(pipe);
#endif
}

#if defined(__linux__)
TEST_CASE("a mapped file leaves no file open", "[core]") {
    auto const open_files = [] {
        int count = 0;
        for (std::filesystem::directory_iterator at("/proc/self/fd"), end; at != end; ++at) ++count;
        return count;
    };
    temporary const file("mapped_file_open.bin", "a few bytes");
    int const before = open_files();
    {
        bf::detail::mapped_file const mapped("load", file.path);
        REQUIRE(open_files() == before);
    }
    REQUIRE_THROWS_AS(bf::detail::mapped_file("load", "."), bf::format_error);
    REQUIRE_THROWS_AS(bf::detail::mapped_file("load", "/dev/null"), bf::format_error);
    REQUIRE(open_files() == before);
}
#endif

} // namespace mapped_file_tests
