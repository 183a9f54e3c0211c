// SPDX-License-Identifier: MIT
#pragma once

// From a policy type to a line of the table of backends. A backend joins by one file in support/backends/:
//
//   #include <butterfly/backend/mine.hpp>
//   #include "machine_of.hpp"
//   static bench::backend_registration const joined{bench::entry_of<butterfly::backend::mine>("mine", 5)};

#include <butterfly/backend/host/cache_ops.hpp>

#include "kv_codecs.hpp"
#include "machine.hpp"

#include <utility>

namespace bench {

template <bf::backend::host_policy Policy>
class machine_of final : public machine_interface {
public:
    explicit machine_of(Policy policy) : policy_(std::move(policy)) {}

    [[nodiscard]] std::string name() const override { return policy_.name(); }
    [[nodiscard]] bool available() const override { return policy_.available(); }
    [[nodiscard]] bf::bound_codec bind(std::type_index type, void const* codec) const override {
        bf::bound_codec bound = nullptr;
        bool known            = false;
        auto const ask        = [&]<class Codec>(Codec const&) {
            if (known || type != typeid(Codec)) return;
            known = true;
            bound = ask_bind(policy_, *static_cast<Codec const*>(codec));
        };
        ask(bf::quant::raw<float>{});
        for_each_kv_codec([&](auto const& is) { ask(is.codec); });
        if (!known)
            bf::detail::fail<bf::backend_error>(std::string("the table of backends knows no codec ") + type.name());
        return bound;
    }
    [[nodiscard]] bf::support supports(bf::problem const& p) const override { return ask_supports(policy_, p); }
    [[nodiscard]] std::string explain(bf::problem const& p) const override { return ask_explain(policy_, p); }
    [[nodiscard]] index_t workspace_bytes(std::span<bf::problem const> problems) const override {
        return ask_workspace(policy_, problems);
    }
    void run(std::span<bf::problem const> problems) const override { ask_run(policy_, problems); }
    [[nodiscard]] index_t update_bytes(bf::cache_update const& u) const override { return ask_workspace(policy_, u); }
    void update(bf::cache_update const& u,
                std::span<std::byte> workspace,
                std::function<void()> const& commit) const override {
        update_cache(policy_, u, workspace, commit);
    }

private:
    // A policy's functions are found by argument-dependent lookup, which the members' names would hide: hence the
    // using-declarations.
    template <class Codec>
    static bf::bound_codec ask_bind(Policy const& p, Codec const& codec) {
        return bind_codec(p, codec);
    }
    static bf::support ask_supports(Policy const& p, bf::problem const& q) {
        using bench::supports;
        return supports(p, q);
    }
    static std::string ask_explain(Policy const& p, bf::problem const& q) {
        using bench::explain;
        return explain(p, q);
    }
    template <class What>
    static index_t ask_workspace(Policy const& p, What const& what) {
        using bench::workspace_bytes;
        return workspace_bytes(p, what);
    }
    static void ask_run(Policy const& p, std::span<bf::problem const> problems) {
        using bench::run;
        run(p, problems);
    }

    Policy policy_;
};

/// The line of a host policy: a default-made one with the executor put in. `units`: where it is not float multiply-add
/// of the build's flags that multiplies.
template <bf::backend::host_policy Policy>
[[nodiscard]] backend_entry entry_of(
    std::string name, int preference, product_units (*units)() = [] { return product_units{}; }) {
    return {.name       = std::move(name),
            .preference = preference,
            .available  = [] { return Policy{}.available(); },
            .make =
                [](bf::executor const& executor) {
                    Policy policy{};
                    policy.executor = executor;
                    return machine(executor, std::make_shared<machine_of<Policy> const>(std::move(policy)));
                },
            .units = units};
}

} // namespace bench
