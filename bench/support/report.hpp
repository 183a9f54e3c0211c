// SPDX-License-Identifier: MIT
#pragma once

// What a program hands over: JSON with the machine, the command and the date in it, and aligned tables of text.

#include <nlohmann/json.hpp>

#include <cstdio>
#include <string>
#include <vector>

namespace bench {

using json = nlohmann::ordered_json;

/// Where text goes: standard output, unless the JSON takes it (`json_path` is "-").
[[nodiscard]] std::FILE* text_stream(std::string const& json_path);

/// Throws usage_error naming `option` where `path` cannot be written, before hours are spent; leaves no file that was
/// not there, but for what a link points to. Nothing for "", nor for "-" of --json.
void check_writable(std::string const& path, std::string_view option = "--json");

/// Writes to a file, or to standard output for "-". Nothing for "".
void write_json(json const& j, std::string const& path);

/// The program, its version, the command, the date in UTC, and the machine.
[[nodiscard]] json describe_run(std::string const& program, int argc, char const* const* argv);

/// CPU name, cores, memory, operating system, compiler.
[[nodiscard]] json describe_machine();

/// A table whose columns are as wide as they need to be: the first `left` columns are flushed left, the others right.
class text_table {
public:
    explicit text_table(std::vector<std::string> header, int left = 1);
    void add(std::vector<std::string> row);
    /// An empty line.
    void gap();
    void print(std::FILE* to) const;

private:
    std::vector<std::vector<std::string>> rows_;
    std::size_t left_;
};

/// Three significant digits: "0.123", "12.3", "1234".
[[nodiscard]] std::string three_digits(double x);

} // namespace bench
