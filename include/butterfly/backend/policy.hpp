// SPDX-License-Identifier: MIT
#pragma once

// What a backend policy is: a small copyable value that says what executes the kernels.

#include <butterfly/core/executor.hpp>

#include <concepts>
#include <string>

namespace butterfly::backend {

/// A policy: its name, whether this machine can run it.
template <class P>
concept policy = std::copyable<P> && requires(P const& p) {
    { p.name() } -> std::convertible_to<std::string>;
    { p.available() } -> std::same_as<bool>;
};

/// A policy whose memory is the host's and whose threads come from an executor.
template <class P>
concept host_policy = policy<P> && requires(P const& p) {
    { p.executor } -> std::convertible_to<butterfly::executor const&>;
};

} // namespace butterfly::backend
