// SPDX-License-Identifier: MIT
#include "report.hpp"

#include <butterfly/version.hpp>

#include "memory.hpp"
#include "usage.hpp"

#include <fmt/chrono.h>
#include <sys/utsname.h>

#include <ctime>
#include <filesystem>
#include <fstream>
#include <thread>

namespace bench {
namespace {

/// The rest of the first line of a file that begins with `key`, after the colon.
std::string line_of(char const* path, std::string_view key) {
    std::ifstream in(path);
    for (std::string line; std::getline(in, line);) {
        if (!line.starts_with(key)) continue;
        std::size_t const colon = line.find(':');
        if (colon == std::string::npos) continue;
        std::size_t const first = line.find_first_not_of(" \t", colon + 1);
        return first == std::string::npos ? std::string() : line.substr(first);
    }
    return {};
}

std::string compiler() {
#if defined(__clang__)
    return fmt::format("clang {}", __clang_version__);
#else
    return fmt::format("gcc {}", __VERSION__);
#endif
}

/// Columns that a terminal shows for UTF-8 text: bytes that start a character.
std::size_t columns(std::string const& text) {
    return static_cast<std::size_t>(std::count_if(
        text.begin(), text.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xC0U) != 0x80U; }));
}

} // namespace

std::FILE* text_stream(std::string const& json_path) {
    return json_path == "-" ? stderr : stdout;
}

void check_writable(std::string const& path, std::string_view option) {
    if (path.empty() || (path == "-" && option == "--json")) return;
    if (path == "-") throw usage_error("{} -: a file is needed", option);
    std::error_code ignored; // a link is there though what it points to is not
    bool const there = std::filesystem::exists(std::filesystem::symlink_status(path, ignored));
    if (std::ofstream const out(path, std::ios::app); !out)
        throw usage_error("{} {}: the file cannot be written", option, path);
    if (!there) std::filesystem::remove(path, ignored);
}

void write_json(json const& j, std::string const& path) {
    if (path.empty()) return;
    if (path == "-") {
        fmt::print("{}\n", j.dump(2));
        return;
    }
    std::ofstream out(path, std::ios::trunc);
    out << j.dump(2) << '\n';
    if (!out.flush()) throw std::runtime_error(fmt::format("--json {}: writing failed", path));
}

json describe_run(std::string const& program, int argc, char const* const* argv) {
    json command = json::array();
    for (int i = 0; i < argc; ++i) command.push_back(argv[i]);
    return {
        {"program", program},
        {"version", fmt::format("{}.{}.{}", BUTTERFLY_VERSION_MAJOR, BUTTERFLY_VERSION_MINOR, BUTTERFLY_VERSION_PATCH)},
        {"command", command},
        {"date", fmt::format("{:%Y-%m-%dT%H:%M:%SZ}", fmt::gmtime(std::time(nullptr)))},
        {"machine", describe_machine()}};
}

json describe_machine() {
    utsname system{};
    ::uname(&system);
    std::string cpu = line_of("/proc/cpuinfo", "model name");
    if (cpu.empty()) cpu = system.machine;
    // A virtual machine's name says little: family and model tell one microarchitecture from another.
    if (std::string const family = line_of("/proc/cpuinfo", "cpu family"); !family.empty())
        cpu += fmt::format(", family {}, model {}", family, line_of("/proc/cpuinfo", "model\t"));
    return {{"cpu", cpu},
            {"cores", std::thread::hardware_concurrency()},
            {"memory_bytes", total_memory()},
            {"system", fmt::format("{} {} {}", system.sysname, system.release, system.machine)},
            {"compiler", compiler()}};
}

text_table::text_table(std::vector<std::string> header, int left) : left_(static_cast<std::size_t>(left)) {
    rows_.push_back(std::move(header));
}

void text_table::add(std::vector<std::string> row) {
    row.resize(rows_[0].size());
    rows_.push_back(std::move(row));
}

void text_table::gap() {
    rows_.emplace_back();
}

void text_table::print(std::FILE* to) const {
    std::vector<std::size_t> widths(rows_[0].size());
    for (auto const& row : rows_)
        for (std::size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], columns(row[i]));
    for (auto const& row : rows_) {
        std::string line;
        for (std::size_t i = 0; i < row.size(); ++i) {
            std::string const pad(widths[i] - columns(row[i]), ' ');
            line += (i == 0 ? "" : "  ") + (i < left_ ? row[i] + pad : pad + row[i]);
        }
        line.erase(line.find_last_not_of(' ') + 1);
        fmt::print(to, "{}\n", line);
    }
}

std::string three_digits(double x) {
    double const size  = x < 0 ? -x : x;
    int const decimals = size >= 99.95 ? 0 : size >= 9.995 ? 1 : size >= 0.9995 ? 2 : size >= 0.09995 ? 3 : 4;
    return fmt::format("{:.{}f}", x, decimals);
}

} // namespace bench
