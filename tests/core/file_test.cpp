// SPDX-License-Identifier: MIT
#include <butterfly/core/file.hpp>

#include "support/catch.hpp"

#include <filesystem>
#include <fstream>
#include <iterator>

namespace file_tests { // names of its own, for builds that compile several of these files as one

namespace bf = butterfly;
namespace fs = std::filesystem;
using bf::detail::replacement_file;

/// A folder that is removed at the end, with all in it.
struct folder {
    fs::path at;

    explicit folder(std::string const& name) : at(name) {
        fs::remove_all(at);
        fs::create_directory(at);
    }
    ~folder() { fs::remove_all(at); }

    [[nodiscard]] std::string operator/(std::string const& name) const { return (at / name).string(); }
    [[nodiscard]] long files() const { return std::distance(fs::directory_iterator(at), fs::directory_iterator()); }
};

void put(std::string const& path, std::string const& text) {
    std::ofstream(path, std::ios::binary) << text;
}

std::string text_of(std::string const& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
}

void write(replacement_file& file, std::string const& text) {
    file.write(std::as_bytes(std::span(text.data(), text.size())));
}

std::string refusal(std::string const& path) {
    try {
        replacement_file const file("save", path);
    } catch (bf::format_error const& e) {
        return e.what();
    }
    return "accepted";
}

TEST_CASE("a file takes another's place when it is whole", "[core]") {
    folder const here("file_test_whole");
    put(here / "a", "old");
    {
        replacement_file file("save", here / "a");
        write(file, "new ");
        REQUIRE(text_of(here / "a") == "old");
        write(file, "bytes");
        file.commit();
    }
    REQUIRE(text_of(here / "a") == "new bytes");
    REQUIRE(here.files() == 1);
}

TEST_CASE("a file that is given up leaves what was there, and nothing else", "[core]") {
    folder const here("file_test_given_up");
    put(here / "a", "old");
    for (char const* name : {"a", "b"}) {
        replacement_file file("save", here / name);
        write(file, "new");
    }
    REQUIRE(text_of(here / "a") == "old");
    REQUIRE(here.files() == 1);
}

TEST_CASE("another writer's file is neither written nor removed", "[core]") {
    folder const here("file_test_other");
    put(here / "a.part", "another's");
    REQUIRE(refusal(here / "a") == "save: cannot write " + (here / "a.part") +
                                       ": it is there: another is writing it, or was cut off and it may be removed");
    REQUIRE(text_of(here / "a.part") == "another's");
}

#if defined(__unix__) || defined(__APPLE__)
TEST_CASE("a link stays, and what it points to is replaced", "[core]") {
    folder const here("file_test_link");
    put(here / "a", "old");
    fs::create_symlink("a", here / "link");
    replacement_file file("save", here / "link");
    write(file, "new");
    file.commit();
    REQUIRE(text_of(here / "a") == "new");
    REQUIRE(fs::is_symlink(here / "link"));
    REQUIRE(here.files() == 2);
}

TEST_CASE("what is no file is not replaced", "[core]") {
    folder const here("file_test_none");
    fs::create_symlink("nothing", here / "link");
    REQUIRE(refusal(here / "link") == "save: cannot write " + (here / "link") + ": a link to nothing");
    REQUIRE(refusal(here.at.string()) == "save: cannot write file_test_none: no regular file");
    REQUIRE(::mkfifo((here / "pipe").c_str(), 0600) == 0);
    REQUIRE(refusal(here / "pipe") == "save: cannot write " + (here / "pipe") + ": no regular file");
    REQUIRE(fs::is_fifo(here / "pipe"));
    REQUIRE(here.files() == 2);
}
#endif

} // namespace file_tests
