// SPDX-License-Identifier: MIT
// With kernels of x86_v3 alone, there are none up to baseline: the policy says so, attention is refused, and caches are
// filled all the same.
#include <butterfly/backend/host.hpp>
#include <butterfly/butterfly.hpp>

#include <cstdio>

namespace bf = butterfly;

#define CHECK(condition)                                                                                               \
    if (!(condition)) return std::printf("line %d: %s\n", __LINE__, #condition), 1

int main() {
    bf::backend::host const none{.at_most = bf::backend::isa_level::baseline};
    CHECK(!none.available() && none.kernels() == nullptr && none.name() == "host (no kernels)");

    bf::heads_buffer<float> x({1, 3, 4}), out({1, 3, 4});
    auto const keys  = bf::pool(x.view(), x.view(), bf::visible::interval{});
    auto const bound = bf::make_problem(none, x.view(), out.view(), {}, keys);
    std::string const reason("host: no linked kernels run on this CPU, or none up to at_most");
    bf::problem const p = bound.problem();
    CHECK(supports(none, p).reason == reason);
    CHECK(explain(none, p) == "declined: " + reason);
    CHECK(workspace_bytes(none, std::span(&p, 1)) == 0);
    bool refused = false;
    try {
        bf::attend(none, x.view(), out.view(), {}, keys);
    } catch (bf::backend_error const& e) {
        refused = e.what() == reason;
    }
    CHECK(refused);

    bf::compressed_kv_cache<> cache({.kv_heads = 1, .head_dim = 4, .block_size = 2, .max_tokens = 8});
    bf::append(none, cache, x.view(), x.view());
    CHECK(cache.tokens() == 3);

    // The highest level is what is linked, whatever this CPU has more.
    bf::backend::host const best{};
    CHECK(best.available() == bf::backend::available(bf::backend::isa_level::x86_v3));
    if (best.available()) CHECK(best.kernels()->level == bf::backend::isa_level::x86_v3);
    return 0;
}
