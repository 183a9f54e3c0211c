// SPDX-License-Identifier: MIT
#pragma once

// One policy type for all backends, so that a program is compiled once and picks its backend at run time.
//
// `machine` is a host policy like any other: dense_sdpa(machine, ...), sparse_sdpa(machine, ...), the caches. Behind it
// stands the policy of one backend, type-erased. Codecs cross by type: a backend knows those of kv_codecs.hpp
// and float; another one is refused when it is bound, by name.

#include <butterfly/backend/policy.hpp>
#include <butterfly/backend/simd/bf16_unit.hpp>
#include <butterfly/cache/update.hpp>
#include <butterfly/sdpa/attend.hpp>

#include <functional>
#include <memory>
#include <string>
#include <typeindex>
#include <vector>

namespace CLI {
class App;
}

namespace bench {

namespace bf = butterfly;
using bf::index_t;

/// What a program asks of a backend.
class machine_interface {
public:
    machine_interface()                                    = default;
    machine_interface(machine_interface const&)            = delete;
    machine_interface& operator=(machine_interface const&) = delete;
    virtual ~machine_interface()                           = default;

    [[nodiscard]] virtual std::string name() const = 0;
    [[nodiscard]] virtual bool available() const   = 0;
    /// The backend's functions for a codec of this type; throws backend_error where it knows none.
    [[nodiscard]] virtual bf::bound_codec bind(std::type_index type, void const* codec) const  = 0;
    [[nodiscard]] virtual bf::support supports(bf::problem const& p) const                     = 0;
    [[nodiscard]] virtual std::string explain(bf::problem const& p) const                      = 0;
    [[nodiscard]] virtual index_t workspace_bytes(std::span<bf::problem const> problems) const = 0;
    virtual void run(std::span<bf::problem const> problems) const                              = 0;
    [[nodiscard]] virtual index_t update_bytes(bf::cache_update const& u) const                = 0;
    virtual void
    update(bf::cache_update const& u, std::span<std::byte> workspace, std::function<void()> const& commit) const = 0;
};

/// A policy whose backend was chosen at run time.
class machine {
public:
    bf::executor executor{};

    machine(bf::executor e, std::shared_ptr<machine_interface const> behind)
        : executor(e), behind_(std::move(behind)) {}

    [[nodiscard]] std::string name() const { return behind_->name(); }
    [[nodiscard]] bool available() const { return behind_->available(); }
    [[nodiscard]] machine_interface const& behind() const noexcept { return *behind_; }

private:
    std::shared_ptr<machine_interface const> behind_;
};

static_assert(bf::backend::host_policy<machine>);

template <bf::quant::decoder Codec>
[[nodiscard]] bf::bound_codec bind_codec(machine const& m, Codec const& codec) {
    return m.behind().bind(typeid(Codec), &codec);
}
[[nodiscard]] inline bf::support supports(machine const& m, bf::problem const& p) {
    return m.behind().supports(p);
}
[[nodiscard]] inline std::string explain(machine const& m, bf::problem const& p) {
    return m.behind().explain(p);
}
[[nodiscard]] inline index_t workspace_bytes(machine const& m, std::span<bf::problem const> problems) {
    return m.behind().workspace_bytes(problems);
}
inline void run(machine const& m, std::span<bf::problem const> problems) {
    m.behind().run(problems);
}

[[nodiscard]] inline index_t workspace_bytes(machine const& m, bf::cache_update const& u) {
    return m.behind().update_bytes(u);
}
template <class Commit>
void update_cache(machine const& m, bf::cache_update const& u, std::span<std::byte> workspace, Commit const& commit) {
    m.behind().update(u, workspace, std::cref(commit));
}

/// What multiplies in the calls of a backend.
struct product_units {
    std::string vectors{}; // instruction set of its kernels: "x86_v4"; empty: what the build's flags allow
    bf::backend::bf16_unit bf16 = bf::backend::bf16_unit::fma; // of bf16 keys and values
};

/// A line of the table of backends. Of those whose `available` says yes, the one with the highest preference is the
/// default of every program.
struct backend_entry {
    std::string name;
    int preference                       = 0;
    bool (*available)()                  = nullptr;
    machine (*make)(bf::executor const&) = nullptr;
    product_units (*units)()             = nullptr; // of an available one
};

/// Every backend that was linked, in order of preference.
[[nodiscard]] std::vector<backend_entry> const& backends();

/// Adds a backend to the table; made as a static object by the backend's file in support/backends/.
struct backend_registration {
    explicit backend_registration(backend_entry entry);
};

/// "scalar, simd", for messages and help.
[[nodiscard]] std::string backend_names();

/// The name of the most preferred available backend.
[[nodiscard]] std::string default_backend();

/// Whose threads work: an OpenMP team's, or those of a pool that all make the call, as in an engine (pool.hpp).
enum class crew { openmp, share };

/// Adds --executor, which takes "openmp" or "share".
void add_executor_option(CLI::App& app, crew& who);

/// Throws usage_error where OpenMP's threads, which measure floors, would spin on the cores of a pool.
void check_crew(crew who, int threads);

/// A backend of the table with `threads` threads. Throws usage_error where there is none of this name, where this
/// machine cannot run it, or where several threads need an OpenMP that the program was built without.
[[nodiscard]] machine make_machine(std::string const& name, int threads, crew who = crew::openmp);

/// What multiplies in the calls of a backend that make_machine takes.
[[nodiscard]] product_units units_of(std::string const& name);

/// Threads OpenMP would use; 1 without it.
[[nodiscard]] int default_threads();

} // namespace bench
