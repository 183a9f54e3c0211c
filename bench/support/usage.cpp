// SPDX-License-Identifier: MIT
#include "usage.hpp"

#include "machine.hpp"

#include <charconv>
#include <cstdio>
#include <iostream>
#include <new>

namespace bench {

#if defined(NDEBUG)
static constexpr bool measures = true;
#else
static constexpr bool measures = false;
#endif

index_t parse_size(std::string const& text, std::string_view option) {
    index_t n              = 0;
    char const* const last = text.data() + text.size();
    auto const [end, code] = std::from_chars(text.data(), last, n);
    index_t unit           = 1;
    if (end + 1 == last && (*end == 'k' || *end == 'K')) unit = index_t{1} << 10;
    if (end + 1 == last && (*end == 'm' || *end == 'M')) unit = index_t{1} << 20;
    bool const whole = end == last || unit > 1;
    if (code != std::errc{} || !whole || n < 1 || n > (index_t{1} << 30) / unit)
        throw usage_error("{}: '{}' is no size; write 4096, 32k or 1m", option, text);
    return n * unit;
}

std::string size_text(index_t n) {
    if (n >= 1 << 20 && n % (1 << 20) == 0) return fmt::format("{}m", n >> 20);
    if (n >= 1 << 10 && n % (1 << 10) == 0) return fmt::format("{}k", n >> 10);
    return fmt::format("{}", n);
}

std::vector<std::string> split_list(std::string const& text) {
    std::vector<std::string> parts;
    std::size_t from = 0;
    while (from <= text.size()) {
        std::size_t const to = std::min(text.find(',', from), text.size());
        if (to > from) parts.push_back(text.substr(from, to - from));
        from = to + 1;
    }
    return parts;
}

CLI::Validator not_empty() {
    return {[](std::string& text) { return split_list(text).empty() ? "the list is empty" : ""; }, ""};
}

CLI::Validator number_between(double low, double high) {
    auto const check = [low, high](std::string& text) {
        double x          = 0;
        bool const parsed = CLI::detail::lexical_cast(text, x);
        return parsed && low <= x && x <= high ? "" : fmt::format("'{}' is no number in [{}, {}]", text, low, high);
    };
    return {check, fmt::format("in [{} - {}]", low, high)};
}

butterfly::element_type parse_element_type(std::string const& text, std::string_view option) {
    using butterfly::element_type;
    for (auto const t : {element_type::f32, element_type::f16, element_type::bf16})
        if (text == name_of(t)) return t;
    throw usage_error("{}: '{}' is none of f32, f16, bf16", option, text);
}

void common_options::add_to(CLI::App& app) {
    backend = default_backend();
    app.add_option("--backend", backend, "what executes the kernels: " + backend_names())->capture_default_str();
    app.add_option("--threads", threads, fmt::format("threads (default: {})", default_threads()))
        ->check(CLI::Range(1, 1024));
    app.add_option("--json", json, "write every number to FILE as JSON, - for standard output")->type_name("FILE");
}

int run_program(CLI::App& app, int argc, char const* const* argv, std::function<void()> const& body) {
    try {
        app.parse(argc, argv);
        body();
        std::fflush(stdout);
        if (!measures)
            std::cerr << app.get_name() << ": compiled for tests; only the preset native says how fast anything is\n";
        return 0;
    } catch (CLI::Success const& e) {
        return app.exit(e, std::cout, std::cerr);
    } catch (CLI::ParseError const& e) {
        std::cerr << app.get_name() << ": " << e.what() << '\n';
        return 2;
    } catch (usage_error const& e) {
        std::cerr << app.get_name() << ": " << e.what() << '\n';
        return 2;
    } catch (std::bad_alloc const&) {
        std::cerr << app.get_name() << ": not enough memory for these sizes\n";
        return 2;
    } catch (std::exception const& e) {
        std::cerr << app.get_name() << ": " << e.what() << '\n';
        return 1;
    }
}

} // namespace bench
