// SPDX-License-Identifier: MIT
#pragma once

// Command lines of the bench programs: sizes like 32k, lists of them, the options all programs have, exit codes.
//
//   0  done, or --help      1  the program failed      2  bad input, one line on stderr

#include <butterfly/core/half.hpp>
#include <butterfly/core/index.hpp>

#include <CLI/CLI.hpp>
#include <fmt/format.h>

#include <functional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace bench {

using butterfly::index_t;

/// Bad input; the text is the one line that the user sees.
struct usage_error : std::runtime_error {
    template <class... Args>
    explicit usage_error(fmt::format_string<Args...> text, Args&&... args)
        : std::runtime_error(fmt::format(text, std::forward<Args>(args)...)) {}
};

/// "32k" is 32768, "1m" is 1048576, "100" is 100. Throws usage_error naming `option` for anything that is no positive
/// size.
[[nodiscard]] index_t parse_size(std::string const& text, std::string_view option);

/// The reverse: 32768 is "32k", 1000 is "1000".
[[nodiscard]] std::string size_text(index_t n);

/// The parts between commas; empty parts are left out.
[[nodiscard]] std::vector<std::string> split_list(std::string const& text);

/// For check(): a list with a part at least.
[[nodiscard]] CLI::Validator not_empty();

/// For check(): a number in [low, high], which NaN is not.
[[nodiscard]] CLI::Validator number_between(double low, double high);

/// f32, f16 or bf16. Throws usage_error naming `option`.
[[nodiscard]] butterfly::element_type parse_element_type(std::string const& text, std::string_view option);

/// What every program takes.
struct common_options {
    std::string backend;
    int threads = 0; // 0: default_threads()
    std::string json;

    /// Adds --backend, --threads and --json.
    void add_to(CLI::App& app);
};

/// Parses, then runs `body`, and turns what they throw into the exit code of `main`.
[[nodiscard]] int run_program(CLI::App& app, int argc, char const* const* argv, std::function<void()> const& body);

} // namespace bench
