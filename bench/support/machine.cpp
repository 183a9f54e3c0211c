// SPDX-License-Identifier: MIT
#include "machine.hpp"

#include "pool.hpp"
#include "usage.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <string_view>

namespace bench {
namespace {

std::vector<backend_entry>& table() {
    static std::vector<backend_entry> entries;
    return entries;
}

bf::executor make_executor(int threads) {
    if (threads == 1) return bf::serial{};
#if defined(_OPENMP)
    return bf::openmp{.threads = threads};
#else
    throw usage_error("--threads {}: this program was built without OpenMP, so it has one thread", threads);
#endif
}

backend_entry const& find(std::string const& name) {
    for (backend_entry const& e : table()) {
        if (e.name != name) continue;
        if (!e.available()) throw usage_error("--backend {}: this machine cannot run it", name);
        return e;
    }
    throw usage_error("--backend {}: there is {}", name, backend_names());
}

} // namespace

std::vector<backend_entry> const& backends() {
    return table();
}

backend_registration::backend_registration(backend_entry entry) {
    auto const by_preference = [](backend_entry const& a, backend_entry const& b) {
        return a.preference > b.preference;
    };
    table().insert(std::upper_bound(table().begin(), table().end(), entry, by_preference), std::move(entry));
}

std::string backend_names() {
    std::string names;
    for (backend_entry const& e : table()) names += (names.empty() ? "" : ", ") + e.name;
    return names;
}

std::string default_backend() {
    for (backend_entry const& e : table())
        if (e.available()) return e.name;
    return {};
}

void check_crew(crew who, int threads) {
    if (who == crew::openmp || threads == 1) return;
    char const* const policy = std::getenv("OMP_WAIT_POLICY");
    if (policy == nullptr || (std::string_view(policy) != "passive" && std::string_view(policy) != "PASSIVE"))
        throw usage_error(
            "--executor share: set OMP_WAIT_POLICY=passive, or OpenMP's threads spin where the pool works");
}

machine make_machine(std::string const& name, int threads, crew who) {
    bf::executor const executor = make_executor(threads);
    if (who == crew::openmp || threads == 1) return find(name).make(executor);
    check_crew(who, threads);
    return make_pooled_machine(find(name), threads, executor);
}

void add_executor_option(CLI::App& app, crew& who) {
    app.add_option_function<std::string>(
           "--executor", [&who](std::string const& name) { who = name == "share" ? crew::share : crew::openmp; },
           "whose threads make a call: openmp, or share, those of a pool as in an engine")
        ->check(CLI::IsMember({"openmp", "share"}))
        ->default_str("openmp");
}

product_units units_of(std::string const& name) {
    return find(name).units();
}

int default_threads() {
#if defined(_OPENMP)
    return omp_get_max_threads();
#else
    return 1;
#endif
}

} // namespace bench
